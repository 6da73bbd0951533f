"""What the page of scripts.demo does with a model: reads inputs, translates and turns them, tells it all as HTML."""

import base64
import html
import io
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from datasets import DATASETS
from datasets.large import open_image
from datasets.listing import listed
from datasets.single import other_type, read_source
from datasets.writing import Form, form_of, write_image
from ddbm.config import Header
from ddbm.model import BridgeModel
from ddbm.symmetry.groups import GROUPS, Element, view
from ddbm.translation.answers import Translator
from evaluations.images import to_bytes

from .common import given_folder, open_splits, refuse_shape, say
from .pictures import evenly, rgb
from .translate import SPREAD_WHITE, factors

LIMIT = 4_000_000  # pixels of an image
EXAMPLES = 8  # at most
REGION = 4  # sides of a larger example, in those of a training image
SHOWN = 1024  # side, in pixels, of the largest picture in the page; files have them all
AMPLIFIED = 10  # the picture of a difference
TURNS: dict[str, Element] = {
    "Quarter turn left": (0, 1), "Half turn": (0, 2), "Mirror left–right": (1, 0), "Mirror top–bottom": (1, 2)
}  # fmt: skip


class Stopped(Exception):
    """Somebody pressed Stop."""


class Input(NamedTuple):
    """What is translated: image float32 `[C, H, W]`, mask bool `[1, H, W]`, and if it is known its class and target."""

    name: str
    image: np.ndarray
    mask: np.ndarray | None = None
    label: int | None = None
    target: np.ndarray | None = None
    note: str = ""


class Choice(NamedTuple):
    """What the page's controls ask for, in their order."""

    answer: str
    draws: int
    sampler: str
    nfe: int
    seed: int
    symmetrize: str
    group: str
    label: int | None


class Result(NamedTuple):
    """The answers to an input, each float32 `[C, H, W]`, None what was not asked for; seconds that they took."""

    given: Input
    choice: Choice
    sample: np.ndarray | None
    mean: np.ndarray | None
    spread: np.ndarray | None
    nfe: int
    seconds: float

    @property
    def first(self) -> np.ndarray:
        """The sample, or else the mean."""
        answer = self.mean if self.sample is None else self.sample
        assert answer is not None
        return answer


