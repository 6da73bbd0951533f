"""The skeleton of all U-Nets, which knows no noise schedule and no kind of layers; ADM's (Dhariwal & Nichol 2021)."""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import CodecConfig, ImageShape, ModelConfig
from ..settings import choose
from ..symmetry.groups import Group
from .layers import LAYERS, Attention, PlainLayers, downsample, upsample, zero


def time_features(t: Tensor, channels: int) -> Tensor:
    """Cosines and sines of `t` `[B]` at geometric frequencies 1 .. 1/10000: `[B, channels]`."""
    half = channels // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], -1), (0, channels % 2))


def memory_format(device: torch.device) -> torch.memory_format:
    """How features lie in memory: channels last on a CPU and under torch.compile; a GPU without it was slower so."""
    last = device.type == "cpu" or torch.compiler.is_compiling()
    return torch.channels_last if last else torch.contiguous_format


class ResidualBlock(nn.Module):
    """Two convolutions around a scale and shift by the embedding, if any; `resample` halves or doubles the size inside.

    embedding: its width; 0: there is none.
    """

    def __init__(
        self, layers: PlainLayers, channels: int, out_channels: int, embedding: int, dropout: float, resample: str = ""
    ) -> None:
        super().__init__()
        resamplings: dict[str, Callable[[Tensor], Tensor]] = {"": nn.Identity(), "down": downsample, "up": upsample}
        self.resample = resamplings[resample]
        self.norm_in = layers.norm(channels)
        self.conv_in = layers.conv(channels, out_channels)
        self.embed = nn.Linear(embedding, 2 * (out_channels // layers.unit)) if embedding else None
        self.spread = layers.spread
        self.norm_out = layers.norm(out_channels)
        self.dropout = dropout
        self.conv_out = zero(layers.conv(out_channels, out_channels))
        self.skip = nn.Identity() if channels == out_channels else layers.conv(channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        h = self.conv_in(self.resample(self.norm_in(x, silu=True)))
        scale = shift = None
        if self.embed is not None:
            assert embedding is not None
            scale, shift = (self.spread(v) for v in self.embed(F.silu(embedding)).chunk(2, 1))
        h = self.norm_out(h, scale, shift, silu=True, dropout=self.dropout if self.training else 0.0)
        return self.skip(self.resample(x)) + self.conv_out(h)


class Stage(nn.Module):
    """A residual block, attention where wanted, and a resampling block where the resolution changes afterwards."""

    def __init__(self, residual: nn.Module, attention: nn.Module | None = None, up: nn.Module | None = None) -> None:
        super().__init__()
        self.residual, self.attention, self.up = residual, attention, up

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = self.residual(x, embedding)
        x = x if self.attention is None else self.attention(x)
        return x if self.up is None else self.up(x, embedding)


def multipliers(settings: ModelConfig, images: ImageShape) -> tuple[int, ...]:
    """The channel multiplier of every level: the setting, or DDBM's choice for the image size."""
    if settings.channel_mult:
        return settings.channel_mult
    size = max(images.height, images.width)
    return (1, 1, 2, 2, 4, 4) if size >= 256 else (1, 1, 2, 3, 4) if size >= 128 else (1, 2, 3, 4)


def check_size(height: int, width: int, levels: int = 1, cell: int = 1) -> None:
    """Raises ValueError unless images can be cut into cells of so many pixels a side, and these halved to the end."""
    unit = cell * 2 ** (levels - 1)
    if height % unit or width % unit:
        h, w = (max(1, round(n / unit)) * unit for n in (height, width))
        cut = [f"cut into latent pixels of {cell}x{cell}"] * (cell > 1)
        halved = [f"halved {levels - 1} times"] * (levels > 1)
        fewer = f", or fewer levels (--channel_mult has {levels} entries)" * (levels > 1)
        raise ValueError(
            f"images of {height}x{width} cannot be {' and '.join(cut + halved)}: use --image_size {h}x{w}{fewer}"
        )


def seen_channels(settings: ModelConfig, images: ImageShape) -> int:
    """Channels of the state and of what the network sees beside it."""
    return images.target_channels + (images.source_channels if settings.condition == "source" else 0)


def check_fields(settings: ModelConfig | CodecConfig, mult: Sequence[int], layers: PlainLayers) -> None:
    """Raises ValueError unless the channels of every level are whole fields of the kind of layers."""
    unit = math.lcm(*(layers.unit // math.gcd(layers.unit, m) for m in mult))
    if settings.model_channels % unit:
        raise ValueError(
            f"--model_channels {settings.model_channels} times {','.join(map(str, mult))} cannot be cut into regular "
            f"fields of group {settings.group}, {layers.unit} channels each: "
            f"try --model_channels {max(1, round(settings.model_channels / unit)) * unit}"
        )


def check_heads(settings: ModelConfig, mult: Sequence[int], layers: PlainLayers) -> None:
    """Raises ValueError unless the channels of all levels with attention can be cut into heads of whole fields."""
    channels, head, unit = [settings.model_channels * m for m in mult], settings.num_head_channels, layers.unit
    if head % unit or any(c % head for c in channels):
        common = math.gcd(*channels)
        fitting = [n for n in range(unit, common + 1, unit) if common % n == 0]
        raise ValueError(
            f"--num_head_channels {head} does not cut the channels with attention, "
            f"{', '.join(map(str, sorted(set(channels))))}, into heads"
            + (f" of whole fields of {unit}" if unit > 1 else "")
            + f": try --num_head_channels {min(fitting, key=lambda n: abs(n - head))}"
        )


class Skeleton(nn.Module):
    """Levels and skips of a U-Net: `[B, in_channels, H, W]`, times `[B]` and a condition to `[B, out_channels, H, W]`.

    Built from its settings for images of a shape and for a group. Raises ValueError, with a remedy, for channels and
    sizes that cannot be cut into levels, fields and heads. A backbone says what blocks and ends it has.
    """

    LAYERS: ClassVar[dict[str, type[PlainLayers]]] = LAYERS

    def __init__(self, settings: ModelConfig, images: ImageShape, group: Group) -> None:
        super().__init__()
        self.settings, self.layers = settings, choose(self.LAYERS, settings.layers, "layers")(group)
        channel_mult, num_res_blocks = multipliers(settings, images), settings.num_res_blocks
        self.levels = len(channel_mult)
        check_size(images.height, images.width, self.levels)
        check_fields(settings, channel_mult, self.layers)
        attended = [
            level for level in range(self.levels) if images.height // 2**level in settings.attention_resolutions
        ]
        check_heads(settings, [channel_mult[level] for level in attended] + [channel_mult[-1]], self.layers)
        model_channels = settings.model_channels
        channels = model_channels * channel_mult[0]
        self.begin(images, channels, model_channels * max(channel_mult))

        def attention(channels: int, level: int) -> nn.Module | None:
            return self.attention(channels) if level in attended else None

        self.encoder, skips = nn.ModuleList(), [channels]
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                out = model_channels * mult
                self.encoder.append(Stage(self.residual(channels, out), attention(out, level)))
                channels = out
                skips.append(channels)
            if level < self.levels - 1:
                self.encoder.append(Stage(self.residual(channels, channels, "down")))
                skips.append(channels)

        self.middle_in = self.residual(channels, channels, decoder=True)
        self.middle_attention = self.attention(channels)
        self.middle_out = self.residual(channels, channels, decoder=True)

        self.decoder = nn.ModuleList()
        for level in range(self.levels - 1, -1, -1):
            for i in range(num_res_blocks + 1):
                out = model_channels * channel_mult[level]
                up = self.residual(out, out, "up", decoder=True) if level and i == num_res_blocks else None
                residual = self.residual(channels + skips.pop(), out, decoder=True)
                self.decoder.append(Stage(residual, attention(out, level), up))
                channels = out
        self.checkpointed = False  # recompute the blocks' activations in the backward pass
        self.end(images, channels)

    def begin(self, images: ImageShape, channels: int, widest: int) -> None:
        """Makes the layers of time and label, and the first, to so many channels; widest: those of the widest level."""
        raise NotImplementedError

    def residual(self, channels: int, out: int, resample: str = "", decoder: bool = False) -> nn.Module:
        """A block of features and embedding; `resample` halves ("down") or doubles ("up") the size."""
        raise NotImplementedError

    def attention(self, channels: int) -> nn.Module:
        raise NotImplementedError

    def end(self, images: ImageShape, channels: int) -> None:
        """Makes the last layers, from so many channels."""
        raise NotImplementedError

    def embedding(self, t: Tensor, label: Tensor | None) -> Tensor:
        """What every block is told, `[B, width]`."""
        raise NotImplementedError

    def entered(self, x: Tensor) -> Tensor:
        """Features of the images given."""
        raise NotImplementedError

    def joined(self, x: Tensor, skip: Tensor) -> Tensor:
        """The decoder's features and the encoder's of the same size."""
        raise NotImplementedError

    def answer(self, x: Tensor) -> Tensor:
        """The image, of the last features."""
        raise NotImplementedError

    def normalise_weights(self) -> None:
        """After a step of the optimiser: back to where weights belong."""

    @property
    def blocks(self) -> list[nn.Module]:
        """What the network is made of, in the order of use, but for its first and last layers."""
        return [*self.encoder, self.middle_in, self.middle_attention, self.middle_out, *self.decoder]

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        """x: state; condition: source, or None, joined by concatenation; label: int64 `[B]` with class conditioning."""
        embedding = self.embedding(t, label)
        x = x if condition is None else torch.cat([x, condition], 1)
        h = self.entered(x.contiguous(memory_format=memory_format(x.device)))
        skips = [h]
        for stage in self.encoder:
            h = self._run(stage, h, embedding)
            skips.append(h)
        h = self._run(self.middle_in, h, embedding)
        h = self._run(self.middle_out, self._run(self.middle_attention, h), embedding)
        for stage in self.decoder:
            h = self._run(stage, self.joined(h, skips.pop()), embedding)
        return self.answer(h)

    def _run(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        if self.checkpointed and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)


class UNet(Skeleton):
    """ADM's, as DDBM uses it."""

    def begin(self, images: ImageShape, channels: int, widest: int) -> None:
        given = self.settings.model_channels
        self.width = width = 4 * given
        self.embed = nn.Sequential(nn.Linear(given, width), nn.SiLU(), nn.Linear(width, width))
        self.embed_label = nn.Embedding(images.num_classes, width) if images.num_classes else None
        self.stem = self.layers.lift(seen_channels(self.settings, images), channels)

    def residual(self, channels: int, out: int, resample: str = "", decoder: bool = False) -> nn.Module:
        return ResidualBlock(self.layers, channels, out, self.width, self.settings.dropout, resample)

    def attention(self, channels: int) -> nn.Module:
        return Attention(self.layers, channels, self.settings.num_head_channels)

    def end(self, images: ImageShape, channels: int) -> None:
        self.norm = self.layers.norm(channels)
        self.head = zero(self.layers.project(channels, images.target_channels))

    def embedding(self, t: Tensor, label: Tensor | None) -> Tensor:
        features = time_features(t, self.settings.model_channels)
        embedding: Tensor = self.embed(features.to(next(self.parameters()).dtype))
        if self.embed_label is not None:
            assert label is not None, "a class-conditional network needs labels"
            embedding = embedding + self.embed_label(label)
        return embedding

    def entered(self, x: Tensor) -> Tensor:
        return self.stem(x)

    def joined(self, x: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([x, skip], 1)

    def answer(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x, silu=True))
