"""What a network is trained to do: the loss of every image of a draw; the table `OBJECTIVES`."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from ..bridges.preconditioning import mean_inside
from ..config import TrainConfig
from ..model import BridgeModel
from ..symmetry.averaging import disagreement
from ..symmetry.groups import IDENTITY, Element, Group, act

Copies = Mapping[str, nn.Module]  # networks with averages of the weights, by the names in `follows`


class Draw(NamedTuple):
    """Pairs of a batch and what is drawn for them; images `[B, C, H, W]`, t float64 `[B]`, noise as the target."""

    target: Tensor
    source: Tensor
    mask: Tensor | None
    label: Tensor | None
    t: Tensor
    noise: Tensor
    g: Element = IDENTITY  # of the model's group, the same for all


class Objective(Protocol):
    """A function of the model and one draw: the loss of every image, `[B]`.

    follows: averages of the network that it needs beside it, with their rates. network: the one trained or validated.
    """

    @property
    def follows(self) -> Mapping[str, float]: ...
    def __call__(self, model: BridgeModel, network: nn.Module, copies: Copies, draw: Draw) -> Tensor: ...


def weighted_error(model: BridgeModel, network: nn.Module, draw: Draw) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """The weighted error of the denoiser (DDBM, Eq. 11), `[B]`; what the network was given, and what it answered."""
    bridge, scalings = model.bridge, model.bridge.precondition(draw.t)
    x_t = bridge.state(draw.target, model.endpoint(draw.source), draw.t, draw.noise, draw.mask)
    inputs = scalings.inputs(x_t)
    output = model.conditioned(draw.source, draw.label, network)(*inputs)
    return scalings.error(scalings.estimate(x_t, output), draw.target, draw.mask), inputs, output


class Denoising:
    """The weighted error of the denoiser."""

    follows: Mapping[str, float] = {}

    def __call__(self, model: BridgeModel, network: nn.Module, copies: Copies, draw: Draw) -> Tensor:
        return weighted_error(model, network, draw)[0]


class Regularised:
    """The same and `weight` times the network's disagreement with its teacher on the turned pair (SPDM's +Reg)."""

    def __init__(self, weight: float, rate: float) -> None:
        self.weight, self.follows = weight, {"teacher": rate}

    def __call__(self, model: BridgeModel, network: nn.Module, copies: Copies, draw: Draw) -> Tensor:
        error, inputs, output = weighted_error(model, network, draw)
        teacher = model.conditioned(act(draw.g, draw.source), draw.label, copies["teacher"])
        penalty = disagreement(output, teacher, *inputs, draw.g)
        return error + self.weight * mean_inside(penalty, draw.mask)


OBJECTIVES: dict[str, Callable[[TrainConfig], Objective]] = {
    "denoising": lambda s: Denoising(),
    "regularised": lambda s: Regularised(s.regularization_weight, s.teacher_rate),
}


def objective_of(settings: TrainConfig, group: Group) -> Objective:
    """The objective that the settings ask for, of a model with this group."""
    if settings.regularization_weight and len(group) == 1:
        raise ValueError("--regularization_weight needs a group to be symmetric under: add --group, such as D4")
    return OBJECTIVES["regularised" if settings.regularization_weight else "denoising"](settings)
