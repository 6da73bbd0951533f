"""Samplers: plain functions from a denoiser, its noise and a grid of times to x_0; the table `SAMPLERS`.

Every sampler takes `(bridge, denoise, x_T, noise, times, ...)` with `denoise(x, t) -> D`, `noise(like) -> z` and
decreasing times, float64 `[points]`, and names its own settings as keyword arguments. Its line in the table says
how many points spend a budget of evaluations. docs/maths.md derives the formulas.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..settings import choose
from ..symmetry.averaging import Denoiser
from ..symmetry.frames import NoiseSource
from .bridge import Bridge, scale
from .exponential import boot, exponential_step, first_moment, multistep
from .grids import GRIDS, INSIDE, log_snr
from .ode import integrate
from .paths import VE, Schedule


def euler_step(
    bridge: Bridge, denoise: Denoiser, x: Tensor, x_T: Tensor, t: Tensor, u: Tensor, noise: NoiseSource,
    churn: float = 1.0, guidance: float = 1.0,
) -> Tensor:  # fmt: skip
    """An Euler-Maruyama step from t to u < t on the SDE whose diffusion is sqrt(churn) g; 0: Euler's on the ODE."""
    y = x + scale(u - t, bridge.drift(x, t, x_T, denoise(x, t), guidance, churn))
    return y + scale(torch.sqrt((t - u) * churn * bridge.diffusion2(t)), noise(x)) if churn else y


def heun_step(
    bridge: Bridge, denoise: Denoiser, x: Tensor, x_T: Tensor, t: Tensor, u: Tensor, guidance: float = 1.0
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
    times: Tensor,
    *,
    churn: float = 0.33,
    guidance: float = 1.0,
) -> Tensor:
    """DDBM's hybrid sampler (Zhou et al. 2023, Algorithm 1).

    Each step goes an Euler-Maruyama step on the SDE over the share `churn` of its length and a Heun step on the ODE
    over the rest, 3 evaluations; with churn 0 it is the ODE, 2 evaluations. The last step, from the last time to 0,
    takes one less. 119 evaluations are the paper's 40 steps. `guidance` is w in docs/maths.md.
    """
    check_range("churn", churn, below=1)
    check_finite("guidance", guidance)
    x = x_T
    for t, u in itertools.pairwise(torch.cat([times, times.new_zeros(1)])):
        if churn:
            v = t + churn * (u - t)
            x, t = euler_step(bridge, denoise, x, x_T, t, v, noise, guidance=guidance), v
        x = heun_step(bridge, denoise, x, x_T, t, u, guidance)
    return x


def dbim(
    bridge: Bridge,
    denoise: Denoiser,
    x_T: Tensor,
    noise: NoiseSource,
    times: Tensor,
    *,
    order: int = 0,
    eta: float = 0.0,
) -> Tensor:
    """Diffusion bridge implicit models (Zheng et al. 2025, arXiv 2405.15885), one evaluation a step from T to t_min.

    The first step draws the booting noise. Order 1: η = 0 is deterministic after it, η = 1 the Markovian bridge. Orders
    2 and 3, at η = 0: D is extrapolated in λ from the last evaluations; second and last step have order 1. Order 0 is
    2, or 1 where η is not 0.
    """
    check_order(order, 3)
    check_range("eta", eta)
    order = order or (1 if eta else 2)
    if eta and order > 1:
        raise ValueError(f"--eta {eta} needs --order 1: orders 2 and 3 solve the deterministic flow")
    s = bridge.schedule
    x, _ = boot(bridge, denoise, x_T, noise, times[1])
    history: list[tuple[Tensor, Tensor]] = []
    for i, (t, u) in enumerate(itertools.pairwise(times[1:])):
        D = denoise(x, t)
        history = [(log_snr(s, t), D), *history][: 1 if i == len(times) - 3 else order]
        if not eta:
            x = exponential_step(bridge, x, x_T, t, u, multistep(history, log_snr(s, u)))
            continue
        (a_t, b_t, c_t), (a, b, c) = bridge.coefficients(t), bridge.coefficients(u)
        variance = eta**2 * s.alpha(u) ** 2 * s.rho2(u) * (1 - s.rho2(u) / s.rho2(t))
        kept = torch.sqrt((c**2 - variance).clamp(min=0)) / c_t
        x = scale(kept, x) + scale(a - kept * a_t, x_T) + scale(b - kept * b_t, D)
        x = x + scale(variance.sqrt(), noise(x))
    return x


