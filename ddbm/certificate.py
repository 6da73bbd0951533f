"""How equivariant is a model? Errors of network, denoiser and samplers under every element of a group."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .bridges.bridge import scale
from .bridges.samplers import SAMPLERS
from .model import BridgeModel, sample
from .symmetry.frames import seed_of
from .symmetry.groups import IDENTITY, Element, Group, act, inverse

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


def compare(name: str, precision: str, g: Element, turned: Tensor, wanted: Tensor, image: bool) -> Row:
    """A row from S(g x) and g S(x), both `[B, C, H, W]`."""
    difference = (turned - wanted).double()
    errors = difference.flatten(1).norm(dim=1) / wanted.double().flatten(1).norm(dim=1).clamp(min=1e-30)
    absolute = changed = None
    if image:
        levels = [((x.clamp(-1, 1) + 1) * 127.5).round() for x in (turned, wanted)]
        absolute, changed = difference.abs().mean().item() / 2, (levels[0] != levels[1]).double().mean().item()
    return Row(name, precision, g, errors.mean().item(), errors.max().item(), absolute, changed)


@torch.inference_mode()
def certify(
    model: BridgeModel,
    target: Tensor,
    source: Tensor,
    group: Group,
    *,
    nfe: int = 20,
    symmetrize: str = "none",
    seed: int = 0,
    label: Tensor | None = None,
) -> Iterator[Row]:
    """Rows for network, denoiser and every sampler of fixed steps, under every element of `group` but the identity.

    target, source: `[B, C, H, W]` in [-1, 1], pairs the model knows how to bridge; network and denoiser are measured on
    states of the bridge between them, at five times; the samplers with the budget `nfe`, `symmetrize`, and noise that
    turns with the source. In the precision the model is set to.
    """
    maps = {**pointwise(model, target, source, seed, label), **samplers(model, group, nfe, symmetrize, seed, label)}
    group.check_size(*source.shape[2:])
    for name, run in maps.items():
        outputs = run(IDENTITY, source)
        for g in group.elements:
            if g != IDENTITY:
                yield compare(name, model.precision, g, run(g, act(g, source)), act(g, outputs), name != "network")


Map = Callable[[Element, Tensor], Tensor]  # (g, g x_T) -> S(g x_T)


def pointwise(model: BridgeModel, target: Tensor, source: Tensor, seed: int, label: Tensor | None) -> dict[str, Map]:
    """Network F and denoiser D on bridge states at several times, the states turned with the source."""
    bridge, batch = model.bridge, len(source)
    generator = torch.Generator().manual_seed(seed_of(seed))
    share = torch.tensor(TIMES, dtype=torch.float64).repeat_interleave(batch)
    t = (bridge.t_min + (bridge.T - bridge.t_min) * share).to(source.device)
    a, b, c = bridge.coefficients(t)
    many = (len(TIMES), 1, 1, 1)
    noise = torch.randn(target.repeat(many).shape, generator=generator).to(target)
    x_t = scale(a, model.endpoint(source).repeat(many)) + scale(b, target.repeat(many)) + scale(c, noise)
    labels = None if label is None else label.repeat(len(TIMES))
    scales = bridge.precondition(t)

    def network(g: Element, turned: Tensor) -> Tensor:
        run = model.conditioned(turned.repeat(many), labels)
        return run(scale(scales.c_in, act(g, x_t)), scales.c_noise.float())

    def denoiser(g: Element, turned: Tensor) -> Tensor:
        return model.denoiser(turned.repeat(many), labels)(act(g, x_t), t)

    return {"network": network, "denoiser": denoiser}


def samplers(
    model: BridgeModel, group: Group, nfe: int, symmetrize: str, seed: int, label: Tensor | None
) -> dict[str, Map]:
    """Every sampler as a map of the source."""

    def with_sampler(name: str) -> Map:
        return lambda g, turned: (
            sample(
                model, turned, sampler=name, nfe=nfe, symmetrize=symmetrize, group=group.name, seed=seed, label=label
            ).x_0
        )

    return {name: with_sampler(name) for name, own in SAMPLERS.items() if not own.adaptive}


def turned_back(model: BridgeModel, source: Tensor, group: Group, **settings: object) -> list[list[Tensor]]:
    """For every g: g x, S(g x), g^-1 S(g x) and its difference from S(x); x: one image `[C, H, W]`; for `sample`."""
    rows, first = [], None
    for g in group.elements:
        turned = act(g, source[None])
        output = sample(model, turned, group=group.name, **settings).x_0  # type: ignore[arg-type]
        back = act(inverse(g), output)
        first = back if first is None else first
        rows.append([turned[0], output[0], back[0], (back - first)[0]])
    return rows
