"""Noise schedules: signal `alpha(t)` and squared noise-to-signal ratio `rho2(t)`; the rest follows in `bridge.py`.

`x_t = alpha_t (x_0 + rho_t noise)` is the diffusion a bridge is built from (Zhou et al. 2023, DDBM, Table 1).
Times are float64 tensors. `rho2_to_end` is written without cancellation, so that it keeps all its digits near T.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Schedule(Protocol):
    """Everything a bridge needs to know of a diffusion; `t` float64 in [t_min, T]."""

    @property
    def t_min(self) -> float: ...
    @property
    def T(self) -> float: ...
    def alpha(self, t: Tensor) -> Tensor: ...
    def d_log_alpha(self, t: Tensor) -> Tensor: ...
    def rho2(self, t: Tensor) -> Tensor: ...
    def d_rho2(self, t: Tensor) -> Tensor: ...
    def rho2_to_end(self, t: Tensor) -> Tensor:
        """rho_T² - rho_t²."""
        ...

    def inverse_rho2(self, value: Tensor) -> Tensor:
        """The t with rho2(t) = value."""
        ...


@dataclass(frozen=True)
class VE:
    """Variance exploding: alpha = 1, rho = t = standard deviation of the noise."""

    t_min: float
    T: float

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
class VP:
    """Variance preserving: alpha = exp(-B/2), rho² = exp(B) - 1 with B(t) = beta_d t²/2 + beta_min t."""

    beta_d: float
    beta_min: float
    t_min: float = 1e-4
    T: float = 1.0

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


# name -> (schedule from the bridge settings, whether the preconditioning is the identity)
SCHEDULES: dict[str, tuple[Callable[[Any], Schedule], bool]] = {
    "ve": (lambda s: VE(s.sigma_min, s.sigma_max), False),
    "vp": (lambda s: VP(s.beta_d, s.beta_min), False),
    "ve_simple": (lambda s: VE(s.sigma_min, s.sigma_max), True),
    "vp_simple": (lambda s: VP(s.beta_d, s.beta_min), True),
}
