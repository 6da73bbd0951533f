"""Samplers: plain functions from a denoiser, its noise and a grid of times to x_0; the table `SAMPLERS`.

Every sampler takes `(bridge, denoise, x_T, noise, times, ...)` with `denoise(x, t) -> D`, `noise(like) -> z` and
decreasing times, float64 `[points]`, and names its own settings as keyword arguments. Its line in the table says how
many points spend a budget of evaluations. docs/maths.md derives the formulas.
"""

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
from .bridge import Bridge
from .exponential import boot, exponential_step, first_moment, multistep
from .grids import GRIDS, INSIDE, own_grid
from .ode import integrate
from .preconditioning import scale


def euler_step(
    bridge: Bridge, denoise: Denoiser, x: Tensor, x_T: Tensor, t: Tensor, u: Tensor, noise: NoiseSource,
    churn: float, guidance: float,
) -> Tensor:  # fmt: skip
    """An Euler-Maruyama step from t to u < t on the SDE whose diffusion is sqrt(churn) g; 0: Euler's on the ODE."""
    y = x + scale(u - t, bridge.drift(x, t, x_T, denoise(x, t), guidance, churn))
    return y + scale(torch.sqrt((t - u) * churn * bridge.path.diffusion2(t)), noise(x)) if churn else y


def heun_step(
    bridge: Bridge, denoise: Denoiser, x: Tensor, x_T: Tensor, t: Tensor, u: Tensor, guidance: float
) -> Tensor:
    """One step of Heun's method from t to u on the ODE; Euler's to u = 0, where the drift is not evaluated."""
    d = bridge.drift(x, t, x_T, denoise(x, t), guidance, 0.0)
    y = x + scale(u - t, d)
    if u == 0:
        return y
    return x + scale((u - t) / 2, d + bridge.drift(y, u, x_T, denoise(y, u), guidance, 0.0))


def heun(
    bridge: Bridge, denoise: Denoiser, x_T: Tensor, noise: NoiseSource, times: Tensor, *,
    churn: float = 0.33, guidance: float = 1.0,
) -> Tensor:  # fmt: skip
    """DDBM's hybrid sampler (Zhou et al. 2023, Algorithm 1).

    Each step goes an Euler-Maruyama step on the SDE over the share `churn` of its length and a Heun step on the ODE
    over the rest, 3 evaluations; with churn 0 it is the ODE, 2 evaluations. The last step, from the last time to 0,
    takes one less. 119 evaluations are the paper's 40 steps. `guidance` is w in docs/maths.md.
    """
    check_range("churn", churn, below=1)
    check_finite("guidance", guidance)
    x = bridge.begin(x_T, noise)
    for t, u in itertools.pairwise(torch.cat([times, times.new_zeros(1)])):
        if churn:
            v = t + churn * (u - t)
            x, t = euler_step(bridge, denoise, x, x_T, t, v, noise, 1.0, guidance), v
        x = heun_step(bridge, denoise, x, x_T, t, u, guidance)
    return x


def dbim(
    bridge: Bridge, denoise: Denoiser, x_T: Tensor, noise: NoiseSource, times: Tensor, *,
    order: int = 0, eta: float = 0.0,
) -> Tensor:  # fmt: skip
    """Diffusion bridge implicit models (Zheng et al. 2025, arXiv 2405.15885), one evaluation a step from T to t_min.

    The first step draws the booting noise. Order 1: η = 0 is deterministic after it, η = 1 the Markovian bridge, whose
    last step adds no noise, as in the authors' code. Orders 2 and 3, at η = 0: D is extrapolated in λ from the last
    evaluations; second and last step have order 1. Order 0 is 2, or 1 where η is not 0.
    """
    check_order(order, 3)
    check_range("eta", eta)
    order = order or (1 if eta else 2)
    if eta and order > 1:
        raise ValueError(f"--eta {eta} needs --order 1: orders 2 and 3 solve the deterministic flow")
    path, last = bridge.path, len(times) - 3
    x, _ = boot(bridge, denoise, x_T, noise, times[1])
    history: list[tuple[Tensor, Tensor]] = []
    for i, (t, u) in enumerate(itertools.pairwise(times[1:])):
        D = denoise(x, t)
        history = [(path.log_snr(t), D), *history][: 1 if i == last else order]
        if not eta:
            x = exponential_step(bridge, x, x_T, t, u, multistep(history, path.log_snr(u)))
            continue
        (a_t, b_t, _), (a, b, c) = bridge.coefficients(t), bridge.coefficients(u)
        variance = (eta * c) ** 2 * (1 - a * b_t / (b * a_t))  # at η = 1 that of x_u given x_t and both ends
        kept = torch.sqrt(path.kept(u) ** 2 - variance) / path.kept(t)
        x = scale(kept, x) + scale(a - kept * a_t, x_T) + scale(b - kept * b_t, D)
        if i < last:
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
    path = bridge.path
    x, _ = boot(bridge, denoise, x_T, noise, times[1])
    for i, (t, u) in enumerate(itertools.pairwise(times[1:])):
        D = denoise(x, t)
        phi = -torch.expm1(path.log_snr(t) - path.log_snr(u))
        terms: list[tuple[Tensor | float, Tensor]] = [(phi, D)]
        if order != 1 and i < len(times) - 3:
            m = path.inverse_rho2(torch.sqrt(path.rho2(t) * path.rho2(u)))  # the middle in log(1/rho)
            middle = exponential_step(bridge, x, x_T, t, m, [(-torch.expm1(path.log_snr(t) - path.log_snr(m)), D)])
            slope = scale(4 / torch.log(path.rho2(t) / path.rho2(u)), denoise(middle, m) - D)  # per unit of log(1/rho)
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
    x, steps = bridge.begin(x_T, noise), list(itertools.pairwise(torch.cat([times, times.new_zeros(1)])))
    for i, (t, u) in enumerate(steps):
        x = euler_step(bridge, denoise, x, x_T, t, u, noise, churn if i < len(steps) - 2 else 0.0, 1.0)
    return x


