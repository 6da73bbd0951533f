"""Averaging over a group, the regulariser, and the equivariance error that is left."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..ranks.distributed import out_of_memory
from .groups import Element, Group, act, inverse

Denoiser = Callable[[Tensor, Tensor], Tensor]  # (x_t [B, C, H, W], t float64 scalar or [B]) -> estimate of x_0
Network = Callable[[Tensor, Tensor], Tensor]  # (c_in x_t, c_noise [B]) -> F; what it is conditioned on, it has


class Averaged:
    """D(x, t, x_T) = mean over g of g^-1 D(g x, t, g x_T): frame averaging of a denoiser (SPDM's +FA).

    `make(sources, labels)` gives the denoiser of a batch of sources. The whole orbit goes through it at once; where
    that is more than the memory holds, in parts that are halved until they fit, from `at_once` elements on (0: all). A
    call costs |G| evaluations.
    """

    def __init__(
        self, make: Callable[..., Denoiser], source: Tensor, label: Tensor | None, group: Group, at_once: int = 0
    ) -> None:
        self.make, self.source, self.label, self.group = make, source, label, group
        self._split(at_once or len(group))

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


def averaged(f: Callable[[Tensor], Tensor], group: Group) -> Callable[[Tensor], Tensor]:
    """x -> mean over g of g^-1 f(g x), which commutes with the group whatever f is."""

    def mean(x: Tensor) -> Tensor:
        return torch.stack([act(inverse(g), f(act(g, x))) for g in group.elements]).mean(0)

    return mean


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
