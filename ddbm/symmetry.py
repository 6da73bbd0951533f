"""Exact equivariance of a whole map: canonical frames, noise that turns with the image, and the error that is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .groups import Element, Group, act, inverse


def canonical_frame(x: Tensor, group: Group) -> Element:
    """The element c(x) of the group that turns the image `x` `[C, H, W]` in [-1, 1] to its canonical frame.

    It is the element whose turned image comes first in lexicographic order of its 8-bit grey levels, so it is exact,
    `c(g x) = c(x) g^-1`, and the same for an image and for its saved copy. Images that tie at 8 bits are compared at
    16 bits; an image with a symmetry of its own ties for good, and the first such element in the group's order is
    taken: its canonical image is the same, whichever is.
    """
    grey = (x.double().cpu().clamp(-1, 1) + 1) / 2

    def key(g: Element) -> tuple[bytes, bytes]:
        turned = act(g, grey)
        return (
            (turned * 255).round().to(torch.uint8).numpy().tobytes(),
            (turned * 65535).round().numpy().astype(">u2").tobytes(),
        )

    return min(group.elements, key=key)


def seed_of(*key: int) -> int:
    """A 63-bit seed from a tuple of non-negative integers, well mixed (NumPy's SeedSequence)."""
    return int(np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Noise:
    """Standard normal noise for a batch, one stream a sample, keyed by (seed, index of the sample).

    It is drawn on the CPU in the canonical frame of the sample's source and turned with it: a turned source gets the
    turned noise, and neither batch size, order nor device changes the noise of a sample.
    """

    def __init__(self, seed: int, index: Sequence[int], source: Tensor, group: Group) -> None:
        self.streams = [torch.Generator().manual_seed(seed_of(seed, i)) for i in index]
        self.frames = [inverse(canonical_frame(x, group)) for x in source] if len(group) > 1 else None

    def __call__(self, like: Tensor) -> Tensor:
        """The next noise, with the shape, type and device of `like` `[B, C, H, W]`."""
        draws = [torch.randn(like.shape[1:], generator=stream) for stream in self.streams]
        if self.frames is not None:
            draws = [act(g, z) for g, z in zip(self.frames, draws, strict=True)]
        return torch.stack(draws).to(like)


def equivariance_error(f: Callable[[Tensor], Tensor], x: Tensor, group: Group) -> dict[Element, Tensor]:
    """‖f(g x) - g f(x)‖ / ‖f(x)‖ of every sample, `[B]`, for every g but the identity; x: `[B, C, H, W]`."""
    y = f(x)
    size = y.flatten(1).norm(dim=1)
    return {g: (f(act(g, x)) - act(g, y)).flatten(1).norm(dim=1) / size for g in group.elements if g != (0, 0)}
