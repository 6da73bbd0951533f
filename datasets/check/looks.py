"""One look at a pair: everything that `findings` asks for, small enough to be kept of every pair."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ddbm.config import DataConfig

from ..images import Picture, scaled
from ..layouts import Pair
from ..masks import read_mask
from ..paired import Side, read_pair, sides_of
from .measures import ORIENTED, SMALL, grey, hash_of, likenesses, orientation, shift_between, shrunk

BINS = 64  # of a histogram
LABELS = 8  # values that an image of labels has at most


@dataclass
class Glance:
    """What is kept of one image."""

    path: Path
    shape: tuple[int, ...]  # H, W, C
    kind: str
    low: float
    high: float
    histogram: np.ndarray  # int64 [BINS], from black to white, as training has them
    digest: str  # of the pixels; "" where all are equal
    labels: bool  # at most LABELS values: such images may be alike, while what they belong to is not
    small: np.ndarray  # float16 [SMALL, SMALL], grey
    hash: np.ndarray  # int8 [64]


@dataclass
class Look:
    """What is kept of a pair; problem: why the rest is missing."""

    name: str
    split: str
    problem: str = ""
    sides: list[Glance] = field(default_factory=list)  # source, target
    seen: float = 1.0  # share inside its mask
    shift: tuple[int, int] = (0, 0)  # by which the target lies off, in pixels
    likeness: np.ndarray | None = None  # float64 [8], by the element that turns the source; square images
    orientation: np.ndarray | None = None  # float64 [10], of the target; square images


def look(pair: Pair, split: str, layout: str, options: DataConfig) -> Look:
    """Reads a pair and measures it; what cannot be read is the look's problem."""
    found = Look(pair.name, split)
    try:
        read = read_pair(pair, layout, sides_of(options), options.source_half)
        size = read[0].pixels.shape[:2]
        masks = [picture.mask for picture in read if picture.mask is not None]
        masks += [read_mask(pair.mask, (size[0], size[1]))] if pair.mask else []
        for side, path, picture in zip(sides_of(options), (pair.source, pair.target), read, strict=True):
            if picture.pixels.dtype.kind != "u" or side.black:  # others have a meaning in any case
                scaled(picture.pixels, side.white or picture.white, path, side.black)
    except ValueError as error:
        found.problem = str(error)
        return found
    mask = np.logical_and.reduce(masks) if masks else None
    images = [grey(picture.pixels, mask) for picture in read]
    found.seen = 1.0 if mask is None else float(mask.mean())
    found.sides = [
        _glance(*each) for each in zip(sides_of(options), (pair.source, pair.target), read, images, strict=True)
    ]
    if all(image.any() for image in images):
        found.shift = shift_between(*images)
        if size[0] == size[1]:
            found.likeness = likenesses(*(shrunk(image, min(ORIENTED, size[0])) for image in images))
    if size[0] == size[1]:
        found.orientation = orientation(images[1])
    return found


def _glance(side: Side, path: Path, picture: Picture, image: np.ndarray) -> Glance:
    pixels, small = picture.pixels, shrunk(image, SMALL)
    top = side.white or picture.white or (float(np.iinfo(pixels.dtype).max) if pixels.dtype.kind == "u" else 1.0)
    counts = np.histogram(pixels.clip(side.black, top), BINS, (side.black, top))[0]
    labels = pixels.dtype in (np.uint8, np.uint16) and np.count_nonzero(np.bincount(pixels.ravel())) <= LABELS
    digest = hashlib.sha256(pixels.tobytes()).hexdigest() if image.any() else ""
    about = (pixels.dtype.name, float(pixels.min()), float(pixels.max()), counts, digest, bool(labels))
    return Glance(path, pixels.shape, *about, small.astype(np.float16), hash_of(small))


def highest(looks: Sequence[Look], side: int, options: DataConfig) -> Iterator[np.ndarray]:
    """The highest value of every image of a side, as a picture; none where levels are given."""
    name = ("source", "target")[side]
    if not (getattr(options, f"{name}_white") or getattr(options, f"{name}_black")):
        yield from (np.array([each.sides[side].high]).astype(each.sides[side].kind) for each in looks)
