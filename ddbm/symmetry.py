"""Exact equivariance of a whole map: canonical frames, noise that turns with the image, averaging, a regulariser, and
the error that is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .groups import Element, Group, act, inverse

Denoiser = Callable[[Tensor, Tensor], Tensor]  # (x_t [B, C, H, W], t float64 scalar or [B]) -> estimate of x_0
NoiseSource = Callable[[Tensor], Tensor]  # like [B, C, H, W] -> standard normal of that shape
Network = Callable[[Tensor, Tensor], Tensor]  # (c_in x_t, c_noise [B]) -> F; what it is conditioned on, it has


def canonical_frame(x: Tensor, group: Group) -> Element:
    """The element c(x) of the group that turns the image `x` `[C, H, W]` in [-1, 1] to its canonical frame.

    It is the element whose turned image comes first in lexicographic order of its 8-bit grey levels, so it is exact,
    `c(g x) = c(x) g^-1`, and, unless they tie there, the same for an image and for its copy saved with 8 bits. Those
    that tie are compared at 16 bits, then by their exact values. An image with a symmetry of its own ties for good, and
    the first such element in the group's order is taken: its canonical image is the same, whichever is.
    """
    exact = x.double().cpu()
    grey = (x.float().cpu().clamp(-1, 1) + 1) * 127.5  # as images are saved

    def key(g: Element) -> tuple[bytes, bytes, bytes]:
        return (
            act(g, grey).round().to(torch.uint8).numpy().tobytes(),
            (act(g, grey) * 257).round().numpy().astype(">u2").tobytes(),
            act(g, exact + 2).numpy().astype(">f8").tobytes(),  # positive numbers are ordered as their bytes are
        )

    return min(group.elements, key=key)


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


class Averaged:
    """D(x, t, x_T) = mean over g of g^-1 D(g x, t, g x_T): frame averaging of a denoiser (SPDM's +FA).

    `make(sources, labels)` gives the denoiser of a batch of sources. The whole orbit goes through it at once; where
    that is more than the memory holds, in parts that are halved until they fit. A call costs |G| evaluations.
    """

    def __init__(self, make: Callable[..., Denoiser], source: Tensor, label: Tensor | None, group: Group) -> None:
        self.make, self.source, self.label, self.group = make, source, label, group
        self._split(len(group))

    def _split(self, at_once: int) -> None:
        """Prepares the denoisers of the orbit's parts, `at_once` elements each."""
        self.at_once, elements = at_once, self.group.elements
        self.parts = []
        for i in range(0, len(elements), at_once):
            part = elements[i : i + at_once]
            label = None if self.label is None else self.label.repeat(len(part))
            self.parts.append((part, self.make(torch.cat([act(g, self.source) for g in part]), label)))

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        while True:
            try:
                return self._mean(x, t)
            except RuntimeError as error:
                if self.at_once == 1 or not out_of_memory(error):
                    raise
            self._split(-(-self.at_once // 2))

    def _mean(self, x: Tensor, t: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for part, denoise in self.parts:
            times = t.repeat(len(part)) if t.ndim else t
            outputs = denoise(torch.cat([act(g, x) for g in part]), times).chunk(len(part))
            for g, output in zip(part, outputs, strict=True):
                total += act(inverse(g), output)
        return total / len(self.group)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says so; a CPU's allocator has no type of its own for it."""
    words = ("DefaultCPUAllocator", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def disagreement(output: Tensor, teacher: Network, x: Tensor, c_noise: Tensor, g: Element) -> Tensor:
    """(F(x) - g^-1 F_teacher(g x))², pixel by pixel: the paper's regulariser (+Reg); no gradient for the teacher.

    The teacher is conditioned on the turned source. Shapes as `output`, `[B, C, H, W]`.
    """
    with torch.no_grad():
        turned = act(inverse(g), teacher(act(g, x), c_noise))
    return (output - turned).square()


def equivariance_error(f: Callable[[Tensor], Tensor], x: Tensor, group: Group) -> dict[Element, Tensor]:
    """‖f(g x) - g f(x)‖ / ‖f(x)‖ of every sample, `[B]`, for every g but the identity; x: `[B, C, H, W]`."""
    y = f(x)
    size = y.flatten(1).norm(dim=1).clamp(min=1e-30)  # where S(x) is 0, so is the error of an equivariant S
    return {g: (f(act(g, x)) - act(g, y)).flatten(1).norm(dim=1) / size for g in group.elements if g != (0, 0)}
