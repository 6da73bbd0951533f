"""Exact steps of the bridge for an estimate of x_0 that is constant or a polynomial along the way (docs/maths.md)."""

import torch
from torch import Tensor

from ..symmetry.averaging import Denoiser
from ..symmetry.frames import NoiseSource
from .bridge import Bridge
from .preconditioning import scale


def exponential_step(
    bridge: Bridge, x: Tensor, x_T: Tensor, t: Tensor, u: Tensor, terms: list[tuple[Tensor | float, Tensor]]
) -> Tensor:
    """The exact solution of the ODE from t to u < t for the estimate D whose integral the terms give.

    (x - a x_T) / m grows by ∫ D de^λ, λ = log(b/m); it is the sum of `terms`, (weight, tensor) with the weight in units
    of e^λ at u. m is c, or a without noise (`Path.kept`).
    """
    (a_t, _, _), m_t = bridge.coefficients(t), bridge.path.kept(t)
    (a, b, _), m = bridge.coefficients(u), bridge.path.kept(u)
    x = scale(m / m_t, x) + scale(a - a_t * m / m_t, x_T)
    for weight, D in terms:
        x = x + scale(b * weight, D)
    return x


def boot(bridge: Bridge, denoise: Denoiser, x_T: Tensor, noise: NoiseSource, u: Tensor) -> tuple[Tensor, Tensor]:
    """From T to u with the estimate of x_0 at T: x_u = a x_T + b D + c z, exact for the SDE with that D; and D.

    Where there is noise on x_T, z is that, and the step is the flow's.
    """
    z = noise(x_T)
    D = denoise(bridge.begin(x_T, lambda like: z), bridge.time(bridge.T))
    a, b, c = bridge.coefficients(u)
    return scale(a, x_T) + scale(b, D) + scale(c, z), D


def multistep(history: list[tuple[Tensor, Tensor]], end: Tensor) -> list[tuple[Tensor | float, Tensor]]:
    """∫ D de^λ from the newest λ to `end` in units of e^end, as (weight, tensor), for the polynomial in λ through D.

    history: (λ, D), one to three of them, newest first; the order is their number.
    """
    (now, D), *past = history
    h = end - now
    phi = -torch.expm1(-h)  # 1 - e^-h
    terms: list[tuple[Tensor | float, Tensor]] = [(phi, D)]
    if past:
        (before, D1), *past = past
        h1 = now - before
        slope = scale(1 / h1, D - D1)
        if past:
            ((first, D2),) = past
            h2 = before - first
            curvature = scale(1 / (h1 + h2), slope - scale(1 / h2, D1 - D2))  # half the second derivative
            slope = slope + scale(h1, curvature)
            terms.append((h**2 - 2 * (h - phi), curvature))
        terms.append((h - phi, slope))
    return terms


def first_moment(bridge: Bridge, t: Tensor, u: Tensor) -> Tensor:
    """∫ (μ - μ_t) de^λ from t to u in units of e^λ at u, with μ = log(1/rho)."""
    path = bridge.path
    return torch.log(path.rho2(t) / path.rho2(u)) / 2 - path.area(t, u) / torch.exp(path.log_snr(u))
