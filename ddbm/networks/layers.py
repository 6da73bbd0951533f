"""The layers of the U-Net, one factory for each kind of features; the table `LAYERS`.

A network built from a kind of layers other than `plain` commutes with the group for any values of its parameters.
What acts on every pixel alike or on 2x2 cells is equivariant as it stands for scalar features; for regular features it
must treat the channels of a field alike.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..symmetry.groups import Group, act

_laid_out: dict[nn.Module, Tensor] = {}  # the kernels of layers inside of `folded`, and of no others


class SharedKernel(nn.Module):
    """A layer whose kernel is computed from its weight: at every forward, but inside of `folded`."""

    weight: Tensor

    def expand(self) -> Tensor:
        raise NotImplementedError

    def kernel(self) -> Tensor:
        """The kernel to convolve with; never part of a state dict."""
        if torch.compiler.is_compiling():
            return self.expand()
        if torch.is_grad_enabled():  # the weight may be about to change
            _laid_out.pop(self, None)
        kernel = _laid_out.get(self)
        return self.expand() if kernel is None else kernel


@contextmanager
def folded(network: nn.Module) -> Iterator[None]:
    """Inside, the kernels of all layers are those of now, laid out once; afterwards nothing is kept.

    For evaluation alone: a layer that is called with gradients on computes its kernel anew, then and from then on.
    """
    layers = [m for m in network.modules() if isinstance(m, SharedKernel) and m not in _laid_out]
    try:
        with torch.no_grad():
            _laid_out.update((layer, layer.expand()) for layer in layers)
        yield
    finally:
        for layer in layers:
            _laid_out.pop(layer, None)


class TiedConv2d(SharedKernel, nn.Conv2d):
    """Convolution of stride 1 whose kernel is its average over a group: the sum of the kernels, one convolution.

    The kernel is averaged orbit by orbit by index arithmetic and is exactly invariant, in the weight's own type.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, group: Group) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        first = turned_positions(kernel_size, group).amin(0)  # the orbit of a pixel is named by its first pixel
        names, orbit = first.unique(return_inverse=True)
        members = F.one_hot(orbit, len(names)).double()
        self.register_buffer("orbit", orbit, persistent=False)  # [k²]
        self.register_buffer("average", members / members.sum(0), persistent=False)  # [k², orbits]
        self.orbit: Tensor
        self.average: Tensor

    def expand(self) -> Tensor:
        """The invariant kernel, `[out, in, k, k]`."""
        flat = self.weight.flatten(2)
        with torch.autocast(flat.device.type, enabled=False):
            means = flat @ self.average.to(flat.dtype)
        return means.index_select(2, self.orbit).view_as(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.kernel(), self.bias)


def turned_positions(kernel_size: int, group: Group) -> Tensor:
    """`[|G|, k²]`: where each pixel of g · kernel comes from."""
    position = torch.arange(kernel_size**2).reshape(kernel_size, kernel_size)
    return torch.stack([act(g, position).flatten() for g in group.elements])


class GroupConv(SharedKernel):
    """Group convolution of stride 1 (Cohen & Welling 2016, Eq. 10-11) on `[B, C, H, W]`.

    A regular feature holds |G| channels a field, the group index fastest, and g acts on it as
    `(g · F)(h, x) = F(g^-1 h, g^-1 x)`. The kernel of output channel (o, h) and input channel (i, h') is
    `h · weight[o, i, h^-1 h']`; where the input (lifting) or the output (projection) is an image, it is
    `h · weight[o, i]`. Laid out by indexing, it is one ordinary convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, group: Group, kind: str = "") -> None:
        super().__init__()
        n = len(group)
        self.kernel_size = kernel_size
        out, into = (1 if kind == "project" else n), (1 if kind == "lift" else n)
        self.repeat, self.channels = out, (out_channels, in_channels)
        between = 1 if kind else n  # group elements the weight itself depends on
        self.weight = nn.Parameter(
            torch.empty(out_channels // out, in_channels // into, between, kernel_size, kernel_size)
        )
        self.bias = nn.Parameter(torch.empty(out_channels // out))
        bound = (in_channels * kernel_size**2) ** -0.5  # as nn.Conv2d with as many inputs
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

        turned = turned_positions(kernel_size, group)  # [|G|, k²]
        if kind == "lift":
            index = turned[:, None]  # [h, 1, k²]
        elif kind == "project":
            index = turned[None]  # [1, h', k²]
        else:
            relative = torch.tensor([[group.products[group.inverses[h]][k] for k in range(n)] for h in range(n)])
            index = relative[:, :, None] * kernel_size**2 + turned[:, None]  # [h, h', k²]
        self.register_buffer("index", index, persistent=False)
        self.index: Tensor

    def expand(self) -> Tensor:
        """The kernel of the ordinary convolution, `[out channels, in channels, k, k]`."""
        weight = self.weight.flatten(2).index_select(2, self.index.flatten())
        weight = weight.unflatten(2, self.index.shape).permute(0, 2, 1, 3, 4)  # [O, h, I, h', k²]
        return weight.reshape(*self.channels, self.kernel_size, self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel(), self.bias.repeat_interleave(self.repeat), padding=self.kernel_size // 2)


class GroupNorm(nn.GroupNorm):
    """Group normalisation in float32 whatever the type of the input; 32 groups, or as many as divide the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(32, channels), channels)

    def forward(self, input: Tensor) -> Tensor:
        return (
            super().forward(input.float()).to(input.dtype) if input.dtype != torch.float64 else super().forward(input)
        )


