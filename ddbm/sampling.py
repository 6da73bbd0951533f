"""Samplers: plain functions from a denoiser, a bridge and a noise source to x_0; the table `SAMPLERS`.

Every sampler takes `(bridge, denoise, x_T, noise, *, nfe, ...)` with `denoise(x, t) -> D` and `noise(like) -> z`,
spends at most `nfe` calls of the denoiser, and names its own settings as keyword arguments.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from .bridge import Bridge, scale
from .symmetry import Denoiser

NoiseSource = Callable[[Tensor], Tensor]  # like [B, C, H, W] -> standard normal of that shape

START = 1e-4  # how far inside T a sampler starts that cannot start at T (DDBM's published code)


def karras_grid(start: float, end: float, points: int, rho: float = 7.0) -> Tensor:
    """Decreasing times from start to end, dense near the end (Karras et al. 2022, Eq. 5); float64 `[points]`."""
    ramp = torch.linspace(0, 1, points, dtype=torch.float64)
    return (start ** (1 / rho) + ramp * (end ** (1 / rho) - start ** (1 / rho))) ** rho


def uniform_grid(start: float, end: float, points: int) -> Tensor:
    """Decreasing, equally spaced times from start to end; float64 `[points]`."""
    return torch.linspace(start, end, points, dtype=torch.float64)


def heun_step(
    bridge: Bridge, denoise: Denoiser, x: Tensor, x_T: Tensor, t: Tensor, u: Tensor, guidance: float
) -> Tensor:
    """One step of Heun's method from t to u on the ODE; Euler's to u = 0, where the drift is not evaluated."""
    d = bridge.drift(x, t, x_T, denoise(x, t), guidance)
    y = x + scale(u - t, d)
    if u == 0:
        return y
    return x + scale((u - t) / 2, d + bridge.drift(y, u, x_T, denoise(y, u), guidance))


def heun(
    bridge: Bridge,
    denoise: Denoiser,
    x_T: Tensor,
    noise: NoiseSource,
    *,
    nfe: int,
    churn: float = 0.33,
    guidance: float = 1.0,
) -> Tensor:
    """DDBM's hybrid sampler (Zhou et al. 2023, Algorithm 1).

    Each step goes an Euler-Maruyama step on the SDE over the share `churn` of its length and a Heun step on the ODE
    over the rest, 3 evaluations; with churn 0 it is the ODE, 2 evaluations. The last step, to 0, takes one less.
    119 evaluations are the paper's 40 steps. Karras grid from T - 1e-4 to t_min, then 0.
    `guidance` is w in docs/maths.md.
    """
    if not 0 <= churn < 1:
        raise ValueError(f"--churn must lie in [0, 1), found {churn}")
    cost = 3 if churn else 2
    steps = (nfe + 1) // cost
    if steps < 1:
        raise ValueError(f"heun needs --nfe {cost - 1} or more, found {nfe}")
    grid = karras_grid(bridge.T - START, bridge.t_min, steps)
    x = x_T
    for t, u in zip(grid, torch.cat([grid[1:], grid.new_zeros(1)]), strict=True):
        if churn:
            v = t + churn * (u - t)
            drift = bridge.sde_drift(x, t, x_T, denoise(x, t), guidance)
            x = x + scale(v - t, drift) + scale(torch.sqrt((t - v) * bridge.diffusion2(t)), noise(x))
            t = v
        x = heun_step(bridge, denoise, x, x_T, t, u, guidance)
    return x


def dbim(bridge: Bridge, denoise: Denoiser, x_T: Tensor, noise: NoiseSource, *, nfe: int, eta: float = 0.0) -> Tensor:
    """First order diffusion bridge implicit model (Zheng et al. 2025, arXiv 2405.15885).

    One evaluation a step on a uniform grid from T to t_min. The first step draws the booting noise; after it eta = 0
    is deterministic and eta = 1 the Markovian bridge.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"--eta must lie in [0, 1], found {eta}")
    s = bridge.schedule
    grid = uniform_grid(bridge.T, bridge.t_min, nfe + 1)
    x = x_T
    for i, (t, u) in enumerate(itertools.pairwise(grid)):
        D = denoise(x, t)
        a, b, c = bridge.coefficients(u)
        mean = scale(a, x_T) + scale(b, D)
        if i == 0:
            x = mean + scale(c, noise(x))
            continue
        a_t, b_t, c_t = bridge.coefficients(t)
        variance = eta**2 * s.alpha(u) ** 2 * s.rho2(u) * (1 - s.rho2(u) / s.rho2(t))
        kept = torch.sqrt((c**2 - variance).clamp(min=0))
        x = mean + scale(kept / c_t, x - scale(a_t, x_T) - scale(b_t, D))
        if eta:
            x = x + scale(variance.sqrt(), noise(x))
    return x


SAMPLERS: dict[str, Callable[..., Tensor]] = {"heun": heun, "dbim": dbim}
