"""The diffusion bridge from x_T to x_0: coefficients, preconditioning, denoiser, drifts, training loss.

Zhou et al. 2023, *Denoising Diffusion Bridge Models* (DDBM), Eq. 7-8 and Appendix A; notation in docs/maths.md.
Times and coefficients are float64; images keep their own type. `x`, `x_0`, `x_T`: `[B, C, H, W]`; `t`: scalar or `[B]`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..config import BridgeConfig
from ..settings import choose
from ..symmetry.averaging import Network
from .paths import SCHEDULES, Schedule


class Coefficients(NamedTuple):
    """x_t = a x_T + b x_0 + c noise."""

    a: Tensor
    b: Tensor
    c: Tensor


class Preconditioning(NamedTuple):
    """D = c_skip x_t + c_out F(c_in x_t, c_noise, x_T); loss weight 1 / c_out²."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor
    weight: Tensor


def scale(coefficient: Tensor, x: Tensor) -> Tensor:
    """coefficient · x, for a coefficient that is a scalar or `[B]`, in the type of x."""
    if not coefficient.ndim:  # stays on the CPU: a GPU takes it as a number, and nobody waits
        return coefficient.to(x.dtype) * x
    return coefficient.reshape(-1, *[1] * (x.ndim - 1)).to(x) * x


def mean_inside(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over channels and pixels, inside the mask `[B, 1, H, W]` if there is one: `[B, C, H, W]` -> `[B]`."""
    if mask is None:
        return values.mean((1, 2, 3))
    pixels = (mask.sum((1, 2, 3)) * values.shape[1]).clamp(min=1)
    return (values * mask).sum((1, 2, 3)) / pixels


class Bridge:
    """A schedule, the second moments of the data, and everything that follows from them."""

    def __init__(self, settings: BridgeConfig) -> None:
        build, self.simple = choose(SCHEDULES, settings.schedule, "schedule")
        self.schedule: Schedule = build(settings)
        self.variance = settings.sigma_data**2
        self.covariance = settings.cov_xy

    @property
    def t_min(self) -> float:
        return self.schedule.t_min

    @property
    def T(self) -> float:
        return self.schedule.T

    def time(self, t: float | Tensor) -> Tensor:
        """t as a float64 tensor."""
        return torch.as_tensor(t, dtype=torch.float64)

    def coefficients(self, t: Tensor) -> Coefficients:
        """a, b, c of Eq. 8; at T they are exactly 1, 0, 0."""
        s, end = self.schedule, self.time(self.T)
        rho2, rho2_T, gap = s.rho2(t), s.rho2(end), s.rho2_to_end(t)
        alpha = s.alpha(t)
        a = alpha / s.alpha(end) * (rho2 / rho2_T)
        b = alpha * (gap / rho2_T)
        c = alpha * torch.sqrt(rho2 * (gap / rho2_T))
        return Coefficients(a, b, c)

    def precondition(self, t: Tensor) -> Preconditioning:
        """Scalings that keep input, output and loss of the network near unit variance (DDBM, Appendix A)."""
        a, b, c = self.coefficients(t)
        c_noise = 250 * torch.log(t)
        if self.simple:
            one = torch.ones_like(t)
            return Preconditioning(torch.zeros_like(t), one, one, c_noise, one)
        var, cov = self.variance, self.covariance
        total = a**2 * var + b**2 * var + 2 * a * b * cov + c**2
        unexplained = a**2 * (var**2 - cov**2) + var * c**2
        c_in = torch.rsqrt(total)
        return Preconditioning(
            (b * var + a * cov) / total, unexplained.sqrt() * c_in, c_in, c_noise, total / unexplained
        )

    def denoise(self, network: Network, x: Tensor, t: Tensor) -> Tensor:
        """D(x_t, t, x_T), the estimate of E[x_0 | x_t, x_T]."""
        p = self.precondition(t)
        if p.c_noise.ndim:
            c_noise = p.c_noise.to(device=x.device, dtype=torch.float32)
        else:
            c_noise = torch.full((x.shape[0],), p.c_noise.item(), dtype=torch.float32, device=x.device)
        return scale(p.c_skip, x) + scale(p.c_out, network(scale(p.c_in, x), c_noise).to(x.dtype))

    def loss(
        self, network: Network, x_0: Tensor, x_T: Tensor, t: Tensor, noise: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """The weighted denoising error of every image, `[B]`: the mean over pixels, inside the mask."""
        a, b, c = self.coefficients(t)
        x_t = scale(a, x_T) + scale(b, x_0) + scale(c, noise if mask is None else noise * mask)
        error = (self.denoise(network, x_t, t) - x_0) ** 2
        return scale(self.precondition(t).weight, mean_inside(error, mask))

    def drift(self, x: Tensor, t: Tensor, x_T: Tensor, D: Tensor, guidance: float = 1.0, churn: float = 0.0) -> Tensor:
        """f x - g² ((1 + churn)/2 s - w h), with s and h of docs/maths.md.

        With churn 0 it is dx/dt of the probability flow, else the drift of the reverse SDE of diffusion sqrt(churn) g.

        At w = 1 the singular terms combine: it is a' x_T + b' D + rate (x - a x_T - b D), 0 < t <= T, where rate is
        d log c/dt + churn g²/(2 c²); its last term vanishes at T, where x = x_T.
        """
        s = self.schedule
        a, b, _ = self.coefficients(t)
        f, d_rho2, rho2, gap = s.d_log_alpha(t), s.d_rho2(t), s.rho2(t), s.rho2_to_end(t)
        d_a = a * (f + d_rho2 / rho2)
        d_b = b * f - s.alpha(t) * d_rho2 / s.rho2(self.time(self.T))
        rate = torch.where(gap > 0, f + (1 + churn) * d_rho2 / (2 * rho2) - (1 - churn) * d_rho2 / (2 * gap), 0.0)
        residual = x - scale(a, x_T) - scale(b, D)
        flow = scale(d_a, x_T) + scale(d_b, D) + scale(rate, residual)
        if guidance == 1.0:
            return flow
        pull = self.pull(x, t, x_T)
        return flow + scale((guidance - 1) * self.diffusion2(t), pull)

    def pull(self, x: Tensor, t: Tensor, x_T: Tensor) -> Tensor:
        """h = ∇ log p(x_T | x_t), t < T: what draws the path to its end (Doob's h-transform)."""
        s = self.schedule
        alpha = s.alpha(t)
        return scale(1 / (alpha**2 * s.rho2_to_end(t)), scale(alpha / s.alpha(self.time(self.T)), x_T) - x)

    def diffusion2(self, t: Tensor) -> Tensor:
        """g² of the diffusion, alpha² d(rho²)/dt."""
        return self.schedule.alpha(t) ** 2 * self.schedule.d_rho2(t)
