"""Settings -> network + bridge = `BridgeModel`; `load(path)` and `sample(model, source)` are the library calls."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .bridges.bridge import Bridge
from .bridges.samplers import SAMPLERS, check_settings, solve
from .config import Config, ModelConfig
from .files import checkpoint
from .networks.layers import LAYERS
from .networks.unet import UNet
from .settings import choose, from_dict, unknown
from .symmetry.averaging import Averaged, Denoiser, Network
from .symmetry.frames import Noise, NoiseSource, canonical_frame, turn_each
from .symmetry.groups import GROUPS, IDENTITY, Group, inverse


@dataclass(frozen=True)
class ImageShape:
    """What a model needs to know of its data."""

    target_channels: int
    source_channels: int
    height: int
    width: int
    num_classes: int


@dataclass(frozen=True)
class Header:
    """What a checkpoint says of itself: `config.json`."""

    config: Config
    images: ImageShape
    step: int


def channel_mult(settings: ModelConfig, images: ImageShape) -> tuple[int, ...]:
    """The channel multiplier of every level: the setting, or DDBM's choice for the image size."""
    if settings.channel_mult:
        return settings.channel_mult
    size = max(images.height, images.width)
    return (1, 1, 2, 2, 4, 4) if size >= 256 else (1, 1, 2, 3, 4) if size >= 128 else (1, 2, 3, 4)


def check_size(images: ImageShape, levels: int) -> None:
    """Raises ValueError unless a U-Net of `levels` levels can halve the images."""
    unit = 2 ** (levels - 1)
    if images.height % unit or images.width % unit:
        h, w = (max(1, round(n / unit)) * unit for n in (images.height, images.width))
        raise ValueError(
            f"images of {images.height}x{images.width} cannot be halved {levels - 1} times: use --image_size {h}x{w}, "
            f"or fewer levels (--channel_mult has {levels} entries)"
        )


