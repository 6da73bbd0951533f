"""Paths of a bridge, x_t = a x_T + b x_0 + c z, that end in x_T; the tables `PATHS` and `SCHEDULES`.

Those here are diffusions `x_t = alpha_t (x_0 + rho_t z)` tied to their end x_T (Zhou et al. 2023, DDBM, Table 1
and Eq. 8), those with noise on that end, and the limit of one without noise on the way; notation in docs/maths.md.
Times and coefficients are float64, scalar or `[B]`.
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
    """a', b', and the rate at which x - a x_T - b x_0 grows, m'/m + churn g²/(2 m²); 0 where that is infinite, at T."""

    a: Tensor
    b: Tensor
    rate: Tensor


class Path(Protocol):
    """What grids, bridge and samplers ask of a path, but guidance and `dbmsolver`, which need a diffusion; `t` <= T.

    kind: of the table of grids (`grids.OWN`), "" where nothing is special; coefficients: exactly 1, 0, 0 at T, or
    the noise on x_T in place of the last; kept: m, by which what of a state is neither a x_T nor b x_0 shrinks along
    the flow, c, or another where that is 0; diffusion2: g² of the SDE that churn 1 means; log_snr: λ = log(b/m), which
    grows from -∞ at T as t falls; time_of: the time at which it is `lam`.
    """

    t_min: float
    T: float
    kind: ClassVar[str]

    def coefficients(self, t: Tensor) -> Coefficients: ...
    def kept(self, t: Tensor) -> Tensor: ...
    def derivatives(self, t: Tensor, churn: float) -> Derivatives: ...
    def diffusion2(self, t: Tensor) -> Tensor: ...
    def log_snr(self, t: Tensor) -> Tensor: ...
    def time_of(self, lam: Tensor) -> Tensor: ...


class Diffusion(Path, Protocol):
    """A path from signal `alpha(t)` and squared noise-to-signal ratio `rho2(t)`; m = c.

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

    def kept(self, t: Tensor) -> Tensor:
        return self.coefficients(t).c

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

    def area(self, t: Tensor, u: Tensor) -> Tensor:
        """∫ e^λ dμ from t to u, μ = log(1/rho), e^2λ = e^2μ - 1/rho_T²."""
        k = 1 / torch.sqrt(self.rho2(self.end))
        begin, end = (torch.exp(self.log_snr(v)) for v in (t, u))
        return end - begin - k * (torch.atan(end / k) - torch.atan(begin / k))


@dataclass(frozen=True)
class VE(Diffusion):
    """Variance exploding: alpha = 1, rho = t = standard deviation of the noise."""

    t_min: float
    T: float
    kind: ClassVar[str] = "ve"

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
    kind: ClassVar[str] = ""

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


class Brownian(Diffusion, Protocol):
    """Of alpha = 1 on [0, 1], so a = rho²/rho_T², b = 1 - a: Brownian motion in the time rho²."""

    t_min: float = 1e-4  # where c is 0.003: less than half a grey level
    T: float = 1.0
    kind: ClassVar[str] = ""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def d_log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)


@dataclass(frozen=True)
class Linear(Brownian):
    """ECSI's linear path (Zhang et al. 2024, arXiv 2410.21553): a = t, b = 1 - t, c = 2 gamma_max sqrt(t (1 - t))."""

    gamma_max: float
    kind: ClassVar[str] = "linear"

    def rho2(self, t: Tensor) -> Tensor:
        return 4 * self.gamma_max**2 * t

    def d_rho2(self, t: Tensor) -> Tensor:
        return torch.full_like(t, 4 * self.gamma_max**2)

    def rho2_to_end(self, t: Tensor) -> Tensor:
        return 4 * self.gamma_max**2 * (1 - t)

    def inverse_rho2(self, value: Tensor) -> Tensor:
        return value / (4 * self.gamma_max**2)


