"""The U-Net of Karras et al. 2024 (EDM2, arXiv 2312.02696, configuration G), for every kind of layers.

All that it is made of keeps the magnitude, the root mean square, of what it is given: weights are normalised, and
activations by fixed numbers; no biases, no group norms. What is learned of magnitudes is the `gain` of every block's
modulation and of the output, which begin at 0.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ImageShape
from .convolutions import GroupConv, SharedKernel, TiedConv2d
from .layers import PlainLayers, RegularLayers, TiedLayers, attend, downsample, upsample
from .unet import Skeleton, memory_format, seen_channels

BALANCE = 0.3  # of a residual branch, in what it is summed up with
LARGEST = 256.0  # of the activations of float16 that leave a block
GOLDEN = (5**0.5 - 1) / 2


def mp_silu(x: Tensor) -> Tensor:
    """SiLU over its magnitude on numbers of N(0, 1) (Eq. 81)."""
    return F.silu(x) * (1 / 0.596)


def mp_sum(a: Tensor, b: Tensor, share: float) -> Tensor:
    """(1 - share) a + share b, over the magnitude of that for independent a and b of magnitude 1 (Eq. 88)."""
    size = math.hypot(1 - share, share)
    return torch.add(a * ((1 - share) / size), b, alpha=share / size)


def mp_cat(a: Tensor, b: Tensor) -> Tensor:
    """Channels of both, weighed so that each side adds as much to the magnitude, however many it has (Eq. 103)."""
    n, m = a.shape[1], b.shape[1]
    return torch.cat([a * math.sqrt((n + m) / (2 * n)), b * math.sqrt((n + m) / (2 * m))], 1)


def bounded(x: Tensor) -> Tensor:
    """Of float16, within what it can go on to compute with."""
    return x.clamp(-LARGEST, LARGEST) if x.dtype == torch.float16 else x


def normalised(x: Tensor, dim: int = 1) -> Tensor:
    """x over its root mean square along an axis, computed in float32 at least; of all channels: pixel norm."""
    wide = x if x.dtype == torch.float64 else x.float()
    size = torch.linalg.vector_norm(wide, dim=dim, keepdim=True) / math.sqrt(x.shape[dim])
    return (wide / (size + 1e-4)).to(x.dtype)


class Fourier(nn.Module):
    """√2 cos(2π (f c_noise / 1000 + φ)) `[B]` -> `[B, channels]`: f of N(0, 1), φ uniform (Eq. 75).

    Of ln(t)/4, as there, where c_noise is 250 ln t. Instead of drawn, f are quantiles and φ multiples of the golden
    ratio: the same in every network, and no part of a checkpoint.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        number = torch.arange(channels, dtype=torch.float64)
        frequencies = torch.special.ndtri((number + 0.5) / channels)
        self.register_buffer("frequencies", (frequencies / 1000).float(), persistent=False)
        self.register_buffer("phases", (number * GOLDEN % 1).float(), persistent=False)
        self.frequencies: Tensor
        self.phases: Tensor

    def forward(self, c_noise: Tensor) -> Tensor:
        turns = c_noise.to(self.phases.dtype)[:, None] * self.frequencies + self.phases
        return torch.cos(2 * math.pi * turns) * math.sqrt(2)


class Preserving(SharedKernel):
    """A layer without bias whose kernel, laid out, has norm 1 in every output channel (Eq. 47 and 66).

    Inputs of magnitude 1 that know nothing of each other become outputs of magnitude 1. The weight itself is stored
    with a root mean square of 1, which `normalise` restores after every step: so a step's relative size is its learning
    rate. As kernels are normalised at every forward pass too, their gradient is orthogonal to them.
    """

    def __init__(self, *sizes: Any, **options: Any) -> None:
        super().__init__(*sizes, **options)
        bias = self._parameters.pop("bias")
        assert bias is not None
        self.register_buffer("bias", torch.zeros_like(bias), persistent=False)  # what is added, but no parameter
        nn.init.normal_(self.weight)
        self.normalise()

    @property
    def fan(self) -> int:
        """How many inputs an output adds up."""
        return self.weight.shape[1:].numel()

    def symmetric(self, weight: Tensor) -> Tensor:
        """What of the weight the kernel is made of."""
        return weight

    def norm(self, weight: Tensor) -> Tensor:
        """Of the symmetric part in every output field, `[fields]`."""
        return torch.linalg.vector_norm(weight.flatten(1), dim=1)

    def size(self, weight: Tensor) -> Tensor:
        """The root mean square of the same, of the weight's axes."""
        size = self.norm(weight).clamp(min=1e-12) / math.sqrt(weight.shape[1:].numel())
        return size.view(-1, *[1] * (weight.ndim - 1))

    def values(self) -> Tensor:
        return self.weight * (1 / (self.size(self.weight) * math.sqrt(self.fan)))

    @torch.no_grad()
    def normalise(self) -> None:
        """The weight's symmetric part alone, of root mean square 1 in every output field; one that is so stays."""
        weight = getattr(self.weight, "_local_tensor", self.weight)  # FSDP: whole fields of it
        size = self.size(weight)
        weight.copy_(torch.where((size - 1).abs() < 1e-6, weight, self.symmetric(weight) / size))


class Convolution(Preserving, nn.Conv2d):
    """Of scalar features, which knows no group."""

    def laid_out(self) -> Tensor:
        return self.values()

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.kernel(), self.bias)