def check_fields(settings: ModelConfig, mult: tuple[int, ...], order: int) -> None:
    """Raises ValueError unless the channels of every level are whole regular fields of `order` channels."""
    unit = math.lcm(*(order // math.gcd(order, m) for m in mult))
    if settings.model_channels % unit:
        raise ValueError(
            f"--model_channels {settings.model_channels} times {','.join(map(str, mult))} cannot be cut into regular "
            f"fields of group {settings.group}, {order} channels each: "
            f"try --model_channels {max(1, round(settings.model_channels / unit)) * unit}"
        )


def check_heads(settings: ModelConfig, mult: Sequence[int], order: int) -> None:
    """Raises ValueError unless the channels of all levels with attention can be cut into heads of whole fields."""
    channels, head = [settings.model_channels * m for m in mult], settings.num_head_channels
    if head % order or any(c % head for c in channels):
        common = math.gcd(*channels)
        fitting = [n for n in range(order, common + 1, order) if common % n == 0]
        raise ValueError(
            f"--num_head_channels {head} does not cut the channels with attention, "
            f"{', '.join(map(str, sorted(set(channels))))}, into heads"
            + (f" of whole fields of {order}" if order > 1 else "")
            + f": try --num_head_channels {min(fitting, key=lambda n: abs(n - head))}"
        )


class BridgeModel(nn.Module):
    """A U-Net and a bridge. Images are float32 `[B, C, H, W]` in [-1, 1]."""

    def __init__(self, config: Config, images: ImageShape) -> None:
        super().__init__()
        settings, mult = config.model, channel_mult(config.model, images)
        self.config, self.images = config, images
        self.group = choose(GROUPS, settings.group, "group")
        self.bridge = Bridge(config.bridge)
        layers = choose(LAYERS, settings.layers, "layers")(self.group)
        self.group.check_size(images.height, images.width)
        check_size(images, len(mult))
        order = len(self.group) if settings.layers == "regular" else 1
        check_fields(settings, mult, order)
        attended = [level for level in range(len(mult)) if images.height // 2**level in settings.attention_resolutions]
        check_heads(settings, [mult[level] for level in attended] + [mult[-1]], order)
        self.network = UNet(
            layers,
            images.target_channels + images.source_channels,
            images.target_channels,
            model_channels=settings.model_channels,
            channel_mult=mult,
            num_res_blocks=settings.num_res_blocks,
            attention_levels=attended,
            num_head_channels=settings.num_head_channels,
            dropout=settings.dropout,
            num_classes=images.num_classes,
        )
        self.precision = "fp32"

    def endpoint(self, source: Tensor) -> Tensor:
        """x_T: the source with as many channels as the target; if they differ, the mean of its channels, repeated."""
        channels = self.images.target_channels
        return source if source.shape[1] == channels else source.mean(1, keepdim=True).repeat(1, channels, 1, 1)

    def conditioned(self, source: Tensor, label: Tensor | None = None, network: nn.Module | None = None) -> Network:
        """The network, or a copy of it, as the bridge sees it: (c_in x_t, c_noise) -> F, in the model's precision."""
        own = network or self.network

        def run(x: Tensor, c_noise: Tensor) -> Tensor:
            with autocast(x.device, self.precision):
                return own(x, c_noise, source, label)

        return run

    def denoiser(self, source: Tensor, label: Tensor | None = None) -> Denoiser:
        """(x_t, t) -> D(x_t, t, x_T) for the given sources."""
        network = self.conditioned(source, label)
        return lambda x, t: self.bridge.denoise(network, x, t)

    def check_images(self, source: Tensor) -> None:
        """Raises ValueError unless `source` is a batch that this model takes."""
        kind = next(self.parameters()).dtype
        if not isinstance(source, Tensor) or source.dtype != kind:
            raise ValueError(f"the model takes a tensor of {kind}, found {getattr(source, 'dtype', type(source))}")
        if source.ndim != 4 or source.shape[1] != self.images.source_channels:
            raise ValueError(
                f"the model takes sources [B, {self.images.source_channels}, H, W], found {list(source.shape)}"
            )
        if not len(source) or not source.abs().amax() <= 1 + 1e-3:  # NaN fails too
            raise ValueError("sources must be images in [-1, 1], at least one: bytes / 127.5 - 1")
        height, width = source.shape[2:]
        self.group.check_size(height, width)
        images = ImageShape(self.images.target_channels, source.shape[1], height, width, self.images.num_classes)
        check_size(images, len(channel_mult(self.config.model, self.images)))

    def check_beside(
        self, source: Tensor, seed: int, index: Sequence[int] | None, mask: Tensor | None, label: Tensor | None
    ) -> None:
        """Raises ValueError unless what comes with a batch of sources fits it."""
        count, classes = len(source), self.images.num_classes
        numbers = [] if index is None else [*index] if isinstance(index, Sequence) else [index]
        whole = all(type(n) is int and n >= 0 for n in (seed, *numbers))
        if not whole or (index is not None and len(numbers) != count):
            raise ValueError(f"seed and index must be integers from 0 on, {count} in index: found {seed!r}, {index!r}")
        wanted = (count, 1, *source.shape[2:])
        if mask is not None and (mask.dtype != torch.bool or mask.shape != wanted):
            raise ValueError(f"the mask must be bool {list(wanted)}, found {mask.dtype} {list(mask.shape)}")
        if (label is None) != (not classes):
            raise ValueError(
                f"the model has {classes} classes: " + ("say which, label int64 [B]" if classes else "no label")
            )
        if label is not None and (label.dtype != torch.int64 or label.shape != (count,)):
            raise ValueError(f"label must be int64 [{count}], found {label.dtype} {list(label.shape)}")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The arithmetic of the network: fp32 as it is, bf16 and fp16 by autocast."""
    kind = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, kind, enabled=precision != "fp32")


def load(path: str | Path, weights: str = "ema", device: str | torch.device = "cpu") -> BridgeModel:
    """The model of a checkpoint or of a run's newest one, in evaluation mode; weights: "ema" or "model".

    Raises ValueError for what is not a whole checkpoint. Only tensors and JSON are read, nothing is executed.
    """
    found = checkpoint.find(path, lambda message: print(f"warning: {message}"))
    header = from_dict(Header, checkpoint.read_header(found), str(found / "config.json"))
    model = BridgeModel(header.config, header.images)
    load_weights(model.network, checkpoint.read_weights(found, weights), found)
    return model.to(device).eval()


def load_weights(network: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Loads a state dict whose names and shapes must be those of the network."""
    check_weights(network.state_dict(), weights, path)
    network.load_state_dict(weights)


def check_weights(own: dict[str, Tensor], weights: dict[str, Tensor], path: Path) -> None:
    """Raises ValueError unless names and shapes are the same; the first that differs is named."""
    for name in sorted(own.keys() | weights.keys()):
        shapes = [list(d[name].shape) if name in d else "nothing" for d in (weights, own)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{path} does not fit its settings: {name} is {shapes[0]}, expected {shapes[1]}")


class Trajectory(NamedTuple):
    """Every evaluation of the denoiser: times t float64 `[S]`, states x_t and estimates D `[S, B, C, H, W]`.

    With adaptive steps t is the first image's. States of `symmetrize="canonical"` are turned back.
    """

    t: Tensor
    x: Tensor
    D: Tensor


class Samples(NamedTuple):
    """x_0: float32 `[B, C, H, W]` in [-1, 1]; nfe: network evaluations an image took, at most; trajectory or None."""

    x_0: Tensor
    nfe: int
    trajectory: Trajectory | None = None


@torch.inference_mode()
def sample(
    model: BridgeModel,
    source: Tensor,
    *,
    sampler: str = "dbim",
    nfe: int = 20,
    grid: str = "",
    symmetrize: str = "none",
    group: str = "",
    seed: int = 0,
    index: Sequence[int] | None = None,
    mask: Tensor | None = None,
    label: Tensor | None = None,
    trajectory: bool = False,
    **settings: float,
) -> Samples:
    """Samples one target for every source.

    source: `[B, C, H, W]` in [-1, 1]; nfe: the budget of network evaluations; grid: of `GRIDS`, default the sampler's;
    symmetrize: "none", "average" (over the group, |G| evaluations a step) or "canonical" (in the canonical frame of the
    source, exact for any network); group: of both and of the noise, default the model's; index: identity of each image,
    which with `seed` decides its noise whatever the batch (default 0 .. B-1); mask: bool `[B, 1, H, W]`, True where the
    image is defined; settings: those of the sampler (`churn`, `guidance`; `order`, `eta`; `rtol`). The estimate of x_0
    is clipped to [-1, 1] at every step, as in DDBM. Raises ValueError for what does not fit.
    """
    known = sampler_settings(sampler)
    for name in settings:
        if name not in known:
            raise ValueError(f"sampler {sampler} has no setting --{name}: it has {', '.join(known)}")
    acting = sampling_group(model, symmetrize, group)
    model.check_images(source)
    model.check_beside(source, seed, index, mask, label)
    acting.check_size(*source.shape[2:])

    frames = [canonical_frame(x, acting) for x in source] if len(acting) > 1 else [IDENTITY] * len(source)
    back = [inverse(g) for g in frames]
    if symmetrize == "canonical":
        source = turn_each(frames, source)
        mask = None if mask is None else turn_each(frames, mask)
    indices = range(len(source)) if index is None else index
    draw = Noise(seed, indices, [IDENTITY] * len(source) if symmetrize == "canonical" else back)
    noise: NoiseSource = draw if mask is None else lambda like: draw(like) * mask

    averaged, calls, path = symmetrize == "average", 0, []
    price = len(acting) if averaged else 1
    denoise = Averaged(model.denoiser, source, label, acting) if averaged else model.denoiser(source, label)

    def clipped(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += price
        D = denoise(x, t).clamp(-1, 1)
        D = D if mask is None else D * mask  # outside the mask both ends of the bridge are 0, as in the data
        if trajectory:
            path.append((t.flatten()[0], x, D))
        return D

    def turned_back(x: Tensor) -> Tensor:
        return turn_each(back, x) if symmetrize == "canonical" else x

    x_T = model.endpoint(source)
    x_0 = spend(sampler, nfe, price, model.bridge, clipped, x_T, noise, grid, **settings).clamp(-1, 1)
    if not trajectory:
        return Samples(turned_back(x_0), calls)
    times, states, estimates = zip(*path, strict=True)
    whole = [torch.stack([turned_back(x) for x in images]) for images in (states, estimates)]
    return Samples(turned_back(x_0), calls, Trajectory(torch.stack(times), *whole))


SYMMETRIZE = ("none", "average", "canonical")


def spend(
    sampler: str, nfe: int, price: int, bridge: Bridge, denoise: Denoiser, x_T: Tensor, noise: NoiseSource, grid: str,
    **settings: float,
) -> Tensor:  # fmt: skip
    """x_0 by a sampler that spends `nfe` evaluations, `price` for a call of `denoise`; more than 1 is an average's."""
    with priced(nfe, price):
        return solve(sampler, bridge, denoise, x_T, noise, nfe // price, grid, **settings)


def check_budget(
    model: BridgeModel, sampler: str, nfe: int, symmetrize: str, acting: Group, grid: str = "", **settings: float
) -> None:
    """Raises ValueError for settings and budgets that the sampler cannot work with."""
    price = len(acting) if symmetrize == "average" else 1
    with priced(nfe, price):
        check_settings(sampler, model.bridge, nfe // price, grid, **settings)


@contextmanager
def priced(nfe: int, price: int) -> Iterator[None]:
    """Says what a sampler's complaint about a budget means where a call costs `price` evaluations."""
    if price > 1 and nfe < price:
        raise ValueError(f"--nfe {nfe} is less than the {price} evaluations of one average over the group")
    try:
        yield
    except ValueError as error:
        if price == 1:
            raise
        spent = f"--nfe {nfe} is {nfe // price} x {price} evaluations, {price} an average"
        raise ValueError(f"{spent}: {error} averages") from None


def sampling_group(model: BridgeModel, symmetrize: str, group: str) -> Group:
    """The group of sampling: the one asked for, or the model's."""
    if symmetrize not in SYMMETRIZE:
        raise unknown("symmetrize", symmetrize, SYMMETRIZE)
    acting = choose(GROUPS, group, "group") if group else model.group
    if symmetrize != "none" and len(acting) == 1:
        raise ValueError(f"--symmetrize {symmetrize} needs a group, and the model has none: add --group, such as D4")
    return acting


def sampler_settings(sampler: str) -> list[str]:
    """Names of the keyword settings of a sampler."""
    return choose(SAMPLERS, sampler, "sampler").settings
