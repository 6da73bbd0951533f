"""Exponential moving average of a network's weights."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import nn


class EMA:
    """Holds the averaged copy of a network, in evaluation mode."""

    def __init__(self, network: nn.Module, rate: float) -> None:
        self.rate = rate
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Moves towards `network` after step number `step` (from 0); warm-up: rate at most (1 + step) / (10 + step)."""
        rate = min(self.rate, (1 + step) / (10 + step))
        mine = cast(list[torch.Tensor], list(self.network.parameters()))
        theirs = cast(list[torch.Tensor], list(network.parameters()))
        torch._foreach_lerp_(mine, theirs, 1 - rate)
