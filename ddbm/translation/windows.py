"""Windows that lie symmetrically on an image, and the denoiser of the whole that is blended from them."""

import itertools
import math
from collections.abc import Callable, Iterator
from itertools import islice, pairwise, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..files.canvas import canvas
from ..model import BridgeModel
from ..ranks.distributed import out_of_memory
from ..symmetry.averaging import Averaged
from ..symmetry.groups import Group


class Axis(NamedTuple):
    """The windows along an axis: where each starts, and the share `[windows, side]` that it has in every pixel."""

    starts: list[int]
    shares: np.ndarray

    def finer(self, factor: int) -> "Axis":
        """The same windows where every pixel is cut into `factor`."""
        starts, side = [factor * start for start in self.starts], factor * self.shares.shape[1]
        return Axis(starts, shares(starts, side))


def axis(length: int, side: int, overlap: float) -> Axis:
    """Windows of `side` pixels from end to end, neighbours in common at least the share `overlap` of one.

    The i-th and the i-th from the end lie as mirror images. Shares are smooth, sin², and add up to 1 at every pixel.
    """
    room, stride = length - side, max(1, math.floor(side * (1 - overlap)))
    assert room >= 0
    for count in itertools.count(1 + math.ceil(room / stride)):
        if count % 2 and room % 2:
            continue  # none can lie in the middle
        half = [i * room // (count - 1) for i in range(count // 2)]
        starts = half + [room // 2] * (count % 2) + [room - start for start in reversed(half)]
        if all(b - a <= stride for a, b in pairwise(starts)):
            break
    return Axis(starts, shares(starts, side))


def shares(starts: list[int], side: int) -> np.ndarray:
    """The share `[windows, side]` that each of the windows has in its pixels: sin², over the sum of all at a pixel."""
    bell = np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2
    total = np.zeros(starts[-1] + side)
    for start in starts:
        total[start : start + side] += bell
    return np.stack([bell / total[start : start + side] for start in starts]).astype(np.float32)


class Windowed:
    """D(x, t) of a batch of images `[B, C, H, W]`, whatever their size: that of their windows, clipped and blended.

    axes: the windows along rows and columns; mask: bool `[B, 1, H, W]`; label: int64 `[B]`; group: D is averaged over
    it; batch_size: windows at once, halved until they fit the memory; tick: called with the share of an evaluation that
    was done. Images lie in ordinary memory or on the disk, windows go to the model's device.
    """

    def __init__(
        self, model: BridgeModel, source: np.ndarray, mask: np.ndarray | None, label: Tensor | None,
        axes: tuple[Axis, Axis], group: Group | None, batch_size: int, folder: Path | None,
        tick: Callable[[float], object],
    ) -> None:  # fmt: skip
        self.model, self.source, self.mask, self.label, self.axes = model, source, mask, label, axes
        self.group, self.batch_size, self.folder, self.tick = group, batch_size, folder, tick
        self.price = len(group) if group else 1  # images that a window is to the network
        self.device = next(model.parameters()).device
        rows, columns = (range(len(each.starts)) for each in axes)
        self.at_once = 0  # elements of the group, as many as fit the memory
        self.places = list(product(range(len(source)), rows, columns))

    def __call__(self, x: np.ndarray, t: Tensor) -> np.ndarray:
        out, places = canvas(x.shape, self.folder), iter(self.places)
        while batch := list(islice(places, max(1, self.batch_size // self.price))):
            for part, D in self._estimates(batch, x, t):
                for place, estimate in zip(part, D, strict=True):
                    image, i, j = place
                    share = self.axes[0].shares[i][:, None] * self.axes[1].shares[j]
                    rows, columns = self._where(place)
                    out[image, :, rows, columns] += estimate * share
                self.tick(len(part) / len(self.places))
        return out

    def _where(self, place: tuple[int, int, int]) -> tuple[slice, slice]:
        starts = (each.starts[n] for each, n in zip(self.axes, place[1:], strict=True))
        rows, columns = (slice(a, a + each.shares.shape[1]) for each, a in zip(self.axes, starts, strict=True))
        return rows, columns

    def _estimates(
        self, places: list[tuple[int, int, int]], x: np.ndarray, t: Tensor
    ) -> Iterator[tuple[list[tuple[int, int, int]], np.ndarray]]:
        """D of some windows, in as many parts as the memory needs."""
        try:
            yield places, self._estimate(places, x, t)
            return
        except RuntimeError as error:
            if len(places) == 1 or not out_of_memory(error):
                raise
        torch.cuda.empty_cache()  # here, where the error no longer holds what had been computed
        half = len(places) // 2
        self.batch_size = half * self.price
        for part in (places[:half], places[half:]):
            yield from self._estimates(part, x, t)

    def _estimate(self, places: list[tuple[int, int, int]], x: np.ndarray, t: Tensor) -> np.ndarray:
        source, state = self._cut(places, self.source), self._cut(places, x)
        label = None if self.label is None else self.label[[image for image, _, _ in places]].to(self.device)
        if self.group:
            averaged = Averaged(self.model.denoiser, source, label, self.group, self.at_once)
            D, self.at_once = averaged(state, t), averaged.at_once
        else:
            D = self.model.denoiser(source, label)(state, t)
        D = D.clamp(-1, 1)
        return (D if self.mask is None else D * self._cut(places, self.mask)).cpu().numpy()

    def _cut(self, places: list[tuple[int, int, int]], images: np.ndarray) -> Tensor:
        cut = []
        for place in places:
            rows, columns = self._where(place)
            cut.append(images[place[0], :, rows, columns])
        return torch.from_numpy(np.stack(cut)).to(self.device)
