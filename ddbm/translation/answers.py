"""`translate(model, image)`: draws, best guess and spread for images of any size that have no target."""

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..files.canvas import canvas
from ..model import BridgeModel, plan_of, sampling_group
from ..networks.convolutions import folded
from ..settings import unknown
from ..symmetry.frames import canonical_frame
from ..symmetry.groups import IDENTITY, Element, inverse, view
from .sums import Field, Sum, strips
from .tiles import decoded, encoded
from .windows import Windowed, axis

ANSWERS = ("sample", "mean", "both")
Image = TypeVar("Image", np.ndarray, Tensor)


class Answers(NamedTuple):
    """What was asked for of a batch of images, each like the targets; None what was not.

    sample: the first draw; mean: of the draws, or the estimate at T; spread: the standard deviation over two draws or
    more, 1 being the whole range from black to white; draws: all of them, `[K, ...]`; nfe: network evaluations that a
    pixel took in one window, for all of this.
    """

    sample: Any
    mean: Any
    spread: Any
    draws: Any
    nfe: int


class Translator:
    """A model, set up to translate; settings: those of `translate`. Raises ValueError for what does not fit.

    folder: where arrays lie that are larger than `canvas.DISK`.
    """

    def __init__(
        self, model: BridgeModel, *, answer: str = "sample", draws: int = 0, sampler: str = "dbim", nfe: int = 20,
        grid: str = "", symmetrize: str = "none", group: str = "", seed: int = 0, window: int = 0,
        overlap: float = 0.5, batch_size: int = 64, folder: Path | None = None, **settings: float,
    ) -> None:  # fmt: skip
        if answer not in ANSWERS:
            raise unknown("answer", answer, ANSWERS)
        if sampler == "ode":
            raise ValueError("sampler ode takes steps of its own for every image: to translate choose another")
        numbers = (("draws", draws, 0), ("seed", seed, 0), ("window", window, 0), ("batch_size", batch_size, 1))
        for name, number, least in numbers:
            if type(number) is not int or number < least:
                raise ValueError(f"--{name} must be a whole number from {least} on, found {number!r}")
        if not 0 <= overlap < 1:
            raise ValueError(f"--overlap must lie in [0, 1), found {overlap!r}")
        if draws and answer == "sample":
            raise ValueError(f"--draws {draws} are for the mean: add --answer mean, or both")
        self.model, self.answer, self.draws, self.seed, self.symmetrize = model, answer, draws, seed, symmetrize
        self.overlap, self.batch_size, self.folder = overlap, batch_size, folder
        self.trained = (model.images.height, model.images.width)
        self.window = (window, window) if window else self.trained
        self.unit = model.codec.factor * 2 ** (model.network.levels - 1)
        if window % self.unit:
            fits = max(1, round(window / self.unit)) * self.unit
            raise ValueError(
                f"--window {window} must be a multiple of {self.unit}, which can be halved to the end: take {fits}"
            )
        self.group = sampling_group(model, symmetrize, group)
        self.group.check_size(*self.window)
        price = len(self.group) if symmetrize == "average" else 1
        self.plan = plan_of(model, sampler, nfe, grid, symmetrize, self.group, **settings)
        pixel, ends = torch.zeros(1, 1, 1, 1), set[float]()  # times of evaluations of x_T itself: once for all draws

        def look(x: Tensor, t: Tensor) -> Tensor:
            ends.update([float(t)] if x is pixel else [])
            return torch.zeros_like(x)

        calls = self.plan.run(look, pixel, torch.zeros_like)[1] // price
        self.count = draws or int(answer != "mean")  # draws that are made
        at_T = [model.bridge.T] if answer != "sample" and not draws else []
        self.calls = len(at_T) + self.count * calls
        self.nfe = price * (self.count * (calls - len(ends)) + len(ends.union(at_T) if self.count else at_T))

    @torch.inference_mode()
    def __call__(
        self, source: np.ndarray, mask: np.ndarray | None = None, label: Tensor | None = None,
        keep: Callable[[int, np.ndarray], object] | None = None, tick: Callable[[float], object] = lambda share: None,
    ) -> Answers:  # fmt: skip
        """Answers for sources float32 `[B, C, H, W]` in [-1, 1], as arrays with the channels of the target.

        mask: bool `[B, 1, H, W]`, True where they are defined, 0 elsewhere; label: int64 `[B]`; keep: called with
        number and images of every draw; tick: called with shares of the work when they are done.
        """
        frames = [
            canonical_frame(_tensor(image), self.group, None if mask is None else _tensor(mask[i]))
            for i, image in enumerate(source)
        ]
        cell = self.model.codec.factor
        canonical = self.symmetrize == "canonical" or any(n % cell for n in source.shape[2:])  # then margins differ
        back = [inverse(g) if canonical else IDENTITY for g in frames]
        if canonical:
            source, mask = turned(frames, source), None if mask is None else turned(frames, mask)
            frames = [IDENTITY] * len(frames)
        height, width = source.shape[2:]
        sides = self._sides(height, width)
        margins = [_margins(n, side, cell) for n, side in zip((height, width), sides, strict=True)]
        inner: Any = (..., *(slice(m, m + n) for (m, _), n in zip(margins, (height, width), strict=True)))
        source = reflected(source, margins, self.folder)
        mask = None if mask is None else reflected(mask, margins, self.folder)
        averaged = self.group if self.symmetrize == "average" else None
        cells, z = mask, encoded(self.model, source, averaged, self.folder)
        if mask is not None and z is not source:
            cells = self.model.codec.mask(torch.from_numpy(mask)).numpy()
            z *= cells
        x_T = self._endpoint(z)
        axes = [axis(n, side // cell, self.overlap) for n, side in zip(z.shape[2:], sides, strict=True)]
        windowed = Windowed(
            self.model, z, cells, label, (axes[0], axes[1]), averaged, self.batch_size, self.folder,
            lambda share: tick(share / self.calls),
        )  # fmt: skip
        first: dict[float, np.ndarray] = {}  # estimates for x_T itself, with which every draw begins

        def estimate(x: np.ndarray, t: Tensor) -> np.ndarray:
            if x is not x_T:
                return windowed(x, t)
            if float(t) in first:
                tick(1 / self.calls)
            else:
                first[float(t)] = windowed(x, t)
            return first[float(t)]

        def denoise(x: Any, t: Tensor) -> Any:
            return Sum([(1.0, estimate(x.settled(x_T.shape, self.folder), t))])

        def pictures(z: np.ndarray) -> np.ndarray:
            images = decoded(self.model, z, averaged, self.folder)
            if mask is not None and images is not z:
                images *= mask
            return images

        def draw(number: int) -> np.ndarray:
            numbers = itertools.count()

            def noise(like: Any) -> Any:
                corner = [before // cell for before, _ in margins]
                return Sum([(1.0, Field([(self.seed, number, next(numbers))] * len(frames), frames, cells, corner))])

            x_0: Any = self.plan.run(denoise, Sum([(1.0, x_T)]), noise)[0]  # type: ignore[arg-type]
            found = x_0.settled(x_T.shape, self.folder)
            return pictures(np.clip(found, *clip, out=found) if (clip := self.model.codec.clip) else found)

        def finished(images: np.ndarray | None) -> np.ndarray | None:
            return None if images is None else turned(back, images[inner])

        sample = mean = squares = spread = None
        with folded(self.model.network):
            for number in range(self.count):
                images = draw(number)
                if keep:
                    keep(number, turned(back, images[inner]))
                sample = images if number == 0 and self.answer != "mean" else sample
                if self.draws:
                    mean = canvas(images.shape, self.folder) if mean is None else mean
                    squares = canvas(images.shape, self.folder) if squares is None and self.draws > 1 else squares
                    _add(images, mean, squares, number + 1)
            if self.answer != "sample" and not self.draws:
                mean = pictures(estimate(x_T, self.model.bridge.time(self.model.bridge.T)))
        if squares is not None:
            spread = squares
            for rows in strips(spread.shape):  # as a share of 2, from -1 to 1
                spread[..., rows, :] = np.sqrt(spread[..., rows, :] / (self.draws - 1)) / 2
        self.batch_size = windowed.batch_size  # what fits the memory
        return Answers(finished(sample), finished(mean), finished(spread), None, self.nfe)

    @property
    def pixels_at_once(self) -> int:
        """How many pixels of images give the network a full batch of windows."""
        return self.batch_size * self.window[0] * self.window[1]

    def _sides(self, height: int, width: int) -> tuple[int, int]:
        """The windows' size: for small images no more than they need, but not less than in training."""
        needed = [
            min(window, max(trained, math.ceil(n / self.unit) * self.unit))
            for window, trained, n in zip(self.window, self.trained, (height, width), strict=True)
        ]
        if self.window[0] == self.window[1]:
            needed = [max(needed)] * 2
        return needed[0], needed[1]

    def _endpoint(self, source: np.ndarray) -> np.ndarray:
        """x_T: the source, with as many channels as the target."""
        channels = self.model.latents.target_channels
        if source.shape[1] == channels:
            return source
        out = canvas((len(source), channels, *source.shape[2:]), self.folder)
        for rows in strips(out.shape):
            out[..., rows, :] = self.model.endpoint(_tensor(source[..., rows, :])).numpy()
        return out


def translate(
    model: BridgeModel, image: Image, *, mask: Image | None = None, label: int | Sequence[int] | None = None,
    keep_draws: bool = False, **settings: Any,
) -> Answers:  # fmt: skip
    """Translates an image, or a batch, of any size; no target is needed.

    image: a tensor, float32 `[C, H, W]` or `[B, C, H, W]` in [-1, 1], or an array `[H, W]`, `[H, W, C]` or
    `[B, H, W, C]` of uint8, uint16, or floats in [0, 1]; the answers are of the same kind, with the target's channels.
    mask: bool, True where the image is defined, `[H, W]` or `[B, H, W]`; label: its class, or those of a batch;
    keep_draws: all draws, too. The spread is a share of the range from black to white, whatever the kind.

    answer: "sample", one draw; "mean", the best guess in the sense of MSE; or "both". draws: how many samples the mean
    is the average of; 0: it is E[x_0 | x_T] by one evaluation at T. Two or more also give the spread. window: side of
    the windows that larger images are cut into, default that of training; overlap: the least share that neighbours
    have in common; batch_size: windows at once. sampler, nfe, grid, symmetrize, group, and the sampler's own settings:
    as in `sample`, but for `ode`. The noise depends on seed, draw and position alone, and turns with the image.
    Raises ValueError for what does not fit.
    """
    if keep_draws and settings.get("answer") == "mean" and not settings.get("draws"):
        raise ValueError("keep_draws: the estimate at T makes no draws, say how many (draws=8)")
    source, seen = _as_source(image, model.images.source_channels), None
    if mask is not None:
        seen = np.asarray(mask).astype(bool)
        count, _, *size = source.shape
        if seen.shape != (count, *size) and (image.ndim == 4 or seen.shape != (*size,)):
            raise ValueError(f"the mask must have the image's height and width, {size}: found {list(seen.shape)}")
        seen = seen.reshape(count, 1, *size)
        source = source * seen
    classes = model.images.num_classes
    alone = label is None or isinstance(label, (int, np.integer))
    given = np.asarray([label] * len(source) if alone else label)
    fits = label is None or (given.shape == (len(source),) and set(given.tolist()) <= set(range(classes)))
    if (label is None) != (not classes) or not fits:
        wanted = f"say which with label, 0 .. {classes - 1}" if classes else "leave label out"
        raise ValueError(f"the model has {classes} classes, found label {label}: {wanted}")
    labels = torch.from_numpy(given.astype(np.int64)) if classes else None
    draws: list[np.ndarray] = []
    keep = (lambda number, images: draws.append(np.array(images))) if keep_draws else None
    found = Translator(model, **settings)(source, seen, labels, keep)
    grey = isinstance(image, np.ndarray) and image.ndim == 2

    def like(images: np.ndarray | None, share: bool = False) -> Any:
        """Arrays as what was given: `[..., B, C, H, W]` in [-1, 1], or shares of the range."""
        if images is None:
            return None
        if image.ndim < 4:
            images = images[..., 0, :, :, :]
        if isinstance(image, Tensor):
            return torch.from_numpy(np.array(images)).to(image.device)
        images = np.moveaxis(images, -3, -1)
        images = images[..., 0] if grey and images.shape[-1] == 1 else images
        if share or image.dtype.kind == "f":
            return np.array(images if share else (images + 1) / 2)
        top = np.iinfo(image.dtype).max
        return np.rint((images + 1) / 2 * top).astype(image.dtype)

    kept = np.stack(draws) if draws else None
    return Answers(like(found.sample), like(found.mean), like(found.spread, True), like(kept), found.nfe)


def _as_source(image: np.ndarray | Tensor, channels: int) -> np.ndarray:
    """A batch of sources, float32 `[B, C, H, W]` in [-1, 1]."""
    expected = (
        f"expected a tensor, float32 [{channels}, H, W] in [-1, 1], or an array [H, W, {channels}] of uint8, uint16 or "
        "floats in [0, 1], or a batch of such"
    )
    if isinstance(image, Tensor) and image.is_floating_point():
        source = image.detach().cpu().float().numpy()
    elif isinstance(image, np.ndarray) and (image.dtype in (np.uint8, np.uint16) or image.dtype.kind == "f"):
        array = image[..., None] if image.ndim == 2 else image
        top = 1 if image.dtype.kind == "f" else np.iinfo(image.dtype).max
        source = np.moveaxis(array, -1, -3).astype(np.float32) / np.float32(top) * 2 - 1
    else:
        raise ValueError(f"{expected}; found {getattr(image, 'dtype', type(image).__name__)}")
    source = source[None] if source.ndim == 3 else source
    if source.ndim != 4 or source.shape[1] != channels or 0 in source.shape:
        raise ValueError(f"{expected}; found {type(image).__name__} {list(image.shape)}")
    if not np.abs(source).max() <= 1 + 1e-3:  # NaN fails too
        raise ValueError(f"{expected}; found values beyond, or NaN")
    return source


def turned(frames: Sequence[Element], images: np.ndarray) -> np.ndarray:
    """Every image of a batch turned by its own element; of one image a view."""
    if len(images) == 1:
        return view(frames[0], images)
    return np.stack([view(g, image) for g, image in zip(frames, images, strict=True)])


def reflected(images: np.ndarray, margins: Sequence[tuple[int, int]], folder: Path | None = None) -> np.ndarray:
    """Images with margins (above, below), (left, right), in which they are mirrored, as often as it takes."""
    if not any(map(any, margins)):
        return images
    rows, columns = (
        np.pad(np.arange(n), margin, "reflect") for n, margin in zip(images.shape[2:], margins, strict=True)
    )
    out = canvas((*images.shape[:2], len(rows), len(columns)), folder, images.dtype)
    for part in strips(out.shape):
        out[..., part, :] = images[..., rows[part, None], columns]
    return out


def _margins(length: int, side: int, cell: int) -> tuple[int, int]:
    """Pixels on both ends, as many, so that a window fits; at the last one also what is missing to whole cells."""
    missing = -length % cell
    margin = cell * max(0, math.ceil((side - length - missing) / (2 * cell)))
    return margin, margin + missing


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _add(images: np.ndarray, mean: np.ndarray, squares: np.ndarray | None, count: int) -> None:
    """The count-th images go into their mean, and into the sum of squares of what they differ from it (Welford)."""
    for rows in strips(images.shape):
        part = (..., rows, slice(None))
        step = images[part] - mean[part]
        mean[part] += step / count
        if squares is not None:
            squares[part] += step * (images[part] - mean[part])