@dataclass(frozen=True)
class I2SB(Brownian):
    """Liu et al. 2023 (arXiv 2302.05872): rho² is the integral of beta, the same seen from both ends.

    Up to 1/2, sqrt(beta) is a line from sqrt(beta_min) that would be sqrt(beta_max) at 1, as in the published code.
    """

    beta_min: float
    beta_max: float
    kind: ClassVar[str] = "i2sb"

    def _half(self, t: Tensor) -> Tensor:
        """The integral of beta up to t <= 1/2."""
        root, slope = self.beta_min**0.5, self.beta_max**0.5 - self.beta_min**0.5
        return t * (root**2 + t * (root * slope + t * slope**2 / 3))

    def _inverse_half(self, value: Tensor) -> Tensor:
        root, slope = self.beta_min**0.5, self.beta_max**0.5 - self.beta_min**0.5
        reached = (root**3 + 3 * slope * value) ** (1 / 3)  # sqrt(beta) there
        return 3 * value / (reached**2 + reached * root + root**2)

    def _either(self, first: bool, t: Tensor) -> Tensor:
        """rho², or what is left of it: the half's integral from that end, or the whole without the other's."""
        near, far = (t, 1 - t) if first else (1 - t, t)
        whole = 2 * self._half(torch.full_like(t, 0.5))
        return torch.where(near < 0.5, self._half(near), whole - self._half(far))

    def rho2(self, t: Tensor) -> Tensor:
        return self._either(True, t)

    def rho2_to_end(self, t: Tensor) -> Tensor:
        return self._either(False, t)

    def d_rho2(self, t: Tensor) -> Tensor:
        root = self.beta_min**0.5
        return (root + (self.beta_max**0.5 - root) * torch.minimum(t, 1 - t)) ** 2

    def inverse_rho2(self, value: Tensor) -> Tensor:
        left = self.rho2(self.end) - value
        return torch.where(value < left, self._inverse_half(value), 1 - self._inverse_half(left))


@dataclass(frozen=True)
class NoisyEnd(Diffusion):
    """Before a diffusion: tied to x_T + s z, seen from x_T. c² gains (s a)², g is what it was (docs/maths.md)."""

    s: float = 0.0
    kind: ClassVar[str] = ""

    def coefficients(self, t: Tensor) -> Coefficients:
        a, b, c = super().coefficients(t)
        return Coefficients(a, b, torch.sqrt(c**2 + (self.s * a) ** 2))

    def derivatives(self, t: Tensor, churn: float) -> Derivatives:
        (a, _, c), (d_a, d_b, _) = super().coefficients(t), super().derivatives(t, churn)
        rise = (1 + churn) * self.rho2_to_end(t) - (1 - churn) * self.rho2(t)
        own = self.d_log_alpha(t) * c**2 + self.diffusion2(t) * rise / (2 * self.rho2(self.end))  # c c' + churn g²/2
        return Derivatives(d_a, d_b, (own + self.s**2 * a * d_a) / (c**2 + (self.s * a) ** 2))

    def log_snr(self, t: Tensor) -> Tensor:
        _, b, c = self.coefficients(t)
        return torch.log(b / c)

    def time_of(self, lam: Tensor) -> Tensor:
        snr, rho2_T = torch.exp(2 * lam), self.rho2(self.end)
        middle = snr * rho2_T / 2
        ratio = middle + torch.sqrt(middle**2 + snr * self._end2)  # rho_T²/rho² - 1
        return self.inverse_rho2(rho2_T / (1 + ratio))

    @property
    def _end2(self) -> Tensor:
        return (self.s / self.alpha(self.end)) ** 2

    def area(self, t: Tensor, u: Tensor) -> Tensor:
        rho2_T = self.rho2(self.end)
        left = rho2_T - self._end2
        root = torch.sqrt(left.abs()).clamp(min=1e-9)

        def primitive(at: Tensor) -> Tensor:
            v = torch.sqrt(rho2_T * self.rho2_to_end(at) / self.rho2(at) + self._end2)
            integral = torch.atan(v / root) if left > 0 else -torch.atanh(root / v)  # root · ∫ dv / (v² + left)
            return v / rho2_T - integral / root

        return primitive(u) - primitive(t)