def dbmsolver(
    bridge: Bridge, denoise: Denoiser, x_T: Tensor, noise: NoiseSource, times: Tensor, *, order: int = 0
) -> Tensor:
    """DBMSolver (Venugopal et al. 2026, arXiv 2605.05889), an exponential integrator; formulas in docs/maths.md.

    The first step, from T, solves the SDE for the estimate at T; those after it the ODE. Order 2: D is linear in
    log(1/rho) through its values at the beginning and the middle of a step, 2 evaluations, but for the last step. Order
    1 is `dbim`; 0 is 2.
    """
    check_order(order, 2)
    s = bridge.schedule
    x, _ = boot(bridge, denoise, x_T, noise, times[1])
    for i, (t, u) in enumerate(itertools.pairwise(times[1:])):
        D = denoise(x, t)
        phi = -torch.expm1(log_snr(s, t) - log_snr(s, u))
        terms: list[tuple[Tensor | float, Tensor]] = [(phi, D)]
        if order != 1 and i < len(times) - 3:
            m = s.inverse_rho2(torch.sqrt(s.rho2(t) * s.rho2(u)))  # the middle in log(1/rho)
            middle = exponential_step(bridge, x, x_T, t, m, [(-torch.expm1(log_snr(s, t) - log_snr(s, m)), D)])
            slope = scale(4 / torch.log(s.rho2(t) / s.rho2(u)), denoise(middle, m) - D)  # per unit of log(1/rho)
            terms.append((first_moment(bridge, t, u), slope))
        x = exponential_step(bridge, x, x_T, t, u, terms)
    return x


def ecsi(
    bridge: Bridge, denoise: Denoiser, x_T: Tensor, noise: NoiseSource, times: Tensor, *, churn: float = 0.33
) -> Tensor:
    """Endpoint-conditioned stochastic interpolants (Zhang et al. 2024, arXiv 2410.21553), one evaluation a step.

    x ← x + (b' D + a' x_T + (c' + ε/c) ẑ) dt + sqrt(2 ε |dt|) z with ε = churn (c c' - b'/b c²), which is churn g²/2;
    the last two steps, of which the last goes to 0, have ε = 0.
    """
    check_range("churn", churn)
    x, steps = x_T, list(itertools.pairwise(torch.cat([times, times.new_zeros(1)])))
    for i, (t, u) in enumerate(steps):
        x = euler_step(bridge, denoise, x, x_T, t, u, noise, churn if i < len(steps) - 2 else 0.0)
    return x


def euler_maruyama(
    bridge: Bridge, denoise: Denoiser, x_T: Tensor, noise: NoiseSource, times: Tensor, *, guidance: float = 1.0
) -> Tensor:
    """Euler-Maruyama on the reverse SDE (Zhou et al. 2023, Theorem 1), one evaluation a step; the last on the ODE."""
    check_finite("guidance", guidance)
    x = x_T
    for t, u in itertools.pairwise(torch.cat([times, times.new_zeros(1)])):
        x = euler_step(bridge, denoise, x, x_T, t, u, noise, float(u > 0), guidance)
    return x


def ode(
    bridge: Bridge, denoise: Denoiser, x_T: Tensor, noise: NoiseSource, times: Tensor, *, rtol: float = 1e-4
) -> Tensor:
    """The flow of `dbim` with adaptive steps, for reference solutions (Dormand & Prince 1980; Zheng et al. 2025).

    Of the grid only the ends count. Every image has its own steps, so it depends on no other; their error is `rtol` of
    1 + |x|. How many evaluations that takes is found on the way; a budget too small is refused then.
    """
    check_finite("rtol", rtol)
    if rtol <= 0:
        raise ValueError(f"--rtol must be above 0, found {rtol}")
    x, _ = boot(bridge, denoise, x_T, noise, times[0])
    return integrate(bridge, denoise, x, x_T, times[0], times[-1], rtol)


def check_range(name: str, value: float, below: float = math.inf) -> None:
    """Raises ValueError unless value lies in [0, 1], or [0, below)."""
    if not isinstance(value, (int, float)) or not 0 <= value <= 1 or value >= below:
        raise ValueError(f"--{name} must lie in [0, 1{')' if below == 1 else ']'}, found {value!r}")


def check_finite(name: str, value: float) -> None:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"--{name} must be a finite number, found {value!r}")


def check_order(order: int, highest: int) -> None:
    if type(order) is not int or order not in range(highest + 1):
        raise ValueError(f"--order must be {' or '.join(map(str, range(1, highest + 1)))}, found {order!r}")