class FieldNorm(GroupNorm):
    """Group normalisation of regular features: statistics and gains of whole fields, shared over the group index."""

    def __init__(self, channels: int, order: int) -> None:
        super().__init__(channels // order)
        self.order = order

    def forward(self, input: Tensor) -> Tensor:
        fields = input.unflatten(1, (-1, self.order))  # group_norm takes any number of trailing axes
        return super().forward(fields).reshape(input.shape)


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
        B, _, H, W = x.shape
        qkv = self.qkv(self.norm(x)).flatten(2)  # [B, 3 C, H W], all queries first
        q, k, v = qkv.reshape(B, 3, -1, self.head_channels, H * W).transpose(-1, -2).unbind(1)
        h = F.scaled_dot_product_attention(q, k, v)  # [B, heads, H W, head_channels]
        return x + self.out(h.transpose(-1, -2).reshape(x.shape))


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

    def __init__(self, group: Group) -> None:
        self.group = group

    def conv(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Module:
        """Features to features."""
        return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    def lift(self, in_channels: int, out_channels: int) -> nn.Module:
        """Image to features, 3x3."""
        return self.conv(in_channels, out_channels)

    def project(self, in_channels: int, out_channels: int) -> nn.Module:
        """Features to image, 3x3."""
        return self.conv(in_channels, out_channels)

    def norm(self, channels: int) -> nn.Module:
        return GroupNorm(channels)

    @property
    def unit(self) -> int:
        """Channels a field; one value scales or shifts a field without breaking the symmetry."""
        return 1

    def spread(self, values: Tensor) -> Tensor:
        """One value a field, `[B, fields]`, as one a channel, `[B, C, 1, 1]`."""
        return (values if self.unit == 1 else values.repeat_interleave(self.unit, 1))[:, :, None, None]


class TiedLayers(PlainLayers):
    """Scalar features, every kernel averaged over the group (SPDM's +WT)."""

    def conv(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Module:
        if kernel_size == 1:
            return super().conv(in_channels, out_channels, 1)
        return TiedConv2d(in_channels, out_channels, kernel_size, self.group)


class RegularLayers(PlainLayers):
    """Features indexed by the group: `channels` counts fields times |G|."""

    def conv(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Module:
        return GroupConv(in_channels, out_channels, kernel_size, self.group)

    def lift(self, in_channels: int, out_channels: int) -> nn.Module:
        return GroupConv(in_channels, out_channels, 3, self.group, kind="lift")

    def project(self, in_channels: int, out_channels: int) -> nn.Module:
        return GroupConv(in_channels, out_channels, 3, self.group, kind="project")

    def norm(self, channels: int) -> nn.Module:
        return FieldNorm(channels, self.unit)

    @property
    def unit(self) -> int:
        return len(self.group)


def convert_to_channels_last(network: nn.Module) -> None:
    """Kernels `[O, I, k, k]` with the channels last; those of group convolutions are laid out when they are used."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


LAYERS = {"plain": PlainLayers, "tied": TiedLayers, "regular": RegularLayers}