class TiedConvolution(Preserving, TiedConv2d):
    """Its norm is that of the free values of the kernel, each as often as the kernel has it.

    Neighbours that share a value are summed, and so alike ones would become larger: at the beginning the mean of a
    kernel is smaller by as much as keeps the magnitude of constant images, too.
    """

    def __init__(self, *sizes: Any, **options: Any) -> None:
        super().__init__(*sizes, **options)
        share = math.sqrt((len(self.members) - 1) / max(1, len(self.orbit) - 1))
        with torch.no_grad():
            self.weight.sub_((1 - share) * self.weight.mean((2, 3), keepdim=True))
        self.normalise()

    def symmetric(self, weight: Tensor) -> Tensor:
        return self.free(weight).index_select(2, self.orbit).view_as(weight)

    def norm(self, weight: Tensor) -> Tensor:
        often = self.members.sum((1, 2)).to(weight.dtype)
        return torch.linalg.vector_norm((self.free(weight) * often.sqrt()).flatten(1), dim=1)


class GroupConvolution(Preserving, GroupConv):
    """Every output channel of a field has all values of the field's weight, turned; of a projection, |G| times."""

    @property
    def fan(self) -> int:
        return self.channels[1] * self.kernel_size**2


class Linear(Preserving, nn.Linear):
    """Of vectors."""

    def laid_out(self) -> Tensor:
        return self.values()

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.kernel())


class PlainPreserving(PlainLayers):
    convolution = Convolution


class TiedPreserving(TiedLayers):
    convolution, shared = Convolution, TiedConvolution


class RegularPreserving(RegularLayers):
    shared = GroupConvolution


class Block(nn.Module):
    """Two convolutions around a modulation by the embedding, summed up with what they are given.

    An encoder's block normalises every pixel of that first; `resample` halves or doubles the size before all else.
    """

    def __init__(
        self, layers: PlainLayers, channels: int, out: int, embedding: int, dropout: float, resample: str, decoder: bool
    ) -> None:
        super().__init__()
        resamplings: dict[str, Callable[[Tensor], Tensor]] = {"": nn.Identity(), "down": downsample, "up": upsample}
        self.resample, self.decoder, self.dropout, self.spread = resamplings[resample], decoder, dropout, layers.spread
        self.skip = nn.Identity() if channels == out else layers.conv(channels, out, 1)
        self.conv_in = layers.conv(channels if decoder else out, out)
        self.embed, self.gain = Linear(embedding, out // layers.unit), nn.Parameter(torch.zeros(1))
        self.conv_out = layers.conv(out, out)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = self.resample(x)
        if not self.decoder:
            x = normalised(self.skip(x))
        h = self.conv_in(mp_silu(x))
        scale = self.spread(1 + self.gain * self.embed(embedding)).to(h.dtype)
        h = F.dropout(mp_silu(h * scale[:, :, None, None]), self.dropout, self.training)
        return bounded(mp_sum(self.skip(x) if self.decoder else x, self.conv_out(h), BALANCE))


class CosineAttention(nn.Module):
    """Self-attention over pixels, summed up with what it is given; queries, keys and values of heads are normalised.

    A head's vector holds whole fields, whose channels a group element permutes: its size stays as it is.
    """

    def __init__(self, layers: PlainLayers, channels: int, head_channels: int) -> None:
        super().__init__()
        self.head_channels = head_channels
        self.qkv = layers.conv(channels, 3 * channels, 1)
        self.out = layers.conv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = attend(self.qkv(x), self.head_channels, lambda vectors: normalised(vectors, -1))
        return bounded(mp_sum(x, self.out(h), BALANCE))


class EDM2(Skeleton):
    """Its blocks and ends. A constant channel beside the images stands for biases."""

    LAYERS: ClassVar[dict[str, type[PlainLayers]]] = {
        "plain": PlainPreserving, "tied": TiedPreserving, "regular": RegularPreserving,
    }  # fmt: skip

    def begin(self, images: ImageShape, channels: int, widest: int) -> None:
        self.width, self.classes = widest, images.num_classes
        self.fourier = Fourier(channels)
        self.embed = Linear(channels, widest)
        self.embed_label = Linear(self.classes, widest) if self.classes else None
        self.stem = self.layers.lift(seen_channels(self.settings, images) + 1, channels)

    def residual(self, channels: int, out: int, resample: str = "", decoder: bool = False) -> nn.Module:
        return Block(self.layers, channels, out, self.width, self.settings.dropout, resample, decoder)

    def attention(self, channels: int) -> nn.Module:
        return CosineAttention(self.layers, channels, self.settings.num_head_channels)

    def end(self, images: ImageShape, channels: int) -> None:
        self.head = self.layers.project(channels, images.target_channels)
        self.gain = nn.Parameter(torch.zeros(1))

    def embedding(self, t: Tensor, label: Tensor | None) -> Tensor:
        kind = self.gain.dtype
        embedding: Tensor = self.embed(self.fourier(t).to(kind))
        if self.embed_label is not None:
            assert label is not None, "a class-conditional network needs labels"
            classes = F.one_hot(label, self.classes).to(kind) * math.sqrt(self.classes)
            embedding = mp_sum(embedding, self.embed_label(classes), 0.5)
        return mp_silu(embedding)

    def entered(self, x: Tensor) -> Tensor:
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        return self.stem(x.contiguous(memory_format=memory_format(x.device)))

    def joined(self, x: Tensor, skip: Tensor) -> Tensor:
        return mp_cat(x, skip)

    def answer(self, x: Tensor) -> Tensor:
        h = self.head(x)
        return (h * self.gain).to(h.dtype)

    def normalise_weights(self) -> None:
        for layer in self.modules():
            if isinstance(layer, Preserving):
                layer.normalise()
