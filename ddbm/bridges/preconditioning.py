"""How a network is turned into a denoiser; the table `PRECONDITIONINGS`."""

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .paths import Diffusion


def scale(coefficient: Tensor, x: Tensor) -> Tensor:
    """coefficient · x, for a coefficient that is a scalar or `[B]`, in the type of x."""
    if not coefficient.ndim:  # stays on the CPU: a GPU takes it as a number, and nobody waits
        return x * coefficient.to(x.dtype)
    return coefficient.reshape(-1, *[1] * (x.ndim - 1)).to(x) * x


def mean_inside(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over channels and pixels, inside the mask `[B, 1, H, W]` if there is one: `[B, C, H, W]` -> `[B]`.

    It is added up in float32 at least: the sum of a large image does not fit float16.
    """
    kind = torch.promote_types(values.dtype, torch.float32)
    if mask is None:
        return values.mean((1, 2, 3), dtype=kind)
    pixels = (mask.sum((1, 2, 3)) * values.shape[1]).clamp(min=1)
    return (values * mask).sum((1, 2, 3), dtype=kind) / pixels


def squared_error(D: Tensor, x_0: Tensor, mask: Tensor | None, tolerance: int = 0) -> Tensor:
    """Mean squared error inside the mask, `[B]`; the least over shifts of x_0 by up to `tolerance` rows and columns.

    Of a shift it is the mean over the pixels that both show; one that leaves less than a quarter of those inside does
    not count, as few pixels fit by chance. The shift is chosen without a gradient.
    """
    target, inside = x_0, mask
    if tolerance:
        here = torch.ones_like(x_0[:, :1], dtype=torch.bool) if mask is None else mask
        height, width = x_0.shape[2:]
        padded, seen = F.pad(x_0, [tolerance] * 4), F.pad(here, [tolerance] * 4)
        least, inside = mean_inside((D.detach() - x_0) ** 2, here), here
        for row, column in product(range(2 * tolerance + 1), repeat=2):
            window = (..., slice(row, row + height), slice(column, column + width))
            both = here & seen[window]
            error = mean_inside((D.detach() - padded[window]) ** 2, both)
            better = (error < least) & (4 * both.sum((1, 2, 3)) >= here.sum((1, 2, 3)))
            least, chosen = error.where(better, least), better[:, None, None, None]
            target, inside = padded[window].where(chosen, target), both.where(chosen, inside)
    return mean_inside((D - target) ** 2, inside)


class Preconditioning(NamedTuple):
    """D = c_skip x_t + c_out F(c_in x_t, c_noise, x_T); loss weight 1 / c_out². Float64, scalar or `[B]`."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor
    weight: Tensor

    def inputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the network is given for the state x `[B, C, H, W]`: c_in x, and c_noise as float32 `[B]`."""
        if self.c_noise.ndim:
            return scale(self.c_in, x), self.c_noise.to(device=x.device, dtype=torch.float32)
        filled = torch.full((x.shape[0],), self.c_noise.item(), dtype=torch.float32, device=x.device)
        return scale(self.c_in, x), filled

    def estimate(self, x: Tensor, output: Tensor) -> Tensor:
        """D from the state and the network's output F."""
        return scale(self.c_skip, x) + scale(self.c_out, output.to(x.dtype))

    def error(self, D: Tensor, x_0: Tensor, mask: Tensor | None, tolerance: int = 0) -> Tensor:
        """The weighted error of every estimate, `[B]`: the mean over pixels, as in `squared_error`."""
        return scale(self.weight, squared_error(D, x_0, mask, tolerance))


def ddbm(t: Tensor, path: Diffusion, variance: float, covariance: float) -> Preconditioning:
    """Scalings that keep input, output and loss of the network near unit variance (DDBM, Appendix A)."""
    a, b, c = path.coefficients(t)
    total = a**2 * variance + b**2 * variance + 2 * a * b * covariance + c**2
    unexplained = a**2 * (variance**2 - covariance**2) + variance * c**2
    c_in = torch.rsqrt(total)
    c_skip = (b * variance + a * covariance) / total
    return Preconditioning(c_skip, unexplained.sqrt() * c_in, c_in, 250 * torch.log(t), total / unexplained)


def none(t: Tensor, path: Diffusion, variance: float, covariance: float) -> Preconditioning:
    """The network estimates x_0 itself."""
    one = torch.ones_like(t)
    return Preconditioning(torch.zeros_like(t), one, one, 250 * torch.log(t), one)


def noise(t: Tensor, path: Diffusion, variance: float, covariance: float) -> Preconditioning:
    """The network estimates (x_t - x_0) / rho_t by plain mean squares, at 1000 t (I2SB, Eq. 12)."""
    rho2, one = path.rho2(t), torch.ones_like(t)
    return Preconditioning(one, -torch.sqrt(rho2), one, 1000 * t, 1 / rho2)


# name -> scalings at t from the path, and variance and covariance of target and source
PRECONDITIONINGS: dict[str, Callable[[Tensor, Diffusion, float, float], Preconditioning]] = {
    "ddbm": ddbm,
    "none": none,
    "noise": noise,
}
