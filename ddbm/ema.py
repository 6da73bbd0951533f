"""Moving averages of a network's weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class EMA:
    """Averages `weights`, in place: w ← w + (1 - rate) (theta - w) after every `every`-th step.

    rate: number of the step, from 1 -> how much of the old average stays over `every` steps.
    """

    def __init__(self, weights: dict[str, Tensor], rate: Callable[[int], float], every: int = 1) -> None:
        self.weights, self.rate, self.every = weights, rate, every

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        if step % self.every == 0:
            theirs = [p.detach() for p in network.parameters()]
            torch._foreach_lerp_(list(self.weights.values()), theirs, 1 - self.rate(step))


def warmed_up(rate: float, every: int = 1) -> Callable[[int], float]:
    """A fixed rate, at the beginning at most step / (step + 9), so that the first weights are soon forgotten."""
    return lambda step: min(rate, step / (step + 9)) ** every
