"""The layers of the U-Net, one factory for each kind of features; the table `LAYERS`.

A network built from a kind of layers other than `plain` commutes with the group for any values of its parameters.
What acts on every pixel alike or on 2x2 cells (normalisation, averaging, nearest, attention without positions) is
equivariant as it stands for scalar features; only kernels larger than 1x1 need care.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .groups import Group, act


class TiedConv2d(nn.Conv2d):
    """Convolution of stride 1 whose kernel is its average over a group: the sum of the kernels, one convolution.

    The kernel is averaged orbit by orbit by index arithmetic and is exactly invariant, in the weight's own type.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, group: Group) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        position = torch.arange(kernel_size**2).reshape(kernel_size, kernel_size)
        turned = torch.stack([act(g, position).flatten() for g in group.elements])  # [|G|, k²]
        first = turned.amin(0)  # the orbit of a pixel is named by its first pixel
        names, orbit = first.unique(return_inverse=True)
        members = F.one_hot(orbit, len(names)).double()
        self.register_buffer("orbit", orbit, persistent=False)  # [k²]
        self.register_buffer("average", members / members.sum(0), persistent=False)  # [k², orbits]
        self.orbit: Tensor
        self.average: Tensor

    def kernel(self) -> Tensor:
        """The invariant kernel, `[out, in, k, k]`."""
        flat = self.weight.flatten(2)
        with torch.autocast(flat.device.type, enabled=False):
            means = flat @ self.average.to(flat.dtype)
        return means.index_select(2, self.orbit).view_as(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.kernel(), self.bias)


class GroupNorm(nn.GroupNorm):
    """Group normalisation in float32 whatever the type of the input; 32 groups, or as many as divide the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(32, channels), channels)

    def forward(self, input: Tensor) -> Tensor:
        return (
            super().forward(input.float()).to(input.dtype) if input.dtype != torch.float64 else super().forward(input)
        )


class Attention(nn.Module):
    """Self-attention over pixels with a residual connection (ADM); heads of `head_channels` channels."""

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        if channels % head_channels:
            heads = max(1, round(channels / head_channels))
            while channels % heads:
                heads -= 1
            raise ValueError(
                f"{channels} channels cannot be cut into attention heads of {head_channels}: "
                f"try --num_head_channels {channels // heads}"
            )
        self.head_channels = head_channels
        self.norm = GroupNorm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.out = zero(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm(x).flatten(2))  # [B, 3 C, H W], all queries first
        q, k, v = qkv.reshape(B, 3, -1, self.head_channels, H * W).transpose(-1, -2).unbind(1)
        h = F.scaled_dot_product_attention(q, k, v)  # [B, heads, H W, head_channels]
        return x + self.out(h.transpose(-1, -2).reshape(B, C, H * W)).reshape(x.shape)


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
    """Scalar features, no symmetry."""

    def __init__(self, group: Group) -> None:
        self.group = group

    def conv(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Module:
        return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    def norm(self, channels: int) -> nn.Module:
        return GroupNorm(channels)

    def attention(self, channels: int, head_channels: int) -> nn.Module:
        return Attention(channels, head_channels)

    def dropout(self, rate: float) -> nn.Module:
        return nn.Dropout(rate)


class TiedLayers(PlainLayers):
    """Scalar features, every kernel averaged over the group (SPDM's +WT)."""

    def conv(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Module:
        if kernel_size == 1:
            return super().conv(in_channels, out_channels, 1)
        return TiedConv2d(in_channels, out_channels, kernel_size, self.group)


LAYERS = {"plain": PlainLayers, "tied": TiedLayers}
