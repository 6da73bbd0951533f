"""A sampler as a table of numbers, for code that has neither this package nor PyTorch.

No sampler of fixed steps looks at a pixel before it decides what to do: every state on the way to x_0 is a sum of x_T,
the noises and the estimates D made so far, pixel by pixel, with weights that the times alone decide. The weights are
read off by sampling once with unit vectors in their place, in float64.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .samplers import SAMPLERS, Plan


class Program(NamedTuple):
    """The evaluations of a sampler in their order, and what follows from them.

    draws: noises it draws; times[k]: t of evaluation k; states[k]: the weights of x_T, of all noises and of the
    estimates 0 .. k - 1 in the state that it is made of; x_0: those of x_T, noises and all estimates in the sample.
    """

    draws: int
    times: list[float]
    states: list[list[float]]
    x_0: list[float]


def program(plan: Plan) -> Program:
    """The table of a plan. Raises ValueError for a sampler whose steps depend on the image."""
    if SAMPLERS[plan.sampler].adaptive:
        fixed = ", ".join(name for name, sampler in SAMPLERS.items() if not sampler.adaptive)
        raise ValueError(f"the steps of sampler {plan.sampler} depend on the image, no table holds them: try {fixed}")
    drawn: list[Tensor] = []

    def counted(like: Tensor) -> Tensor:
        drawn.append(like)
        return like

    _, spent = plan.run(lambda x, t: torch.zeros_like(x), torch.zeros(1, 1, 1, 1), counted)
    draws, size = len(drawn), 1 + len(drawn) + spent // plan.price
    x_T, *units = torch.eye(size, dtype=torch.float64).reshape(size, 1, size, 1, 1)
    noises, estimates = iter(units[:draws]), iter(units[draws:])
    times: list[float] = []
    states: list[list[float]] = []

    def evaluated(x: Tensor, t: Tensor) -> Tensor:
        states.append(x.flatten()[: 1 + draws + len(times)].tolist())
        times.append(t.item())
        return next(estimates)

    x_0, _ = plan.run(evaluated, x_T, lambda like: next(noises))
    return Program(draws, times, states, x_0.flatten().tolist())
