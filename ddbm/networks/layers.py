"""The layers of the U-Net, one factory for each kind of features; the table `LAYERS`.

A network built from a kind of layers other than `plain` commutes with the group for any values of its parameters.
What acts on every pixel alike or on 2x2 cells is equivariant as it stands for scalar features; for regular features it
must treat the channels of a field alike.
"""

import math
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..symmetry.groups import Group
from .convolutions import GroupConv, TiedConv2d
from .native.norm import fits, normalised

EPSILON = 1e-5  # added to a mean square


class GroupNorm(nn.GroupNorm):
    """Group normalisation in float32 whatever the type of the input; 32 groups, or as many as divide the fields.

    Statistics and gains are of whole fields, of `order` channels each.
    """

    def __init__(self, channels: int, order: int = 1) -> None:
        super().__init__(math.gcd(32, channels // order), channels // order)
        self.order = order

    def forward(
        self, input: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, silu: bool = False,
        dropout: float = 0.0,
    ) -> Tensor:  # fmt: skip
        """Also times 1 + scale, plus shift, both `[B, C]`; then SiLU, then dropout, of every value on its own.

        So dropout is equivariant in law: the group permutes values.
        """
        weight, bias = (p if self.order == 1 else p.repeat_interleave(self.order) for p in (self.weight, self.bias))
        if fits(input, self.weight, self.num_channels * self.order):
            if scale is not None and shift is not None:
                weight, bias = weight * (1 + scale), torch.addcmul(shift, bias, 1 + scale)
            weight, bias = weight.expand(len(input), -1), bias.expand(len(input), -1)
            return normalised(input, weight, bias, self.num_groups, self.eps, silu, dropout)
        x = input if input.dtype == torch.float64 else input.float()
        x = F.group_norm(x, self.num_groups, weight, bias, self.eps).to(input.dtype)
        if scale is not None and shift is not None:
            x = torch.addcmul(shift[:, :, None, None], x, 1 + scale[:, :, None, None])
        return F.dropout(F.silu(x) if silu else x, dropout)


class PixelNorm(nn.Module):
    """Every pixel's channels over their root mean square, in float32 at least; then gains and biases of whole fields.

    Unlike `GroupNorm` it knows no other pixel, so a part of an image gives a part of the answer. Called likewise.
    """

    def __init__(self, channels: int, order: int = 1) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.ones(channels // order)),
            nn.Parameter(torch.zeros(channels // order)),
        )
        self.order = order

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, silu: bool = False,
        dropout: float = 0.0,
    ) -> Tensor:  # fmt: skip
        weight, bias = (p.repeat_interleave(self.order)[:, None, None] for p in (self.weight, self.bias))
        wide = x if x.dtype == torch.float64 else x.float()
        y = (wide * torch.rsqrt(wide.square().mean(1, keepdim=True) + EPSILON)).to(x.dtype) * weight + bias
        if scale is not None and shift is not None:
            y = torch.addcmul(shift[:, :, None, None], y, 1 + scale[:, :, None, None])
        return F.dropout(F.silu(y) if silu else y, dropout)


class Attention(nn.Module):
    """Self-attention over pixels with a residual connection (ADM); heads of `head_channels` channels.

    Queries, keys and values are pointwise maps of the kind of layers. The products of queries and keys sum over whole
    fields, so a group element, which permutes the channels of a field, leaves them as they are.
    """

    def __init__(self, layers: "PlainLayers", channels: int, head_channels: int) -> None:
        super().__init__()
        assert channels % head_channels == 0 and head_channels % layers.unit == 0, "heads hold whole fields"
        self.head_channels = head_channels
        self.norm = layers.norm(channels)
        self.qkv = layers.conv(channels, 3 * channels, 1)
        self.out = zero(layers.conv(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(attend(self.qkv(self.norm(x)), self.head_channels))


def attend(qkv: Tensor, head_channels: int, each: Callable[[Tensor], Tensor] = lambda vectors: vectors) -> Tensor:
    """Softmax attention of all heads: queries, keys and values `[B, 3 C, H, W]` to `[B, C, H, W]`.

    each: what is done to the vectors of heads `[..., head_channels]` before.
    """
    B, channels, H, W = qkv.shape
    pixels = qkv.permute(0, 2, 3, 1).contiguous()  # fused kernels want the last axis dense
    q, k, v = each(pixels.reshape(B, H * W, 3, -1, head_channels)).transpose(1, 3).unbind(2)
    h = F.scaled_dot_product_attention(q, k, v)  # [B, heads, H W, head_channels]
    return h.transpose(1, 2).reshape(B, H, W, channels // 3).permute(0, 3, 1, 2)


def zero(module: nn.Module) -> nn.Module:
    """The module with all parameters zero: residual branches start as the identity."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


def downsample(x: Tensor) -> Tensor:
    """Mean over 2x2 cells; commutes with every group, as a strided convolution does not."""
    return F.avg_pool2d(x, 2)


def upsample(x: Tensor) -> Tensor:
    """Every pixel becomes a 2x2 cell."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


class PlainLayers:
    """Scalar features, no symmetry. The network asks this factory for all that depends on the kind of features."""

    convolution: ClassVar[type[nn.Conv2d]] = nn.Conv2d  # of scalar features, that knows no group

    def __init__(self, group: Group, norm: Callable[[int, int], nn.Module] = GroupNorm) -> None:
        self.group, self._norm = group, norm

    def conv(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Module:
        """Features to features."""
        return self.convolution(in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    def lift(self, in_channels: int, out_channels: int) -> nn.Module:
        """Image to features, 3x3."""
        return self.conv(in_channels, out_channels)

    def project(self, in_channels: int, out_channels: int) -> nn.Module:
        """Features to image, 3x3."""
        return self.conv(in_channels, out_channels)

    def norm(self, channels: int) -> nn.Module:
        return self._norm(channels, self.unit)

    @property
    def unit(self) -> int:
        """Channels a field; one value scales or shifts a field without breaking the symmetry."""
        return 1

    def spread(self, values: Tensor) -> Tensor:
        """One value a field, `[B, fields]`, as one a channel, `[B, C]`."""
        return values if self.unit == 1 else values.repeat_interleave(self.unit, 1)


class TiedLayers(PlainLayers):
    """Scalar features, every kernel averaged over the group (SPDM's +WT)."""

    shared: ClassVar[type[TiedConv2d]] = TiedConv2d

    def conv(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Module:
        if kernel_size == 1:
            return super().conv(in_channels, out_channels, 1)
        return self.shared(in_channels, out_channels, kernel_size, self.group)


class RegularLayers(PlainLayers):
    """Features indexed by the group: `channels` counts fields times |G|."""

    shared: ClassVar[type[GroupConv]] = GroupConv

    def conv(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Module:
        return self.shared(in_channels, out_channels, kernel_size, self.group)

    def lift(self, in_channels: int, out_channels: int) -> nn.Module:
        return self.shared(in_channels, out_channels, 3, self.group, kind="lift")

    def project(self, in_channels: int, out_channels: int) -> nn.Module:
        return self.shared(in_channels, out_channels, 3, self.group, kind="project")

    @property
    def unit(self) -> int:
        return len(self.group)


LAYERS: dict[str, type[PlainLayers]] = {"plain": PlainLayers, "tied": TiedLayers, "regular": RegularLayers}