@dataclass(frozen=True)
class NoisyVP(NoisyEnd, VP): ...


@dataclass(frozen=True)
class NoisyLinear(NoisyEnd, Linear): ...


@dataclass(frozen=True)
class NoisyI2SB(NoisyEnd, I2SB): ...


@dataclass(frozen=True)
class WithoutNoise(I2SB):
    """I2SB's deterministic (OT) limit: the a and b of its states, c = 0, and the flow that is its SDE's drift.

    That is dx/dt = d log(rho²)/dt (x - D), along which x - a x_T - b D shrinks by m = a. So all that others say of c
    holds here of a. With noise s on x_T it is c = m = s a.
    """

    s: float = 0.0
    kind: ClassVar[str] = ""

    def coefficients(self, t: Tensor) -> Coefficients:
        a, b, _ = super().coefficients(t)
        return Coefficients(a, b, self.s * a)

    def kept(self, t: Tensor) -> Tensor:
        return self._unit * self.coefficients(t).a

    @property
    def _unit(self) -> float:
        return self.s or 1.0

    def derivatives(self, t: Tensor, churn: float) -> Derivatives:
        d_a, d_b, _ = super().derivatives(t, churn)
        return Derivatives(d_a, d_b, self.d_rho2(t) / self.rho2(t))

    def diffusion2(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def log_snr(self, t: Tensor) -> Tensor:
        return torch.log(self.rho2_to_end(t) / (self._unit * self.rho2(t)))

    def time_of(self, lam: Tensor) -> Tensor:
        return self.inverse_rho2(self.rho2(self.end) / (self._unit * torch.exp(lam) + 1))

    def area(self, t: Tensor, u: Tensor) -> Tensor:
        rho2_T, at_t, at_u = self.rho2(self.end), self.rho2(t), self.rho2(u)
        return (rho2_T / at_u - rho2_T / at_t - torch.log(at_t / at_u)) / (2 * self._unit)


def ve(s: BridgeConfig) -> Diffusion:
    """VE, to whose noise none on the source can be added."""
    if s.source_noise:
        raise ValueError(
            f"--source_noise {s.source_noise:g} is lost in the noise of schedule {s.schedule}, up to "
            f"{s.sigma_max / 2:g}: leave it out, or take schedule linear, i2sb or vp"
        )
    return VE(s.sigma_min, s.sigma_max)


def vp(s: BridgeConfig) -> Diffusion:
    own = s.beta_d, s.beta_min
    return NoisyVP(*own, s=s.source_noise) if s.source_noise else VP(*own)


def linear(s: BridgeConfig) -> Diffusion:
    return NoisyLinear(gamma_max=s.gamma_max, s=s.source_noise) if s.source_noise else Linear(s.gamma_max)


def i2sb(s: BridgeConfig) -> Diffusion:
    own = {"beta_min": s.beta_min, "beta_max": s.beta_max}
    if s.ot:
        return WithoutNoise(**own, s=s.source_noise)
    return NoisyI2SB(**own, s=s.source_noise) if s.source_noise else I2SB(**own)


PATHS: dict[str, Callable[[BridgeConfig], Diffusion]] = {"ve": ve, "vp": vp, "linear": linear, "i2sb": i2sb}
# what users name: a path and how the network is preconditioned for it (preconditioning.py)
SCHEDULES = {
    "ve": ("ve", "ddbm"),
    "vp": ("vp", "ddbm"),
    "ve_simple": ("ve", "none"),
    "vp_simple": ("vp", "none"),
    "linear": ("linear", "ddbm"),
    "i2sb": ("i2sb", "noise"),
}
