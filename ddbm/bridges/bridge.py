"""The diffusion bridge from x_T to x_0: a path, the second moments of the data, and what follows from them.

Zhou et al. 2023, *Denoising Diffusion Bridge Models* (DDBM), Eq. 7-8 and Appendix A; notation in docs/maths.md.
Times and coefficients are float64; images keep their own type. `x`, `x_0`, `x_T`: `[B, C, H, W]`; `t`: scalar or `[B]`.
"""

import torch
from torch import Tensor

from ..config import BridgeConfig
from ..settings import choose
from ..symmetry.averaging import Network
from ..symmetry.frames import NoiseSource
from .paths import PATHS, SCHEDULES, Coefficients
from .preconditioning import PRECONDITIONINGS, Preconditioning, scale


class Bridge:
    """States, denoiser and drift of the bridge that the settings describe."""

    def __init__(self, settings: BridgeConfig) -> None:
        path, preconditioning = choose(SCHEDULES, settings.schedule, "schedule")
        self.path, self._precondition = PATHS[path](settings), PRECONDITIONINGS[preconditioning]
        self.variance, self.covariance = settings.sigma_data**2, settings.cov_xy
        self.source_noise = settings.source_noise
        self.t_min, self.T = self.path.t_min, self.path.T

    def time(self, t: float | Tensor) -> Tensor:
        """t as a float64 tensor. Raises ValueError for a number that is no time of the bridge."""
        if not isinstance(t, Tensor) and not 0 <= t <= self.T:
            raise ValueError(f"times of this bridge lie in [0, {self.T:g}], found {t}")
        return torch.as_tensor(t, dtype=torch.float64)

    def coefficients(self, t: Tensor) -> Coefficients:
        """a, b, c of x_t = a x_T + b x_0 + c z; at T they are exactly 1, 0 and the noise on the source."""
        return self.path.coefficients(t)

    def precondition(self, t: Tensor) -> Preconditioning:
        """The scalings around the network at t."""
        return self._precondition(t, self.path, self.variance, self.covariance)

    def state(self, x_0: Tensor, x_T: Tensor, t: Tensor, noise: Tensor, mask: Tensor | None = None) -> Tensor:
        """x_t of a pair, with noise inside the mask alone."""
        a, b, c = self.coefficients(t)
        return scale(a, x_T) + scale(b, x_0) + scale(c, noise if mask is None else noise * mask)

    def shown(self, x: Tensor, t: Tensor) -> Tensor:
        """A state as a picture can show it: with noise as strong as the data at most, and as it is at both ends."""
        return scale((1 + self.coefficients(t).c ** 2 / self.variance).rsqrt(), x)

    def begin(self, x_T: Tensor, noise: NoiseSource) -> Tensor:
        """The state at T: x_T, and the noise on it."""
        return x_T + noise(x_T) * self.source_noise if self.source_noise else x_T

    def denoise(self, network: Network, x: Tensor, t: Tensor) -> Tensor:
        """D(x_t, t, x_T), the estimate of E[x_0 | x_t, x_T]."""
        scalings = self.precondition(t)
        return scalings.estimate(x, network(*scalings.inputs(x)))

    def drift(self, x: Tensor, t: Tensor, x_T: Tensor, D: Tensor, guidance: float, churn: float) -> Tensor:
        """f x - g² ((1 + churn)/2 s - w h), with s and h of docs/maths.md.

        With churn 0 it is dx/dt of the probability flow, else the drift of the reverse SDE of diffusion sqrt(churn) g.
        At w = 1 the singular terms combine: it is a' x_T + b' D + rate (x - a x_T - b D), 0 < t <= T.
        """
        a, b, _ = self.coefficients(t)
        d_a, d_b, rate = self.path.derivatives(t, churn)
        residual = x - scale(a, x_T) - scale(b, D)
        flow = scale(d_a, x_T) + scale(d_b, D) + scale(rate, residual)
        if guidance == 1.0:
            return flow
        if self.source_noise:
            raise ValueError(f"--guidance {guidance:g} pulls to a source without --source_noise: leave out either")
        return flow + scale((guidance - 1) * self.path.diffusion2(t), self.pull(x, t, x_T))

    def pull(self, x: Tensor, t: Tensor, x_T: Tensor) -> Tensor:
        """h = ∇ log p(x_T | x_t), t < T: what draws the path to its end (Doob's h-transform)."""
        path = self.path
        alpha = path.alpha(t)
        return scale(1 / (alpha**2 * path.rho2_to_end(t)), scale(alpha / path.alpha(path.end), x_T) - x)
