"""What a network is trained to do: what is drawn for a step, and the loss of every image; the table `OBJECTIVES`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..bridges.preconditioning import mean_inside
from ..config import TrainConfig
from ..model import BridgeModel
from ..symmetry.averaging import disagreement
from ..symmetry.frames import seed_of
from ..symmetry.groups import IDENTITY, Element, act
from ..symmetry.pairs import Batch
from .times import Uncertainty, check_times, draw_times, uniform_times

Copies = Mapping[str, nn.Module]  # networks with averages of the weights, by the names in `follows`
GOLDEN = (5**0.5 - 1) / 2  # its multiples fill [0, 1] evenly, however many there are


class Objective(Protocol):
    """What the trainer asks: draws for a step, and of these the loss of every pair, `[B]`.

    follows: averages of the network that it needs beside it, with their rates. uncertainty: what is learned of the
    losses' size from `c_noise`, if anything. network: the one trained or validated.
    """

    follows: Mapping[str, float] = {}
    uncertainty: nn.Module | None = None

    def draw(self, model: Any, batch: Batch, count: int, own: slice) -> Any:
        """What a step draws for its `count` pairs on all ranks, of these the rows `own`, whose pairs are `batch`.

        A part of them is `rows(part)` of it.
        """

    def __call__(self, model: Any, network: nn.Module, copies: Copies, draw: Any) -> Tensor: ...
    def c_noise(self, model: Any, draw: Any) -> Tensor: ...
    def validation(self, model: Any, network: nn.Module, batch: Batch) -> Tensor:
        """Losses that runs are compared by; what is drawn for a pair depends on the seed and its index alone."""


class Draw(NamedTuple):
    """Pairs of a batch and what is drawn for them; images `[B, C, H, W]`, t float64 `[B]`, noise as the target."""

    target: Tensor
    source: Tensor
    mask: Tensor | None
    label: Tensor | None
    t: Tensor
    noise: Tensor
    g: Element = IDENTITY  # of the model's group, the same for all

    def rows(self, part: slice) -> "Draw":
        parts: dict[str, Any] = {name: x[part] for name, x in self._asdict().items() if isinstance(x, Tensor)}
        return self._replace(**parts)


def weighted_error(
    model: BridgeModel, network: nn.Module, draw: Draw, tolerance: int = 0
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """The weighted error of the denoiser (DDBM, Eq. 11), `[B]`; what the network was given, and what it answered.

    tolerance: pixels by which the target may lie off.
    """
    bridge, scalings = model.bridge, model.bridge.precondition(draw.t)
    x_t = bridge.state(draw.target, model.endpoint(draw.source), draw.t, draw.noise, draw.mask)
    inputs = scalings.inputs(x_t)
    output = model.conditioned(draw.source, draw.label, network)(*inputs)
    return scalings.error(scalings.estimate(x_t, output), draw.target, draw.mask, tolerance), inputs, output


class Denoising:
    """The weighted error of the denoiser."""

    follows: Mapping[str, float] = {}

    def __init__(self, settings: TrainConfig | None = None) -> None:
        self.settings = settings = settings or TrainConfig()
        self.uncertainty: nn.Module | None = Uncertainty() if settings.loss_weighting == "learned" else None

    def draw(self, model: BridgeModel, batch: Batch, count: int, own: slice) -> Draw:
        """Times, noise and an element of the group; then, where they are asked for, samples of the latents."""
        u = torch.rand(count, dtype=torch.float64, device=batch.target.device)
        t = draw_times(self.settings, model.bridge, u)[own]
        latents = model.latents

        def drawn(like: Tensor) -> Tensor:
            shape = (count, latents.target_channels, latents.height, latents.width)
            return torch.randn(shape, dtype=like.dtype, device=like.device)[own]

        noise, elements = drawn(batch.target), model.group.elements
        g = elements[int(torch.randint(len(elements), ()))]
        encoded = model.unpacked if self.settings.packed else model.encoded
        target, source, _, mask, label = encoded(batch, drawn if self.settings.latents == "sample" else None)
        return Draw(target, source, mask, label, t, noise, g)

    def __call__(self, model: BridgeModel, network: nn.Module, copies: Copies, draw: Draw) -> Tensor:
        return weighted_error(model, network, draw, self.settings.align_tolerance)[0]

    def c_noise(self, model: BridgeModel, draw: Draw) -> Tensor:
        return model.bridge.precondition(draw.t).c_noise.float()

    def validation(self, model: BridgeModel, network: nn.Module, batch: Batch) -> Tensor:
        """The weighted error, also where something is trained beside it, at uniform times."""
        target, source, index, mask, label = model.encoded(batch)
        u = index.cpu().double().add(0.5).mul(GOLDEN).remainder(1)
        t = uniform_times(model.bridge, u).to(target.device)
        streams = (torch.Generator().manual_seed(seed_of(self.settings.seed, i)) for i in index.tolist())
        noise = torch.stack([torch.randn(target.shape[1:], generator=stream) for stream in streams]).to(target.device)
        return weighted_error(model, network, Draw(target, source, mask, label, t, noise))[0]


class Regularised(Denoising):
    """The same and `weight` times the network's disagreement with its teacher on the turned pair (SPDM's +Reg)."""

    def __init__(self, settings: TrainConfig) -> None:
        super().__init__(settings)
        self.follows = {"teacher": settings.teacher_rate}

    def __call__(self, model: BridgeModel, network: nn.Module, copies: Copies, draw: Draw) -> Tensor:
        error, inputs, output = weighted_error(model, network, draw, self.settings.align_tolerance)
        teacher = model.conditioned(act(draw.g, draw.source), draw.label, copies["teacher"])
        penalty = disagreement(output, teacher, *inputs, draw.g)
        return error + self.settings.regularization_weight * mean_inside(penalty, draw.mask)


OBJECTIVES: dict[str, Callable[[TrainConfig], Objective]] = {"denoising": Denoising, "regularised": Regularised}


def objective_of(settings: TrainConfig, model: BridgeModel) -> Objective:
    """The objective that the settings ask for, of such a model."""
    if settings.regularization_weight and len(model.group) == 1:
        raise ValueError("--regularization_weight needs a group to be symmetric under: add --group, such as D4")
    check_times(settings, model.bridge)
    return OBJECTIVES["regularised" if settings.regularization_weight else "denoising"](settings)
