"""Canonical frames, and noise that turns with the image."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .groups import Element, Group, act, view

NoiseSource = Callable[[Tensor], Tensor]  # like [B, C, H, W] -> standard normal of that shape
STRIP = 1 << 16  # pixels that are compared at once


def canonical_frame(x: Tensor, group: Group, mask: Tensor | None = None) -> Element:
    """The element c(x) of the group that turns the image `x` `[C, H, W]` in [-1, 1] to its canonical frame.

    It is the element whose turned image comes first in lexicographic order of its 8-bit grey levels, so it is exact,
    `c(g x) = c(x) g^-1`, and, unless they tie there, the same for an image and for its copy saved with 8 bits. Those
    that tie are compared at 16 bits, then by their exact values, then by the mask `[1, H, W]`, which turns too. What
    has a symmetry of its own ties for good, and the first such element in the group's order is taken: its canonical
    image is the same, whichever is. Where quarter turns make another shape of an image, the lower one comes first.
    """
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    image = x.to("cpu", kind).numpy()
    seen: list[tuple[np.ndarray, Callable[[np.ndarray], bytes]]] = []
    if mask is not None:
        seen = [(mask.cpu().numpy(), lambda rows: rows.tobytes())]
    best = list(group.elements)
    lowest = min(view(g, image).shape for g in best)
    best = [g for g in best if view(g, image).shape == lowest]
    for plane, key in [(image, _grey8), (image, _grey16), (image, _exact), *seen]:
        turned = {g: view(g, plane) for g in best}
        _, rows, columns = lowest
        step = max(1, STRIP // columns)
        for channel in range(len(plane)):
            for top in range(0, rows, step):
                if len(best) == 1:
                    return best[0]
                keys = {g: key(turned[g][channel, top : top + step]) for g in best}
                first = min(keys.values())
                best = [g for g in best if keys[g] == first]
    return best[0]


def _grey8(x: np.ndarray) -> bytes:
    """As images are saved."""
    return ((x.astype(np.float32).clip(-1, 1) + 1) * np.float32(127.5)).round().astype(np.uint8).tobytes()


def _grey16(x: np.ndarray) -> bytes:
    grey = (x.astype(np.float32).clip(-1, 1) + 1) * np.float32(127.5)
    return (grey * 257).round().astype(">u2").tobytes()


def _exact(x: np.ndarray) -> bytes:
    return (x.astype(np.float64) + 2).astype(">f8").tobytes()  # positive numbers are ordered as their bytes are


def seed_of(*key: int) -> int:
    """A 63-bit seed from a tuple of non-negative integers, well mixed (NumPy's SeedSequence)."""
    return int(np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Noise:
    """Standard normal noise for a batch, one stream a sample, keyed by (seed, index of the sample).

    It is drawn on the CPU and turned by the sample's element of `turns`. With the inverse of its source's canonical
    frame, a turned source gets the turned noise; neither batch size, order nor device changes the noise of a sample.
    """

    def __init__(self, seed: int, index: Sequence[int], turns: Sequence[Element]) -> None:
        self.streams = [torch.Generator().manual_seed(seed_of(seed, i)) for i in index]
        self.turns = turns

    def __call__(self, like: Tensor) -> Tensor:
        """The next noise, with the shape, type and device of `like` `[B, C, H, W]`."""
        draws = [torch.randn(like.shape[1:], generator=stream) for stream in self.streams]
        noise = turn_each(self.turns, torch.stack(draws))
        if like.is_cuda:  # from pinned memory the copy waits for nothing
            noise = noise.pin_memory()
        return noise.to(device=like.device, dtype=like.dtype, non_blocking=True)


def turn_each(frames: Sequence[Element], x: Tensor) -> Tensor:
    """Every image of a batch turned by its own element."""
    return torch.stack([act(g, image) for g, image in zip(frames, x, strict=True)])
