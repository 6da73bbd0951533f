"""The optimiser's step: loss scale, clipping, AdamW, and steps left out because a loss or gradient is not finite.

Nothing here waits for the device: whether they are finite is decided there.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

BETA2 = 0.999
SCALE_FLOOR, SCALE_START, SCALE_CEILING = 1.0, 2.0**16, 2.0**24
SCALE_PATIENCE = 2000  # finite steps after which the loss scale doubles


def rectification(step: int, beta2: float = BETA2) -> float:
    """RAdam's factor of the learning rate at step 1, 2, ... (Liu et al. 2020, Algorithm 2); 0 at the first five."""
    limit = 2 / (1 - beta2) - 1
    rho = limit - 2 * step * beta2**step / (1 - beta2**step)
    if rho <= 5:
        return 0.0
    return math.sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho))


class Optimizer:
    """AdamW over `parameters`; a step whose loss or gradient is not finite changes nothing and is counted.

    half: gradients come from float16, so the loss is scaled; the scale halves after a step that overflows and doubles
    after 2000 that do not, between 1 and 2^24.
    """

    def __init__(self, parameters: Sequence[Tensor], *, weight_decay: float, clip: float, half: bool) -> None:
        self.parameters, self.clip, self.half = list(parameters), clip, half
        device = self.parameters[0].device
        self.adam = torch.optim.AdamW(
            self.parameters, lr=0.0, betas=(0.9, BETA2), weight_decay=weight_decay, fused=True
        )
        counts = {name: torch.zeros((), device=device) for name in ("finite_in_a_row", "skipped", "skipped_in_a_row")}
        self.state = {"scale": torch.tensor(SCALE_START if half else 1.0, device=device), **counts}

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss whose gradient `step` expects; that of a loss which is not finite is NaN, and so on every rank."""
        loss = loss * (1 + 0 * loss.detach())  # 1, or NaN
        return loss * self.state["scale"] if self.half else loss

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One step with the gradients that are there, clipped to the norm `clip` (0: as they are)."""
        state = self.state
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        norm = (norm.full_tensor() if hasattr(norm, "full_tensor") else norm) / state["scale"]
        bad = (~norm.isfinite()).float()
        if self.clip or self.half:
            limit = (self.clip / (norm + 1e-6)).clamp(max=1) if self.clip else torch.ones_like(norm)
            torch._foreach_mul_(grads, limit / state["scale"])
        for group in self.adam.param_groups:
            group["lr"] = lr
        self.adam.found_inf = bad  # type: ignore[attr-defined]  # the fused step leaves everything as it is
        self.adam.step()
        state["skipped"] += bad
        state["skipped_in_a_row"].add_(1).mul_(bad)
        if self.half:
            state["finite_in_a_row"].add_(1).mul_(1 - bad)
            grow = (state["finite_in_a_row"] >= SCALE_PATIENCE).float()
            state["finite_in_a_row"].mul_(1 - grow)
            state["scale"].mul_(1 + grow).mul_(1 - bad / 2).clamp_(SCALE_FLOOR, SCALE_CEILING)

    def state_dict(self) -> dict[str, Any]:
        return {"adam": self.adam.state_dict(), "counts": self.state}

    def load_state_dict(self, state: dict[str, Any], half: bool) -> None:
        """Moments and counts of a saved state, not its settings; half: it has a loss scale to go on with."""
        self.adam.load_state_dict(state["adam"] | {"param_groups": self.adam.state_dict()["param_groups"]})
        for name, value in self.state.items():
            if name not in ("scale", "finite_in_a_row") or (self.half and half):
                value.copy_(state["counts"][name])
