"""Settings -> network + bridge = `BridgeModel`; `load(path)` and `sample(model, source)` are the library calls."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .bridges.bridge import Bridge
from .bridges.samplers import Plan, plan
from .codecs import Codec, Pixels, Standardised, Stored, open_codec
from .config import Config, Header, ImageShape
from .files import checkpoint
from .networks.backbones import BACKBONES
from .networks.convolutions import folded
from .networks.unet import check_size, multipliers
from .settings import choose, differences, from_dict, to_dict, unknown
from .symmetry.averaging import Averaged, Denoiser, Network, averaged
from .symmetry.frames import Noise, NoiseSource, canonical_frame, turn_each
from .symmetry.groups import GROUPS, IDENTITY, Group, inverse
from .symmetry.pairs import Batch


class BridgeModel(nn.Module):
    """A U-Net and a bridge, between the latents of a codec. Images are float32 `[B, C, H, W]` in [-1, 1]."""

    header, section = Header, "model"  # of its checkpoints; the settings of the network among theirs

    def __init__(self, config: Config, images: ImageShape, codec: Codec | None = None) -> None:
        super().__init__()
        codec = codec or Pixels()
        cell = codec.factor
        inside = replace(images, height=images.height // cell, width=images.width // cell)
        check_size(images.height, images.width, len(multipliers(config.model, inside)), cell)
        self.config, self.images, self.latents = config, images, codec.shape(images)
        self.group = choose(GROUPS, config.model.group, "group")
        self.group.check_size(images.height, images.width)
        self.bridge = Bridge(config.bridge)
        if config.model.condition == "none" and config.bridge.source_noise and not config.bridge.ot:
            raise ValueError("--source_noise needs --condition source, or a path without noise of its own (--ot true)")
        self.network = choose(BACKBONES, config.model.backbone, "backbone")(config.model, self.latents, self.group)
        self.codec, self.precision = codec, "fp32"

    @property
    def described(self) -> dict[str, Any]:
        """What the header of a checkpoint says of the codec."""
        if not isinstance(self.codec, Standardised):
            return {}
        shift, scale = (tuple(v.flatten().tolist()) for v in (self.codec.shift, self.codec.scale))
        return {"codec": self.codec.digest, "shift": shift, "scale": scale}

    def differing(self, header: Header) -> list[str]:
        """In what a checkpoint is made for other images or another codec, as `name: old -> new`."""
        digests = [{"codec": digest[:8] or "pixels"} for digest in (header.codec, self.codec.digest)]
        return differences(to_dict(header.images), to_dict(self.images)) + differences(*digests)

    def adopt(self, header: Header) -> None:
        """Takes over what a checkpoint says of its latents."""
        if header.codec:
            self.standardise(header.shift, header.scale)

    def standardise(self, shift: Sequence[float], scale: Sequence[float]) -> None:
        """Latents are (z - shift) · scale from here on, channel by channel."""
        device = next(self.network.parameters()).device
        codec = self.codec.codec if isinstance(self.codec, Standardised) else self.codec
        self.codec = Standardised(codec, shift, scale).to(device)
        self.stored = Standardised(Stored(codec.latent_channels), shift, scale).to(device)

    def encode(self, images: Tensor, mask: Tensor | None = None, noise: NoiseSource | None = None) -> Tensor:
        """Latents of sources or targets, 0 outside the mask, as images are; with noise, samples of their posterior."""
        with autocast(images.device, "bf16" if self.precision == "bf16" else "fp32"):  # some overflow in fp16
            z = self.codec.encode(images, noise)
        return z if mask is None or z is images else z * self.codec.mask(mask)

    @torch.no_grad()
    def encoded(self, batch: Batch, noise: NoiseSource | None = None) -> Batch:
        """The latents of a batch of pairs, and where they are inside the mask."""
        if isinstance(self.codec, Pixels):
            return batch
        mask = None if batch.mask is None else self.codec.mask(batch.mask)
        target, source = (self.encode(x, batch.mask, noise) for x in (batch.target, batch.source))
        return batch._replace(target=target, source=source, mask=mask)

    @torch.no_grad()
    def unpacked(self, batch: Batch, noise: NoiseSource | None = None) -> Batch:
        """The same of a batch whose images are what `Stored` takes, and whose mask is in latent pixels."""
        target, source = (
            z if batch.mask is None else z * batch.mask
            for z in (self.stored.encode(x, noise) for x in (batch.target, batch.source))
        )
        return batch._replace(target=target, source=source)

    def decode(self, z: Tensor) -> Tensor:
        """Images of latents, with the target's channels."""
        with autocast(z.device, "bf16" if self.precision == "bf16" else "fp32"):
            return self.codec.decode(z, self.images.target_channels)

    def clip(self, D: Tensor) -> Tensor:
        """An estimate of x_0, within what targets are in."""
        return D if self.codec.clip is None else D.clamp(*self.codec.clip)

    def endpoint(self, source: Tensor) -> Tensor:
        """x_T: the source with as many channels as the target; if they differ, the mean of its channels, repeated."""
        channels = self.latents.target_channels
        return source if source.shape[1] == channels else source.mean(1, keepdim=True).repeat(1, channels, 1, 1)

    def condition(self, source: Tensor) -> Tensor | None:
        """What the network sees of the source; noise on that is never part of it."""
        return source if self.config.model.condition == "source" else None

    def conditioned(self, source: Tensor, label: Tensor | None = None, network: nn.Module | None = None) -> Network:
        """The network, or a copy of it, as the bridge sees it: (c_in x_t, c_noise) -> F, in the model's precision."""
        own, seen = network or self.network, self.condition(source)

        def run(x: Tensor, c_noise: Tensor) -> Tensor:
            with autocast(x.device, self.precision):
                return own(x, c_noise, seen, label)

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
        check_size(height, width, self.network.levels, self.codec.factor)

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
        if label is not None and not 0 <= label.min() <= label.max() < classes:
            raise ValueError(f"labels must lie in 0 .. {classes - 1}, found {label.min()} .. {label.max()}")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The arithmetic of the network: fp32 as it is, bf16 and fp16 by autocast."""
    kind = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, kind, enabled=precision != "fp32")


def load(
    path: str | Path, weights: str = "ema", device: str | torch.device = "cpu", codec: str = ""
) -> BridgeModel:  # fmt: skip
    """The model of a checkpoint or of a run's newest one, in evaluation mode; weights: "ema" or "model".

    codec: where the codec lies that it was trained with, if no longer where it lay then. Raises ValueError for what is
    not a whole checkpoint, and for another codec than its own. Only tensors and JSON are read, nothing is executed.
    """
    found = checkpoint.find(path, print)
    header = from_dict(Header, checkpoint.read_header(found, "model"), str(found / "config.json"))
    model = BridgeModel(header.config, header.images, codec_of(header, codec))
    checkpoint.load_weights(model.network, checkpoint.read_weights(found, weights), found)
    return model.to(device).eval()


def codec_of(header: Header, place: str = "") -> Codec:
    """The codec that a checkpoint was trained with. Raises ValueError for any other."""
    if not header.codec:
        if place:
            raise ValueError(f"the checkpoint's bridge is between pixels, found --codec {place}: leave it out")
        return Pixels()
    place = place or header.config.model.codec
    try:
        codec = open_codec(place, header.images)
    except (ValueError, OSError) as error:
        if Path(place).exists():
            raise
        raise ValueError(f"the checkpoint's codec has moved: say with --codec where it lies now; {error}") from None
    if codec.digest != header.codec:
        raise ValueError(
            f"the codec at {place} is another than the checkpoint was trained with (digest {codec.digest[:8]}, "
            f"expected {header.codec[:8]}): give that one with --codec"
        )
    return Standardised(codec, header.shift, header.scale)


class Trajectory(NamedTuple):
    """Every evaluation of the denoiser: times t float64 `[S]`, states x_t and estimates D `[S, B, C, H, W]`.

    With adaptive steps t is the first image's. States of `symmetrize="canonical"` are turned back. Between latents both
    are decoded, states as `Bridge.shown`: a decoder knows no latents with far stronger noise than its own are large.
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
    is clipped to [-1, 1] at every step, as in DDBM; that of latents is not. Raises ValueError for what does not fit.
    """
    acting = sampling_group(model, symmetrize, group)
    model.check_images(source)
    model.check_beside(source, seed, index, mask, label)
    acting.check_size(*source.shape[2:])

    frames = [canonical_frame(x, acting, None if mask is None else mask[i]) for i, x in enumerate(source)]
    back = [inverse(g) for g in frames]
    if symmetrize == "canonical":
        source = turn_each(frames, source)
        mask = None if mask is None else turn_each(frames, mask)
    indices = range(len(source)) if index is None else index
    draw = Noise(seed, indices, [IDENTITY] * len(source) if symmetrize == "canonical" else back)
    cells = None if mask is None else model.codec.mask(mask)
    noise: NoiseSource = draw if cells is None else lambda like: draw(like) * cells

    average, path, latent = symmetrize == "average", [], bool(model.codec.digest)
    encode, decode = (averaged(f, acting) if average and latent else f for f in (model.encode, model.decode))
    ready = plan_of(model, sampler, nfe, grid, symmetrize, acting, **settings)

    def finished(x: Tensor) -> Tensor:
        x = decode(x) if latent else x
        x = x * mask if latent and mask is not None else x
        return turn_each(back, x) if symmetrize == "canonical" else x

    with folded(model):
        z = encode(source)
        z = z * cells if latent and cells is not None else z
        denoise = Averaged(model.denoiser, z, label, acting) if average else model.denoiser(z, label)

        def clipped(x: Tensor, t: Tensor) -> Tensor:
            D = model.clip(denoise(x, t))
            D = D if cells is None else D * cells  # outside the mask both ends of the bridge are 0, as in the data
            if trajectory:
                path.append((t.flatten()[0], x, D))
            return D

        x_0, spent = ready.run(clipped, model.endpoint(z), noise)
        x_0 = finished(model.clip(x_0))
        if not trajectory:
            return Samples(x_0, spent)
        times, states, estimates = zip(*path, strict=True)
        states = tuple(map(model.bridge.shown, states, times)) if latent else states
        whole = [torch.stack([finished(x) for x in images]) for images in (states, estimates)]
    return Samples(x_0, spent, Trajectory(torch.stack(times), *whole))


SYMMETRIZE = ("none", "average", "canonical")


def plan_of(
    model: BridgeModel, sampler: str, nfe: int, grid: str, symmetrize: str, acting: Group, **settings: float
) -> Plan:
    """How a sampler spends `nfe` evaluations on the model's bridge; an average over the group takes |G| a call.

    Raises ValueError for what is not known and for budgets that are too small; `Plan.check` tries the settings.
    """
    price = len(acting) if symmetrize == "average" else 1
    return plan(sampler, model.bridge, nfe, grid, price, **settings)


def sampling_group(model: BridgeModel, symmetrize: str, group: str) -> Group:
    """The group of sampling: the one asked for, or the model's."""
    if symmetrize not in SYMMETRIZE:
        raise unknown("symmetrize", symmetrize, SYMMETRIZE)
    acting = choose(GROUPS, group, "group") if group else model.group
    if symmetrize != "none" and len(acting) == 1:
        raise ValueError(f"--symmetrize {symmetrize} needs a group, and the model has none: add --group, such as D4")
    return acting
