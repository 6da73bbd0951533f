"""How equivariant is a model? Errors of its parts and of samples under every element of a group."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .model import BridgeModel
from .networks.convolutions import folded
from .symmetry.frames import seed_of
from .symmetry.groups import IDENTITY, Element, Group, act
from .symmetry.pairs import Batch

PARTS = ("encoder", "network", "denoiser", "decoder")  # maps of a model; the outer two where it has a codec
TIMES = (0.02, 0.25, 0.5, 0.75, 0.98)  # shares of [t_min, T] at which network and denoiser are measured


@dataclass(frozen=True)
class Row:
    """The errors of one map under one element g, over all images.

    mean, largest: of the relative error ‖S(g x) - g S(x)‖ / ‖S(x)‖ of an image. absolute: mean over pixels of
    |S(g x) - g S(x)| on the [0, 1] scale of images. changed: share of 8-bit values that differ after rounding; the last
    two are None where the output is no image: for the network, and for latents.
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
    """Rows of `PARTS`: network F and denoiser D on states of the bridge at five times, which turn with the pairs.

    With a codec F and D are of latents, the encoder is of sources, the decoder of the targets' latents. In the
    precision that the model is set to.
    """
    bridge, coded = model.bridge, bool(model.codec.digest)
    with folded(model):
        latents = model.encoded(batch)
    pairs = Batch(*(None if x is None else torch.cat([x] * len(TIMES)) for x in latents))  # type: ignore[arg-type]
    share = torch.tensor(TIMES, dtype=torch.float64).repeat_interleave(len(batch.source))
    t = (bridge.t_min + (bridge.T - bridge.t_min) * share).to(batch.source.device)
    generator = torch.Generator().manual_seed(seed_of(seed))
    noise = torch.randn(pairs.target.shape, generator=generator).to(pairs.target)
    x_t, scalings = bridge.state(pairs.target, model.endpoint(pairs.source), t, noise), bridge.precondition(t)
    outputs: dict[str, dict[Element, Tensor]] = {part: {} for part in PARTS}
    with folded(model):
        for g in group.elements:
            if coded:
                turned = batch.turned(g)
                outputs["encoder"][g] = model.encode(turned.source, turned.mask)
                outputs["decoder"][g] = model.decode(act(g, latents.target))
            source, state = act(g, pairs.source), act(g, x_t)
            outputs["network"][g] = model.conditioned(source, pairs.label)(*scalings.inputs(state))
            outputs["denoiser"][g] = model.denoiser(source, pairs.label)(state, t)
    last = "decoder" if coded else "denoiser"  # whose output is an image
    return [row for part in PARTS for row in compare(part, model.precision, outputs[part], part == last)]
