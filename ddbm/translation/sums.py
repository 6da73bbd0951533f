"""Sums of images that may be larger than the memory, not yet written.

Samplers add up states, estimates and noise with numbers as factors. `Sum` stands in the place of their tensors, so that
what they compute is written once, strip by strip, when the denoiser asks for it.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..files.canvas import canvas
from ..symmetry.frames import seed_of
from ..symmetry.groups import Element, view

STRIP = 1 << 22  # values that are worked on at once
BLOCK = 64  # pixels a side whose noise is drawn at once


def strips(shape: Sequence[int]) -> list[slice]:
    """Rows of `[B, C, H, W]` that are worked on together."""
    step = max(1, STRIP // max(1, math.prod(shape) // shape[-2]))
    return [slice(top, top + step) for top in range(0, shape[-2], step)]


class Field:
    """Standard normal noise for a batch of images `[B, C, H, W]`, by position.

    keys: seed, draw and whatever else decides the noise of an image; frames: the element that turns it to the frame in
    which its noise lies; mask: bool `[B, 1, H, W]`, outside of which there is none; margins: pixels added above and
    below, left and right of the image, from whose own corner positions count. Noise does not depend on the image's
    size, on other images or on how it is cut.
    """

    def __init__(
        self, keys: Sequence[tuple[int, ...]], frames: Sequence[Element], mask: np.ndarray | None,
        margins: Sequence[int] = (0, 0),
    ) -> None:  # fmt: skip
        self.keys, self.frames, self.mask, self.margins = keys, frames, mask, margins

    def add(self, out: np.ndarray, factor: float) -> None:
        """out += factor · noise."""
        for i, (key, frame) in enumerate(zip(self.keys, self.frames, strict=True)):
            image = view(frame, out[i])
            seen = None if self.mask is None else view(frame, self.mask[i])
            margins = self.margins[::-1] if frame[1] % 2 else self.margins  # a quarter turn swaps them
            rows, columns = (_blocks(n, margin) for n, margin in zip(image.shape[1:], margins, strict=True))
            for (row, down, inner), (column, across, along) in itertools.product(rows, columns):
                generator = torch.Generator().manual_seed(seed_of(*key, row, column))
                noise = torch.randn(len(image), BLOCK, BLOCK, generator=generator).numpy() * np.float32(factor)
                noise = noise[:, inner, along]
                image[:, down, across] += noise if seen is None else noise * seen[:, down, across]


def _blocks(length: int, margin: int) -> list[tuple[int, slice, slice]]:
    """The blocks along an axis: number, the pixels that it fills, and its own that fill them."""
    found = []
    for number in range(-margin // BLOCK, -(-(length - margin) // BLOCK)):
        first = number * BLOCK + margin
        filled = slice(max(first, 0), min(first + BLOCK, length))
        found.append((number % 2**32, filled, slice(filled.start - first, filled.stop - first)))
    return found


class Sum:
    """factor · array + ... of canvases and noise fields. `+`, `-` and `*` by numbers are all that samplers do."""

    dtype = torch.float64  # in which `scale` hands over a factor

    def __init__(self, terms: Sequence[tuple[float, "np.ndarray | Field"]]) -> None:
        self.terms = list(terms)

    def __mul__(self, factor: float | Tensor) -> "Sum":
        return Sum([(float(factor) * own, term) for own, term in self.terms])

    def __add__(self, other: "Sum") -> "Sum":
        joined: dict[int, tuple[float, np.ndarray | Field]] = {}
        for factor, term in (*self.terms, *other.terms):
            joined[id(term)] = (factor + joined.get(id(term), (0.0, term))[0], term)
        return Sum([*joined.values()])

    def __sub__(self, other: "Sum") -> "Sum":
        return self + other * -1

    def settled(self, shape: Sequence[int], folder: Path | None) -> np.ndarray:
        """The values `[B, C, H, W]`, in an array that this sum is from now on."""
        if len(self.terms) == 1 and self.terms[0][0] == 1 and isinstance(self.terms[0][1], np.ndarray):
            return self.terms[0][1]
        out = canvas(shape, folder)
        arrays = [(np.float32(factor), term) for factor, term in self.terms if isinstance(term, np.ndarray)]
        for rows in strips(shape):
            for factor, array in arrays:
                out[..., rows, :] += factor * array[..., rows, :]
        for factor, term in self.terms:
            if isinstance(term, Field):
                term.add(out, factor)
        self.terms = [(1.0, out)]
        return out
