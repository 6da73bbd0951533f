"""Sums of images that may be larger than the memory, not yet written.

Samplers add up states, estimates and noise with numbers as factors. `Sum` stands in the place of their tensors, so that
what they compute is written once, strip by strip, when the denoiser asks for it.
"""

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
    which its noise lies; mask: bool `[B, 1, H, W]`, outside of which there is none. Noise does not depend on the
    image's size, on other images or on how it is cut.
    """

    def __init__(self, keys: Sequence[tuple[int, ...]], frames: Sequence[Element], mask: np.ndarray | None) -> None:
        self.keys, self.frames, self.mask = keys, frames, mask

    def add(self, out: np.ndarray, factor: float) -> None:
        """out += factor · noise."""
        for i, (key, frame) in enumerate(zip(self.keys, self.frames, strict=True)):
            image = view(frame, out[i])
            seen = None if self.mask is None else view(frame, self.mask[i])
            channels, height, width = image.shape
            for top in range(0, height, BLOCK):
                for left in range(0, width, BLOCK):
                    generator = torch.Generator().manual_seed(seed_of(*key, top // BLOCK, left // BLOCK))
                    noise = torch.randn(channels, BLOCK, BLOCK, generator=generator).numpy() * np.float32(factor)
                    where = (slice(None), slice(top, top + BLOCK), slice(left, left + BLOCK))
                    part = image[where]
                    noise = noise[:, : part.shape[1], : part.shape[2]]
                    part += noise if seen is None else noise * seen[where]


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
