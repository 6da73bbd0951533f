"""Paths of a bridge, x_t = a x_T + b x_0 + c z, exactly x_T at T; the tables `PATHS` and `SCHEDULES`.

Those here are diffusions `x_t = alpha_t (x_0 + rho_t z)` tied to their end x_T (Zhou et al. 2023, DDBM, Table 1
and Eq. 8); notation in docs/maths.md. Times and coefficients are float64, scalar or `[B]`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from ..config import BridgeConfig


class Coefficients(NamedTuple):
    """x_t = a x_T + b x_0 + c z."""

    a: Tensor
    b: Tensor
    c: Tensor


class Derivatives(NamedTuple):
    """a', b', and the rate at which x - a x_T - b x_0 grows, c'/c + churn g²/(2 c²); that is 0 at T, where x = x_T."""

    a: Tensor
    b: Tensor
    rate: Tensor


class Path(Protocol):
    """What grids, bridge and samplers ask of a path, but guidance and `dbmsolver`, which need a diffusion; `t` <= T.

    grid: of its samplers (`grids.GRIDS`), "" where each sampler's own serves; coefficients: exactly 1, 0, 0 at T;
    diffusion2: g² of the SDE that churn 1 means; log_snr: λ = log(b/c), which grows from -∞ at T as t falls; time_of:
    the time at which it is `lam`.
    """

    t_min: float
    T: float
    grid: ClassVar[str]

    def coefficients(self, t: Tensor) -> Coefficients: ...
    def derivatives(self, t: Tensor, churn: float) -> Derivatives: ...
    def diffusion2(self, t: Tensor) -> Tensor: ...
    def log_snr(self, t: Tensor) -> Tensor: ...
    def time_of(self, lam: Tensor) -> Tensor: ...


class Diffusion(Path, Protocol):
    """A path from signal `alpha(t)` and squared noise-to-signal ratio `rho2(t)`.

    `rho2_to_end`, rho_T² - rho_t², is written without cancellation, so that it keeps all its digits near T.
    """

    def alpha(self, t: Tensor) -> Tensor: ...
    def d_log_alpha(self, t: Tensor) -> Tensor: ...
    def rho2(self, t: Tensor) -> Tensor: ...
    def d_rho2(self, t: Tensor) -> Tensor: ...
    def rho2_to_end(self, t: Tensor) -> Tensor: ...
    def inverse_rho2(self, value: Tensor) -> Tensor: ...

    @property
    def end(self) -> Tensor:
        """T as a tensor."""
        return torch.as_tensor(self.T, dtype=torch.float64)

    def coefficients(self, t: Tensor) -> Coefficients:
        rho2, rho2_T, gap, alpha = self.rho2(t), self.rho2(self.end), self.rho2_to_end(t), self.alpha(t)
        a = alpha / self.alpha(self.end) * (rho2 / rho2_T)
        b = alpha * (gap / rho2_T)
        c = alpha * torch.sqrt(rho2 * (gap / rho2_T))
        return Coefficients(a, b, c)

    def derivatives(self, t: Tensor, churn: float) -> Derivatives:
        a, b, _ = self.coefficients(t)
        f, d_rho2, rho2, gap = self.d_log_alpha(t), self.d_rho2(t), self.rho2(t), self.rho2_to_end(t)
        d_a = a * (f + d_rho2 / rho2)
        d_b = b * f - self.alpha(t) * d_rho2 / self.rho2(self.end)
        rate = torch.where(gap > 0, f + (1 + churn) * d_rho2 / (2 * rho2) - (1 - churn) * d_rho2 / (2 * gap), 0.0)
        return Derivatives(d_a, d_b, rate)

    def diffusion2(self, t: Tensor) -> Tensor:
        return self.alpha(t) ** 2 * self.d_rho2(t)

    def log_snr(self, t: Tensor) -> Tensor:
        return torch.log(self.rho2_to_end(t) / (self.rho2(t) * self.rho2(self.end))) / 2

    def time_of(self, lam: Tensor) -> Tensor:
        return self.inverse_rho2(1 / (torch.exp(2 * lam) + 1 / self.rho2(self.end)))


@dataclass(frozen=True)
class VE(Diffusion):
    """Variance exploding: alpha = 1, rho = t = standard deviation of the noise."""

    t_min: float
    T: float
    grid: ClassVar[str] = "karras"

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def d_log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def rho2(self, t: Tensor) -> Tensor:
        return t**2

    def d_rho2(self, t: Tensor) -> Tensor:
        return 2 * t

    def rho2_to_end(self, t: Tensor) -> Tensor:
        return (self.T - t) * (self.T + t)

    def inverse_rho2(self, value: Tensor) -> Tensor:
        return value.sqrt()


@dataclass(frozen=True)
class VP(Diffusion):
    """Variance preserving: alpha = exp(-B/2), rho² = exp(B) - 1 with B(t) = beta_d t²/2 + beta_min t."""

    beta_d: float
    beta_min: float
    t_min: float = 1e-4
    T: float = 1.0
    grid: ClassVar[str] = ""

    def _integral(self, t: Tensor) -> Tensor:
        return t * (self.beta_d * t / 2 + self.beta_min)

    def _rate(self, t: Tensor) -> Tensor:
        return self.beta_d * t + self.beta_min

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self._integral(t) / 2)

    def d_log_alpha(self, t: Tensor) -> Tensor:
        return -self._rate(t) / 2

    def rho2(self, t: Tensor) -> Tensor:
        return torch.expm1(self._integral(t))

    def d_rho2(self, t: Tensor) -> Tensor:
        return self._rate(t) * torch.exp(self._integral(t))

    def rho2_to_end(self, t: Tensor) -> Tensor:
        remaining = (self.T - t) * (self.beta_d * (self.T + t) / 2 + self.beta_min)
        return torch.exp(self._integral(t)) * torch.expm1(remaining)

    def inverse_rho2(self, value: Tensor) -> Tensor:
        integral = torch.log1p(value)
        return 2 * integral / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * self.beta_d * integral))


PATHS: dict[str, Callable[[BridgeConfig], Diffusion]] = {
    "ve": lambda s: VE(s.sigma_min, s.sigma_max),
    "vp": lambda s: VP(s.beta_d, s.beta_min),
}
# what users name: a path and how the network is preconditioned for it (preconditioning.py)
SCHEDULES = {"ve": ("ve", "ddbm"), "vp": ("vp", "ddbm"), "ve_simple": ("ve", "none"), "vp_simple": ("vp", "none")}
