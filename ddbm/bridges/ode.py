"""The flow of the bridge solved with adaptive steps, every image on its own."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from ..symmetry.averaging import Denoiser
from .bridge import Bridge
from .preconditioning import scale

FIRST, LONGEST = 0.05, 1.0  # steps in λ


@cache
def tableau() -> tuple[list[float], list[list[float]], list[float]]:
    """Nodes, stages (the last row is the solution of order 5) and error weights of RK5(4)7M, Dormand & Prince 1980."""
    from scipy.integrate import RK45  # which takes a fifth of a second to import

    stages = [row[:i] for i, row in enumerate(RK45.A.tolist())]
    return [*RK45.C.tolist(), 1], [*stages, RK45.B.tolist()], RK45.E.tolist()


def combined(weights: Sequence[float], stages: Sequence[Tensor]) -> Tensor:
    return torch.stack([w * stage for w, stage in zip(weights, stages, strict=True) if w]).sum(0)


def integrate(
    bridge: Bridge, denoise: Denoiser, x: Tensor, x_T: Tensor, start: Tensor, end: Tensor, rtol: float
) -> Tensor:
    """The state at time `end` of the flow through x at `start`, both inside (0, T): `[B, C, H, W]`.

    With λ = log(b/m), m of `Path.kept`, and y = (x - a x_T) / m the flow is dy/dλ = e^λ D. An image's steps keep the
    root mean square of the error in x below rtol (1 + |x|).
    """
    path, count, (nodes, rows, weights) = bridge.path, len(x), tableau()
    first, last = path.log_snr(start), path.log_snr(end)

    def state(y: Tensor, lam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t = path.time_of(lam)
        m = path.kept(t)
        return scale(bridge.coefficients(t).a, x_T) + scale(m, y), t, m

    def slope(y: Tensor, lam: Tensor) -> Tensor:
        at, t, _ = state(y, lam)
        return scale(lam.exp(), denoise(at, t))

    lam, step = first.repeat(count), torch.full((count,), FIRST, dtype=torch.float64)
    y = scale(1 / path.kept(start), x - scale(bridge.coefficients(start).a, x_T))
    k = slope(y, lam)
    while (left := last - lam).max() > 0:
        step = torch.minimum(step, left.clamp(max=LONGEST))
        stages = [k]
        for node, row in zip(nodes[1:], rows[1:], strict=True):
            z = y + scale(step, combined(row, stages))
            stages.append(slope(z, lam + node * step))
        error = scale(step, combined(weights, stages))
        at, _, m = state(z, lam + step)
        ratio = scale(m, error) / (rtol * (1 + at.abs()))
        size = ratio.double().flatten(1).square().mean(1).sqrt().cpu()
        taken = size <= 1
        keep = taken.to(y.device).reshape(-1, *[1] * (y.ndim - 1))
        y, k = torch.where(keep, z, y), torch.where(keep, stages[-1], k)
        lam = torch.where(taken, torch.where(step == left, last, lam + step), lam)
        step = torch.where(
            (step == left) & taken, torch.zeros_like(step), step * (0.9 * size.clamp(min=1e-10) ** -0.2).clamp(0.2, 5)
        )
    return state(y, last)[0]
