"""Time grids: decreasing float64 times `[points]` from `start` to the path's t_min; the tables `GRIDS` and `OWN`."""

from collections.abc import Callable

import torch
from torch import Tensor

from .paths import Path

INSIDE = 1e-4  # how far inside T a path starts that cannot start at T (DDBM's published code)
BOOT = 1e-3  # the length of the first step in DBIM's published code


def with_ends(times: Tensor, path: Path, start: float) -> Tensor:
    """The grid with its ends to the last bit; of one point, the start."""
    times[-1] = path.t_min
    times[0] = start
    return times


def karras(path: Path, start: float, points: int) -> Tensor:
    """Equally spaced in t^(1/7): dense near t_min (Karras et al. 2022, Eq. 5)."""
    first, last = start ** (1 / 7), path.t_min ** (1 / 7)
    return with_ends((first + (last - first) * torch.linspace(0, 1, points, dtype=torch.float64)) ** 7, path, start)


def uniform(path: Path, start: float, points: int) -> Tensor:
    """Equally spaced in t."""
    return torch.linspace(start, path.t_min, points, dtype=torch.float64)


def uniform_log_snr(path: Path, start: float, points: int) -> Tensor:
    """Equally spaced in λ = log(b/c). As λ is -∞ at T, a grid from T takes its second point as one from T - 1e-4."""
    first, last = (
        path.log_snr(torch.tensor(t, dtype=torch.float64)) for t in (min(start, path.T - INSIDE), path.t_min)
    )
    lam = first + (last - first) * torch.linspace(0, 1, points, dtype=torch.float64)
    return with_ends(path.time_of(lam), path, start)


def dbim(path: Path, start: float, points: int) -> Tensor:
    """Of DBIM's published code: a first step of 1e-3, then equally spaced in t; of two points, the ends."""
    second = start - min(BOOT, (start - path.t_min) / 2)
    rest = torch.linspace(second, path.t_min, max(points - 1, 1), dtype=torch.float64)
    return with_ends(torch.cat([rest.new_tensor([start]), rest])[:points], path, start)


GRIDS: dict[str, Callable[[Path, float, int], Tensor]] = {
    "karras": karras,
    "uniform": uniform,
    "log_snr": uniform_log_snr,
    "dbim": dbim,
}

# The grid of a sampler where none is asked for, by the kind of path, then by sampler (with " 1" of first order alone),
# "" for all others: that which is nearest to the truth with 5 to 20 evaluations (docs/results.md), but for the papers'
# own heun and euler_maruyama.
OWN: dict[str, dict[str, str]] = {
    "ve": {"": "karras"},
    "linear": {"": "log_snr", "heun": "uniform", "euler_maruyama": "uniform"},
    "i2sb": {"": "karras", "dbim": "log_snr", "dbim 1": "uniform", "dbmsolver": "log_snr", "ecsi": "uniform"},
    "": {"": "karras", "dbim": "uniform", "dbmsolver": "log_snr", "ecsi": "uniform"},
}


def own_grid(path: Path, sampler: str, first_order: bool = False) -> str:
    """The name of a sampler's grid on a path."""
    own = OWN[path.kind]
    return next(own[name] for name in (f"{sampler} 1" if first_order else sampler, sampler, "") if name in own)
