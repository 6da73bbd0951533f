"""Gaussian pairs, for which everything about the bridge is known in closed form."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddbm.bridges.bridge import Bridge
from ddbm.config import BridgeConfig

SETTINGS = {
    "ve": BridgeConfig(schedule="ve", sigma_data=0.5, cov_xy=0.15, sigma_max=3.0, sigma_min=0.002),
    "vp": BridgeConfig(schedule="vp", sigma_data=0.5, cov_xy=0.15),
}


@dataclass
class GaussianPair:
    """x_0 and x_T: zero mean, standard deviation 0.5, covariance 0.15, pixel by pixel."""

    bridge: Bridge
    variance: float = 0.25
    covariance: float = 0.15

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        z, e = torch.randn(2, n, 1, 1, 1, dtype=torch.float64, generator=generator)
        x_T = self.variance**0.5 * z
        return self.mean(x_T) + self.residual_variance**0.5 * e, x_T

    def mean(self, x_T: Tensor) -> Tensor:
        """E[x_0 | x_T]."""
        return self.covariance / self.variance * x_T

    @property
    def residual_variance(self) -> float:
        """Var[x_0 | x_T]."""
        return self.variance - self.covariance**2 / self.variance

    def marginal(self, t: Tensor, x_T: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of x_t given x_T."""
        a, b, c = self.bridge.coefficients(t)
        return a * x_T + b * self.mean(x_T), torch.sqrt(b**2 * self.residual_variance + c**2)

    def denoise(self, x: Tensor, t: Tensor, x_T: Tensor) -> Tensor:
        """E[x_0 | x_t, x_T]; at T, where x_t tells nothing new, E[x_0 | x_T]."""
        _, b, _ = (v.reshape(-1, 1, 1, 1) for v in self.bridge.coefficients(t))
        mean, deviation = self.marginal(t.reshape(-1, 1, 1, 1), x_T)
        slope = torch.where(deviation > 0, b * self.residual_variance / deviation**2, 0.0)
        return self.mean(x_T) + slope * (x - mean)


def pair(name: str) -> GaussianPair:
    return GaussianPair(Bridge(SETTINGS[name]))
