"""Whole pictures that scripts/translate.py made with a run, beside their truth where it is known."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from datasets.images import EXTENSIONS
from datasets.large import open_image
from datasets.single import Source, read_source
from ddbm.config import DataConfig
from ddbm.files import npz
from ddbm.files.storage import read_json
from evaluations.images import to_bytes

from ..pictures import rgb
from ..translate import RECORD
from .charts import number
from .runs import Run

FOLDER = "translated"  # of a run
MOST = 2  # pictures
SIDE = 1024  # pixels of one, as it is shown
PIXELS = 1 << 25  # of one that is read


class Whole(NamedTuple):
    """A translated picture: by what they are its images, uint8 `[H, W, 3]`, small enough for a page, and captions."""

    name: str
    images: dict[str, np.ndarray]
    captions: dict[str, str]
    text: str


def whole_pictures(run: Run) -> tuple[list[Whole], list[str]]:
    """The first that lie in the run's folder; and what could not be shown of them, and why."""
    path = run.path / FOLDER / RECORD
    if not path.exists():
        return [], []
    try:
        record = read_json(path)
        how, files = record["depends_on"], {str(name): dict(made) for name, made in record["files"].items()}
        text = f"translated by {how['checkpoint']}: {how['sampler']}, {how['nfe']} evaluations at most"
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        return [], [f"{path}: no translated pictures are shown: {error!r}"]
    found, notes = list[Whole](), list[str]()
    for name, made in list(files.items())[:MOST]:
        one, lost = whole(run, name, made, text)
        found += [one] if {"sample", "mean"} & one.images.keys() else []
        notes += lost
    if len(files) > MOST:
        notes.append(f"{path.parent} holds {len(files)} translated pictures, of which {MOST} are shown")
    return found, notes


def whole(run: Run, name: str, made: dict[str, Any], text: str) -> tuple[Whole, list[str]]:
    """One of them, from what `translation.json` says of its files; and what could not be read."""
    data, notes = run.config.data, list[str]()
    as_targets = replace(data, source_white=data.target_white, source_black=data.target_black)
    channels = run.shown.samples.shape[-1]
    inputs = npz.header(run.shown.folder / run.shown.record["reference"], "source")[0][-1]
    given = Path(str(made.get("input", "")))
    there = [given.with_name(f"target{end}") for end in EXTENSIONS] if given.stem == "source" else []
    own = {kind: run.path / FOLDER / str(file) for kind, file in made.items()}
    places: dict[str, tuple[Path | None, DataConfig, int]] = {
        "source": (given, data, inputs),
        "sample": (own.get("sample"), as_targets, channels),
        "target": (next((path for path in there if path.is_file()), None), as_targets, channels),
        "mean": (own.get("mean"), as_targets, channels),
        "spread": (own.get("spread"), DataConfig(), 1),
    }
    read: dict[str, Source] = {}
    for kind, (path, options, count) in places.items():
        try:
            if path:
                read[kind] = _read(path, options, count)
        except (ValueError, OSError) as error:
            notes.append(f"{name}: the {kind} is not shown: {error}")
    captions = {kind: kind for kind in read}
    for kind in ("sample", "mean"):
        if kind in read and "target" in read and read[kind].image.shape == read["target"].image.shape:
            captions[kind] = f"{kind}, PSNR {number(psnr(read[kind], read['target']))} dB"
    sides = {kind: _shown(source.image) for kind, source in read.items()}
    size = next((f"{each.image.shape[1]} × {each.image.shape[2]} pixels" for each in read.values()), "")
    return Whole(name, sides, captions, f"{size}, {text}"), notes


def psnr(a: Source, b: Source) -> float:
    """Of two pictures in [-1, 1], where both are defined."""
    masks = [each.mask for each in (a, b) if each.mask is not None]
    inside = np.broadcast_to(np.logical_and.reduce(masks), a.image.shape)
    mse = float((((a.image - b.image) / 2) ** 2).mean(where=inside))
    return -10 * np.log10(mse) if mse else np.inf


def _read(path: Path, options: DataConfig, channels: int) -> Source:
    opened = open_image(path)
    if opened.height * opened.width > PIXELS:
        raise ValueError(f"{path}: {opened.height} x {opened.width} pixels are too many for a page")
    return read_source(path, options, channels, (1.0, 1.0))


def _shown(image: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(rgb(to_bytes(torch.from_numpy(image)[None]))[0])
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture)
