"""How equivariant is a model? Errors of network, denoiser and samples under every element of a group."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .model import BridgeModel
from .networks.convolutions import folded
from .symmetry.frames import seed_of
from .symmetry.groups import IDENTITY, Element, Group, act
from .symmetry.pairs import Batch

TIMES = (0.02, 0.25, 0.5, 0.75, 0.98)  # shares of [t_min, T] at which network and denoiser are measured


@dataclass(frozen=True)
class Row:
    """The errors of one map under one element g, over all images.

    mean, largest: of the relative error ‖S(g x) - g S(x)‖ / ‖S(x)‖ of an image. absolute: mean over pixels of
    |S(g x) - g S(x)| on the [0, 1] scale of images. changed: share of 8-bit values that differ after rounding; the last
    two are None for the network, whose output is no image.
    """

    map: str
    precision: str
    element: Element
    mean: float
    largest: float
    absolute: float | None
    changed: float | None


def compare(name: str, precision: str, outputs: Mapping[Element, Tensor], image: bool) -> list[Row]:
    """A row for every element g but the identity; outputs: S(g x) of all of them, `[B, C, H, W]`."""
    rows = []
    for g, output in outputs.items():
        if g != IDENTITY:
            wanted = act(g, outputs[IDENTITY])
            difference = (output - wanted).double()
            errors = difference.flatten(1).norm(dim=1) / wanted.double().flatten(1).norm(dim=1).clamp(min=1e-30)
            absolute = changed = None
            if image:
                levels = [((x.clamp(-1, 1) + 1) * 127.5).round() for x in (output, wanted)]
                absolute, changed = difference.abs().mean().item() / 2, (levels[0] != levels[1]).double().mean().item()
            rows.append(Row(name, precision, g, errors.mean().item(), errors.max().item(), absolute, changed))
    return rows


@torch.inference_mode()
def pointwise(model: BridgeModel, batch: Batch, group: Group, seed: int = 0) -> list[Row]:
    """Rows of network F and denoiser D on states of the bridge at five times, which turn with the pairs.

    In the precision that the model is set to.
    """
    bridge = model.bridge
    pairs = Batch(*(None if x is None else torch.cat([x] * len(TIMES)) for x in batch))  # type: ignore[arg-type]
    share = torch.tensor(TIMES, dtype=torch.float64).repeat_interleave(len(batch.source))
    t = (bridge.t_min + (bridge.T - bridge.t_min) * share).to(batch.source.device)
    generator = torch.Generator().manual_seed(seed_of(seed))
    noise = torch.randn(pairs.target.shape, generator=generator).to(pairs.target)
    x_t, scalings = bridge.state(pairs.target, model.endpoint(pairs.source), t, noise), bridge.precondition(t)
    networks, denoisers = {}, {}
    with folded(model.network):
        for g in group.elements:
            source, state = act(g, pairs.source), act(g, x_t)
            networks[g] = model.conditioned(source, pairs.label)(*scalings.inputs(state))
            denoisers[g] = model.denoiser(source, pairs.label)(state, t)
    precision = model.precision
    return compare("network", precision, networks, image=False) + compare("denoiser", precision, denoisers, image=True)
