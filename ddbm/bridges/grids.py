"""Time grids: decreasing float64 times `[points]` from `start` to the schedule's t_min; the table `GRIDS`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .paths import Schedule

INSIDE = 1e-4  # how far inside T a path starts that cannot start at T (DDBM's published code)


def log_snr(schedule: Schedule, t: Tensor) -> Tensor:
    """λ = log(b/c) = ½ log(1/rho_t² - 1/rho_T²), which grows from -∞ at T as t falls."""
    end = schedule.rho2(torch.as_tensor(schedule.T, dtype=torch.float64))
    return torch.log(schedule.rho2_to_end(t) / (schedule.rho2(t) * end)) / 2


def time_of(schedule: Schedule, lam: Tensor) -> Tensor:
    """The time at which log(b/c) is `lam`."""
    end = schedule.rho2(torch.as_tensor(schedule.T, dtype=torch.float64))
    return schedule.inverse_rho2(1 / (torch.exp(2 * lam) + 1 / end))


def with_ends(times: Tensor, schedule: Schedule, start: float) -> Tensor:
    """The grid with its ends to the last bit; of one point, the start."""
    times[-1] = schedule.t_min
    times[0] = start
    return times


def karras(schedule: Schedule, start: float, points: int) -> Tensor:
    """Equally spaced in t^(1/7): dense near t_min (Karras et al. 2022, Eq. 5)."""
    first, last = start ** (1 / 7), schedule.t_min ** (1 / 7)
    return with_ends((first + (last - first) * torch.linspace(0, 1, points, dtype=torch.float64)) ** 7, schedule, start)


def uniform(schedule: Schedule, start: float, points: int) -> Tensor:
    """Equally spaced in t."""
    return torch.linspace(start, schedule.t_min, points, dtype=torch.float64)


def uniform_log_snr(schedule: Schedule, start: float, points: int) -> Tensor:
    """Equally spaced in λ = log(b/c). As λ is -∞ at T, a grid from T takes its second point as one from T - 1e-4."""
    first, last = (
        log_snr(schedule, torch.tensor(t, dtype=torch.float64))
        for t in (min(start, schedule.T - INSIDE), schedule.t_min)
    )
    lam = first + (last - first) * torch.linspace(0, 1, points, dtype=torch.float64)
    return with_ends(time_of(schedule, lam), schedule, start)


GRIDS: dict[str, Callable[[Schedule, float, int], Tensor]] = {
    "karras": karras,
    "uniform": uniform,
    "log_snr": uniform_log_snr,
}