def euler_maruyama(
    bridge: Bridge, denoise: Denoiser, x_T: Tensor, noise: NoiseSource, times: Tensor, *, guidance: float = 1.0
) -> Tensor:
    """Euler-Maruyama on the reverse SDE (Zhou et al. 2023, Theorem 1), one evaluation a step; the last on the ODE."""
    check_finite("guidance", guidance)
    x = bridge.begin(x_T, noise)
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
    """Three evaluations a step, two without churn, one less in the last."""
    return (nfe + 1) // (3 if churn else 2)


def dbmsolver_points(nfe: int, order: int = 0) -> int:
    """One evaluation from T, one in the last step, `order` in those between; an odd one out is not spent."""
    return 1 + (nfe if order == 1 else 1 + nfe // 2)


@dataclass(frozen=True)
class Sampler:
    """A sampler, and how it spends a budget.

    points(nfe, **settings): times in its grid; start: how far inside T that begins; least: the smallest budget;
    adaptive: the evaluations it takes are known only afterwards.
    """

    run: Callable[..., Tensor]
    points: Callable[..., int]
    start: float = 0.0
    least: int = 1
    adaptive: bool = False

    @property
    def settings(self) -> list[str]:
        """Names of its keyword settings."""
        return [p.name for p in inspect.signature(self.run).parameters.values() if p.kind is p.KEYWORD_ONLY]


SAMPLERS: dict[str, Sampler] = {
    "heun": Sampler(heun, heun_points, start=INSIDE),
    "dbim": Sampler(dbim, lambda nfe, **_: nfe + 1),
    "dbmsolver": Sampler(dbmsolver, dbmsolver_points),
    "ecsi": Sampler(ecsi, lambda nfe, **_: nfe),
    "euler_maruyama": Sampler(euler_maruyama, lambda nfe, **_: nfe, start=INSIDE),
    "ode": Sampler(ode, lambda nfe, **_: 2, start=INSIDE, least=8, adaptive=True),
}


@dataclass(frozen=True)
class Plan:
    """A sampler set up for a budget of `nfe` evaluations: its times, its settings, and the price of a call.

    price: evaluations that a call of the denoiser takes, more than 1 where it is an average over a group.
    """

    sampler: str
    bridge: Bridge
    times: Tensor
    nfe: int
    price: int
    settings: dict[str, float]

    def run(self, denoise: Denoiser, x_T: Tensor, noise: NoiseSource) -> tuple[Tensor, int]:
        """x_0 for every x_T, and the evaluations an image took, at most. Raises ValueError where they exceed `nfe`."""
        spent = 0

        def counted(x: Tensor, t: Tensor) -> Tensor:
            nonlocal spent
            spent += self.price
            if spent > self.nfe:
                raise ValueError(
                    f"{self.sampler} needs more than --nfe {self.nfe} evaluations: allow more, or a larger --rtol"
                )
            return denoise(x, t)

        x_0 = SAMPLERS[self.sampler].run(self.bridge, counted, x_T, noise, self.times, **self.settings)
        return x_0, spent

    def check(self) -> int:
        """The evaluations it takes; raises ValueError for settings that it cannot work with. Tried on a pixel of 0."""
        return self.run(lambda x, t: torch.zeros_like(x), torch.zeros(1, 1, 1, 1), torch.zeros_like)[1]


def plan(sampler: str, bridge: Bridge, nfe: int, grid: str = "", price: int = 1, **settings: float) -> Plan:
    """The named sampler with at most `nfe` evaluations, `price` a call; grid: of `GRIDS`, or "", its own on this path.

    Raises ValueError for names that are not known and budgets that are too small.
    """
    own, path = choose(SAMPLERS, sampler, "sampler"), bridge.path
    for name in settings:
        if name not in own.settings:
            raise ValueError(f"sampler {sampler} has no setting --{name}: it has {', '.join(own.settings)}")
    first_order = settings.get("order") == 1 or bool(settings.get("eta"))
    build = choose(GRIDS, grid or own_grid(path, sampler, first_order), "grid")
    if type(nfe) is not int:
        raise ValueError(f"--nfe must be a whole number of evaluations, found {nfe!r}")
    calls = nfe // price
    points = own.points(calls, **settings) if calls >= own.least else 0
    if points < 1:
        least = next(n for n in itertools.count(own.least) if own.points(n, **settings) >= 1)
        averages = f" ({least} averages of {price} evaluations)" if price > 1 else ""
        raise ValueError(f"{sampler} needs --nfe {least * price} or more{averages}, found {nfe}")
    if path.T - own.start <= path.t_min:
        raise ValueError(f"times from {path.t_min} to {path.T} leave no room for steps: raise --sigma_max")
    return Plan(sampler, bridge, build(path, path.T - own.start, points), nfe, price, settings)
