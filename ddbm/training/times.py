"""Which times a step draws, and how their losses are weighed against each other."""

import math

import torch
from torch import Tensor, nn

from ..bridges.bridge import Bridge
from ..config import TrainConfig
from ..networks.edm2 import Fourier

FEATURES = 128


def uniform_times(bridge: Bridge, u: Tensor) -> Tensor:
    """Times uniform on [t_min, T] from u uniform on [0, 1]; float64 `[B]`."""
    return bridge.t_min + (bridge.T - bridge.t_min) * u


def draw_times(settings: TrainConfig, bridge: Bridge, u: Tensor) -> Tensor:
    """Times of training from u uniform on [0, 1]; float64 `[B]`, in [t_min, T].

    lognormal: those at which log(c/b) = -log_snr is normal with `time_mean` and `time_std`, of the values that times
    from t_min on have; at T it is infinite. By the inverse of the upper tail.
    """
    if settings.time_sampling == "uniform":
        return uniform_times(bridge, u)
    log_noise = settings.time_mean - settings.time_std * torch.special.ndtri(covered(settings, bridge) * (1 - u))
    return bridge.path.time_of(-log_noise).clamp(bridge.t_min, bridge.T)


def covered(settings: TrainConfig, bridge: Bridge) -> Tensor:
    """The share of the normal distribution of log(c/b) that there are times for, a scalar."""
    least = -bridge.path.log_snr(bridge.time(bridge.t_min))
    return torch.special.ndtr((settings.time_mean - least) / settings.time_std)


def check_times(settings: TrainConfig, bridge: Bridge) -> None:
    """Raises ValueError where no times have the noise that is asked for."""
    if settings.time_sampling == "lognormal" and covered(settings, bridge) < 1e-3:
        least = -bridge.path.log_snr(bridge.time(bridge.t_min)).item()
        raise ValueError(
            f"--time_mean {settings.time_mean:g} with --time_std {settings.time_std:g} asks for less noise than there "
            f"is at any time: log(c/b) is {least:.2f} or more"
        )


class Uncertainty(nn.Module):
    """What is learned of the losses' size: u(c_noise), and L / e^u + u in the place of L (EDM2, Eq. 21).

    It is smallest at u = log L: then every time has the same share in the gradient. One layer on Fourier features;
    u = 0 at the beginning.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fourier = Fourier(FEATURES)
        self.weight = nn.Parameter(torch.zeros(FEATURES))

    def forward(self, loss: Tensor, c_noise: Tensor) -> Tensor:
        """loss, c_noise: float32 `[B]`."""
        u = self.fourier(c_noise) @ self.weight / math.sqrt(FEATURES)
        return loss / u.exp() + u