def heun_points(nfe: int, churn: float = 0.33, **_: float) -> int:
    check_range("churn", churn, below=1)
    cost = 3 if churn else 2
    return (nfe + 1) // cost


def dbmsolver_points(nfe: int, order: int = 0) -> int:
    """One evaluation from T, one in the last step, `order` in those between; an odd one out is not spent."""
    check_order(order, 2)
    return 1 + (nfe if order == 1 else 2 + (nfe - 2) // 2 if nfe > 1 else 1)


@dataclass(frozen=True)
class Sampler:
    """A sampler, the grids it takes by default, of VE and of VP, and how it spends a budget.

    points(nfe, **settings): times in its grid; start: how far inside T that begins; least: the smallest budget;
    adaptive: the evaluations it takes are known only afterwards.
    """

    run: Callable[..., Tensor]
    grids: tuple[str, str]
    points: Callable[..., int]
    start: float = 0.0
    least: int = 1
    adaptive: bool = False

    def grid(self, schedule: Schedule) -> str:
        """The name of its own grid, the paper's, but for `dbim` on VE, whose times span several powers of ten."""
        return self.grids[not isinstance(schedule, VE)]

    @property
    def settings(self) -> list[str]:
        """Names of its keyword settings."""
        return [p.name for p in inspect.signature(self.run).parameters.values() if p.kind is p.KEYWORD_ONLY]


SAMPLERS: dict[str, Sampler] = {
    "heun": Sampler(heun, ("karras", "karras"), heun_points, start=INSIDE),
    "dbim": Sampler(dbim, ("karras", "uniform"), lambda nfe, **_: nfe + 1),
    "dbmsolver": Sampler(dbmsolver, ("karras", "log_snr"), dbmsolver_points),
    "ecsi": Sampler(ecsi, ("karras", "uniform"), lambda nfe, **_: nfe),
    "euler_maruyama": Sampler(euler_maruyama, ("karras", "karras"), lambda nfe, **_: nfe, start=INSIDE),
    "ode": Sampler(ode, ("karras", "karras"), lambda nfe, **_: 2, start=INSIDE, least=8, adaptive=True),
}


def grid_of(sampler: str, bridge: Bridge, nfe: int, grid: str = "", **settings: float) -> Tensor:
    """The times at which a sampler spends at most `nfe` evaluations; grid: of `GRIDS`, or "", the sampler's own."""
    own = choose(SAMPLERS, sampler, "sampler")
    if type(nfe) is not int:
        raise ValueError(f"--nfe must be a whole number of evaluations, found {nfe!r}")
    build = choose(GRIDS, grid or own.grid(bridge.schedule), "grid")
    points = own.points(nfe, **settings) if nfe >= own.least else 0
    if points < 1:
        least = next(n for n in itertools.count(own.least) if own.points(n, **settings) >= 1)
        raise ValueError(f"{sampler} needs --nfe {least} or more, found {nfe}")
    if bridge.T - own.start <= bridge.t_min:
        raise ValueError(f"times from {bridge.t_min} to {bridge.T} leave no room for steps: raise --sigma_max")
    return build(bridge.schedule, bridge.T - own.start, points)


def solve(
    sampler: str, bridge: Bridge, denoise: Denoiser, x_T: Tensor, noise: NoiseSource, nfe: int, grid: str = "",
    **settings: float,
) -> Tensor:  # fmt: skip
    """x_0 by the named sampler with at most `nfe` calls of `denoise`. Raises ValueError for what it cannot do."""
    times, spent = grid_of(sampler, bridge, nfe, grid, **settings), 0

    def counted(x: Tensor, t: Tensor) -> Tensor:
        nonlocal spent
        spent += 1
        if spent > nfe:
            raise ValueError(f"{sampler} needs more than --nfe {nfe} evaluations: allow more, or a larger --rtol")
        return denoise(x, t)

    return SAMPLERS[sampler].run(bridge, counted, x_T, noise, times, **settings)


def check_settings(sampler: str, bridge: Bridge, nfe: int, grid: str = "", **settings: float) -> None:
    """Raises ValueError for settings and budgets that the sampler cannot work with; found on one pixel that is 0."""
    solve(
        sampler,
        bridge,
        lambda x, t: torch.zeros_like(x),
        torch.zeros(1, 1, 1, 1),
        torch.zeros_like,
        nfe,
        grid,
        **settings,
    )
