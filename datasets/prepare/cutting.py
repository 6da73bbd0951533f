"""Large pictures in patches, and back."""

import re
from collections.abc import Iterator, Mapping

import numpy as np

from ..images import Picture

LIGHT, DARK = 220 / 255, 20 / 255  # of white: glass is lighter, margins are darker
PLACE = re.compile(r"(.+)_y(\d+)_x(\d+)")


def starts(length: int, size: int) -> list[int]:
    """Where patches begin that cover a length: side by side, the last as far as it goes."""
    return [*range(0, length - size, size), length - size]


def places(shape: tuple[int, ...], size: int) -> Iterator[tuple[int, int]]:
    """(top, left) of patches that cover a picture, which is at least as large."""
    yield from ((top, left) for top in starts(shape[0], size) for left in starts(shape[1], size))


def name_of(name: str, place: tuple[int, int]) -> str:
    return f"{name}_y{place[0]:05d}_x{place[1]:05d}"


def cut(picture: Picture, place: tuple[int, int], size: int) -> Picture:
    rows, columns = (slice(start, start + size) for start in place)
    mask = None if picture.mask is None else picture.mask[rows, columns]
    return Picture(picture.pixels[rows, columns], None if mask is None or mask.all() else mask, picture.white)


def tissue(pixels: np.ndarray) -> float:
    """The share of pixels [H, W, C], unsigned, that are neither glass nor margin."""
    full = np.iinfo(pixels.dtype).max
    return float(((pixels.min(-1) < LIGHT * full) & (pixels.max(-1) > DARK * full)).mean())


def joined(patches: Mapping[tuple[int, int], np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """The picture [H, W, C] whose patches lie at (top, left); where they overlap their mean.

    Raises ValueError for a gap.
    """
    first = next(iter(patches.values()))
    total = np.zeros((*shape, first.shape[2]))
    count = np.zeros((*shape, 1))
    for (top, left), patch in patches.items():
        total[top : top + len(patch), left : left + patch.shape[1]] += patch
        count[top : top + len(patch), left : left + patch.shape[1]] += 1
    if not count.all():
        top, left = np.argwhere(count[..., 0] == 0)[0]
        raise ValueError(f"no patch covers row {top}, column {left} of {shape[0]}x{shape[1]} pixels")
    mean = total / count
    return mean.astype(first.dtype) if first.dtype.kind == "f" else np.rint(mean).astype(first.dtype)