@dataclass
class Studio:
    """A model, what its checkpoint says of it, and what the page does with both; raises ValueError for mistakes."""

    model: BridgeModel
    header: Header

    def __post_init__(self) -> None:
        self.form = form_of(self.header)
        self.symmetric = self.model.config.model.layers != "plain" and len(self.model.group) > 1
        self.exact = self.symmetric and self.model.codec.commutes(self.model.group)
        self.stopping = threading.Event()

    @property
    def groups(self) -> list[str]:
        """Groups to choose from for noise and symmetrization, the first is the default; layers with a group have it."""
        if self.symmetric:
            return [self.model.group.name]
        square = self.model.images.height == self.model.images.width
        fitting = [name for name, group in GROUPS.items() if square or not group.turns]
        trained = (self.model.group.name, self.header.config.train.augment, "D4", "D2")
        first = next(name for name in trained if name != "none" and name in fitting)
        return [first, *(name for name in fitting if name != first)]

    @property
    def turns(self) -> dict[str, Element]:
        """The buttons: what the network's group has, or every turn that the training images allow."""
        group = GROUPS[self.groups[0] if self.symmetric else "D4" if "D4" in self.groups else "D2"]
        return {name: g for name, g in TURNS.items() if g in group.elements}

    def about(self) -> str:
        """What the model is, in a line."""
        config, images = self.header.config, self.header.images
        layers = f"{config.model.layers} layers" + (f", group {self.model.group.name}" if self.symmetric else "")
        size = f"{images.height}×{images.width}"
        data = f"{config.data.dataset}, {config.bridge.schedule}"
        return f"{data} · {layers} · trained on {size} for {self.header.step} steps"

    def read(self, path: Path, name: str) -> Input:
        """A file as an input. Raises ValueError with the name in the place of the path."""
        data, images, factor = self.header.config.data, self.header.images, factors(self.header, 0.0)
        try:
            height, width, _ = open_image(path)
            if height * width * max(factor[0] * factor[1], 1) > LIMIT:
                raise ValueError(
                    f"{name}: {height}×{width} are more pixels than the page takes ({LIMIT:,}): "
                    f"python -m scripts.translate MODEL '{name}' --out DIR translates images of any size"
                )
            trained = images.height, images.width
            source = read_source(path, data, images.source_channels, factor, trained=trained)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), name)) from None
        notes = filter(None, [source.note, other_type(source, self.header)])
        return Input(name, source.image, source.mask, note="; ".join(notes))

    def held_out(self) -> list[Input]:
        """Sources of the model's own validation data, with larger regions where the data has them."""
        data, images, place = self.header.config.data, self.header.images, given_folder("")
        splits = open_splits(data, "val", data_dir=place, like=self.header, sources=True)
        refuse_shape(splits[0], images)
        if data.dataset in DATASETS and not place and images.height == images.width:
            larger = replace(data, image_size=str(REGION * images.height))
            with suppress(ValueError):  # which not all data has
                splits = [*open_splits(larger, "val", quiet=True), *splits]
        found: list[Input] = []
        for pairs in splits:
            for index in evenly(len(pairs), EXAMPLES // len(splits)):
                target, source, mask, label = pairs.get(index, None)
                seen, real = None if mask is None else mask.numpy(), target.numpy() if pairs.targets else None
                found.append(Input(pairs.names[index], source.numpy(), seen, label, real))
        return found

    def examples(self, folder: str) -> list[Input]:
        """Images of the folder, or held-out ones; what cannot be read is said and left out."""
        if not folder:
            try:
                return self.held_out()
            except (ValueError, OSError) as error:
                say(f"note: no examples, as the model's own data cannot be opened ({error}): --examples FOLDER")
                return []
        root, found = Path(folder).expanduser(), list[Input]()
        if not root.is_dir():
            raise ValueError(f"--examples {folder} is no folder")
        pictures = list(listed(root).pictures.items())
        for name, path in [pictures[i] for i in evenly(len(pictures), EXAMPLES)] if pictures else []:
            try:
                found.append(self.read(path, name))
            except ValueError as error:
                say(f"note: {error}")
        if not found:
            raise ValueError(f"--examples {folder} holds no image that the model takes")
        return found

    def translate(self, given: Input, choice: Choice, tick: Callable[[float], object] = lambda share: None) -> Result:
        """The answers for an input; tick: called with the share of the work that is done."""
        settings = choice._asdict()
        label = settings.pop("label")
        settings["group"] = "" if self.symmetric else choice.group
        settings["draws"] = choice.draws if choice.answer != "sample" else 0
        translator, done = Translator(self.model, **settings), 0.0
        self.stopping.clear()

        def ticked(share: float) -> None:
            nonlocal done
            done += share
            tick(min(done, 1.0))
            if self.stopping.is_set():
                raise Stopped

        labels = torch.tensor([label]) if self.header.images.num_classes else None
        mask, start = None if given.mask is None else given.mask[None], time.monotonic()
        found = translator(given.image[None], mask, labels, tick=ticked)
        sample, mean, spread = (None if images is None else images[0] for images in found[:3])
        return Result(given, choice, sample, mean, spread, found.nfe, time.monotonic() - start)

    def difference(self, turned: Result, base: Result, g: Element) -> str:
        """How far the answer to the turned input is from the turned answer, in words."""
        wanted = view(g, base.first).astype(np.float64)
        error = turned.first - wanted
        relative = np.linalg.norm(error) / max(np.linalg.norm(wanted), 1e-30)
        levels = np.abs(error).max() / 2 * (self.form.white - self.form.black)
        text = f"‖S(g x) − g S(x)‖ / ‖S(x)‖ = <strong>{relative:.1e}</strong>, no value differs by more than "
        text += f"<strong>{levels:.3g}</strong>, of a range of {self.form.white - self.form.black:g}. "
        choice, group = turned.choice, GROUPS[turned.choice.group]
        if self.exact or (choice.symmetrize != "none" and g in group.elements):
            return text + f"The answer turns with the input; what is left is rounding in {self.model.precision}."
        who = "Plain layers: nothing" if not self.symmetric else "Nothing in the codec"
        return text + (
            f"{who} makes the answer turn with the input but what the training taught"
            + ("." if g in group.elements else f", and the noise does not either, whose group is {group.name}.")
            + " Symmetrize, by a group that has this turn, changes that."
        )

    def page_of(self, result: Result) -> str:
        """The answers to an input as HTML."""
        given, figures = result.given, [source_of(result.given)]
        if result.sample is not None:
            figures.append(figure("Sample", f"one draw, seed {result.choice.seed}", result.sample))
        if result.mean is not None:
            draws = result.choice.draws
            how = f"of {draws} draw{'s' * (draws > 1)}" if draws else "estimated by one evaluation"
            figures.append(figure("Mean", how, result.mean))
        if result.spread is not None:
            share = f"{result.spread.mean():.2%} of the range in the mean; white from {SPREAD_WHITE:.0%} on"
            figures.append(figure("Spread", share, spread_picture(result.spread)))
        if given.target is not None:
            figures.append(figure("Target", "the real one, which the model does not see", given.target))
        text = f"<strong>{result.nfe}</strong> evaluations of the network, <strong>{result.seconds:.1f} s</strong>"
        return said(text, given.note) + framed(figures)

    def page_of_turned(self, turned: Result, base: Result, g: Element) -> str:
        """The turned input's answer beside the turned answer, with the difference, then the answers themselves."""
        wanted = np.ascontiguousarray(view(g, base.first))
        error = np.clip((turned.first - wanted) * AMPLIFIED, -1, 1)
        figures = [
            figure("Turned source", f"g x: {name_of(g)}", turned.given.image),
            figure("Its answer", "S(g x)", turned.first),
            figure("The answer, turned", "g S(x)", wanted),
            figure("Difference", f"{AMPLIFIED} times enlarged; mid-grey is none", error),
        ]
        text = self.difference(turned, base, g)
        return said(text) + framed(figures) + "<p class=rest>As it was given</p>" + self.page_of(base)

    def files_of(self, result: Result) -> list[str]:
        """The answers as files of all pixels, in the form of the model's targets."""
        folder, stem = Path(mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"])), Path(result.given.name).stem
        seen = None if result.given.mask is None else result.given.mask[0]
        answers = {"sample": (result.sample, self.form), "mean": (result.mean, self.form)}
        if result.spread is not None:
            answers["spread"] = (spread_picture(result.spread), Form("uint8", 0.0, 255.0, ".png"))
        paths = []
        for kind, (image, form) in answers.items():
            if image is not None:
                paths.append(folder / f"{stem}_{kind}{form.ending}")
                write_image(paths[-1], image, form, None, None if kind == "spread" else seen)
        return [str(path) for path in paths]


def turned_input(given: Input, g: Element) -> Input:
    """g x, with all that belongs to it."""
    image, mask, target = (
        None if x is None else np.ascontiguousarray(view(g, x)) for x in (given.image, given.mask, given.target)
    )
    assert image is not None
    return given._replace(image=image, mask=mask, target=target)


def name_of(g: Element) -> str:
    """An element in words."""
    flip, turns = g
    parts = ["mirrored left–right"] * flip + [f"turned by {90 * turns}° to the left"] * (turns > 0)
    return " and ".join(parts) or "as it was given"


def spread_picture(spread: np.ndarray) -> np.ndarray:
    """The mean of the channels as a grey picture, `[1, H, W]` in [-1, 1]."""
    return np.clip(spread.mean(0, keepdims=True) / SPREAD_WHITE, 0, 1) * 2 - 1


def picture(image: np.ndarray) -> np.ndarray:
    """uint8 `[H, W, 3]` of an image `[C, H, W]` in [-1, 1]."""
    return rgb(to_bytes(torch.from_numpy(np.ascontiguousarray(image))[None])[0])


def figure(title: str, text: str, image: np.ndarray) -> str:
    """A picture with its name and a line of text."""
    shown, stream = Image.fromarray(picture(image)), io.BytesIO()
    height, width = image.shape[1:]
    shown.thumbnail((SHOWN, SHOWN), Image.Resampling.BOX)
    shown.save(stream, "PNG")
    data = base64.b64encode(stream.getvalue()).decode()
    small = " class=small" if max(height, width) < 400 else ""
    return (
        f'<figure><img{small} src="data:image/png;base64,{data}" width={width} height={height} alt="{title}">'
        f"<figcaption><b>{title}</b>{html.escape(text)}</figcaption></figure>"
    )


def source_of(given: Input) -> str:
    return figure("Source", f"{given.name}, {given.image.shape[1]}×{given.image.shape[2]}", given.image)


def framed(figures: Sequence[str]) -> str:
    return f"<div class=figures>{''.join(figures)}</div>"


def said(text: str, note: str = "") -> str:
    return f"<p class=said>{text}</p>" + (f"<p class=said>Note: {html.escape(note)}</p>" if note else "")
