"""Convolutions whose kernels are shared over a group; `folded` lays their kernels out once, for evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..symmetry.groups import Group, act
from .native.convolution import Maps, convolution, prepared, regular_maps, tied_maps

WIDE = 384  # channels from which tied kernels are trained by PyTorch's sums of neighbours
_laid_out: dict[nn.Module, Tensor] = {}  # the kernels of layers inside of `folded`, and of no others


class SharedKernel(nn.Module):
    """A layer whose kernel is computed from its weight: at every forward, but inside of `folded`."""

    weight: Tensor
    maps: Maps | None = None  # as C++ convolves with it, where it can

    def values(self) -> Tensor:
        """What the kernel is laid out from, of the shape of the weight."""
        return self.weight

    def expand(self) -> Tensor:
        """The kernel as `forward` wants it; of one axis where C++ convolves in evaluation."""
        if not torch.is_grad_enabled() and self.maps is not None and self.maps.fit(self.weight):
            return prepared(self.values(), self.maps)
        return self.laid_out()

    def laid_out(self) -> Tensor:
        """The kernel for PyTorch."""
        raise NotImplementedError

    def natively(self, x: Tensor, bias: Tensor) -> Tensor | None:
        """The convolution by C++, or None where it cannot, or was measured to be slower."""
        maps, weight = self.maps, self.weight
        if maps is None or torch.is_autocast_enabled(x.device.type) or not maps.fit(weight):
            return None
        alike = x.device == weight.device and x.dtype == weight.dtype == bias.dtype
        if not alike or x.ndim != 4 or x.shape[1] != weight.shape[1] * maps.channels or not x.numel():
            return None
        if not torch.is_grad_enabled():
            kernel = self.kernel()
            return convolution(x, weight, bias, maps, kernel if kernel.ndim == 1 else None)
        if maps.channels == 1 and min(weight.shape[:2]) >= WIDE:  # preparing the kernel is most of the work
            return None
        return convolution(x, self.values(), bias, maps)

    def kernel(self) -> Tensor:
        """The kernel to convolve with; never part of a state dict."""
        if torch.compiler.is_compiling():
            return self.expand()
        if torch.is_grad_enabled():  # the weight may be about to change
            _laid_out.pop(self, None)
        kernel = _laid_out.get(self)
        return self.expand() if kernel is None else kernel

    def kernel_for_pytorch(self) -> Tensor:
        """The same, also where the one that is kept is for C++, which a layer in half precision has no use for."""
        kernel = self.kernel()
        if kernel.ndim == 1:
            kernel = self.laid_out()
            if self in _laid_out:
                _laid_out[self] = kernel
        return kernel


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

    The average is taken orbit by orbit, so that the kernel is exactly invariant, in the weight's own type. It is
    convolved with as a whole, or by the sums of the neighbours that share a value: by C++, or where `sums_pay`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, group: Group) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        pixels = kernel_size**2
        first = (turned_positions(kernel_size, group) - pixels // 2) % pixels  # the orbit of the centre comes first
        names, orbit = first.amin(0).unique(return_inverse=True)
        members = F.one_hot(orbit, len(names)).double().T
        self.register_buffer("orbit", orbit, persistent=False)  # [k²]
        self.register_buffer("average", (members / members.sum(1, keepdim=True)).T, persistent=False)  # [k², orbits]
        self.register_buffer("members", members.unflatten(1, (kernel_size, -1)), persistent=False)  # [orbits, k, k]
        self.orbit: Tensor
        self.average: Tensor
        self.members: Tensor

        self.maps = tied_maps(self.members) if kernel_size == 3 and len(group) > 1 else None

    def laid_out(self) -> Tensor:
        """The invariant kernel, `[out, in, k, k]`, or its free values, `[orbits, out, in]`, where `sums_pay`."""
        free = self.free(self.values())
        if sums_pay(self.weight, free.shape[2]):
            return free.permute(2, 0, 1).contiguous()
        return free.index_select(2, self.orbit).view_as(self.weight)

    def free(self, weight: Tensor) -> Tensor:
        """The mean over every orbit, `[out, in, orbits]`."""
        with torch.autocast(weight.device.type, enabled=False):
            return weight.flatten(2) @ self.average.to(weight.dtype)

    def forward(self, input: Tensor) -> Tensor:
        assert self.bias is not None
        if (y := self.natively(input, self.bias)) is not None:
            return y
        kernel = self.kernel_for_pytorch()
        if kernel.ndim == 4:
            return self._conv_forward(input, kernel, self.bias)
        return neighbour_sums(input, kernel, self.bias, self.members)


def sums_pay(weight: Tensor, orbits: int) -> bool:
    """Whether a tied convolution is faster by sums of neighbours: where it was measured (docs/results.md)."""
    return weight.device.type == "cpu" and not torch.compiler.is_compiling() and min(weight.shape[:2]) >= 16 * orbits


def neighbour_sums(x: Tensor, free: Tensor, bias: Tensor, members: Tensor) -> Tensor:
    """The convolution with the kernel `Σ_i free[i] members[i]`, of stride 1 and the size of its input.

    x `[B, I, H, W]`; free `[n, O, I]`; bias `[O]`; members `[n, k, k]` of 0 and 1, the first of them the centre alone.
    The pixels that share a value are summed before the product with it: n products instead of k².
    """
    if torch.is_autocast_enabled(x.device.type):
        kind = torch.get_autocast_dtype(x.device.type)
        x, free, bias = x.to(kind), free.to(kind), bias.to(kind)
    y: Tensor = _NeighbourSums.apply(x, free, bias, members.to(x.dtype))
    return y


class _NeighbourSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, free: Tensor, bias: Tensor, members: Tensor) -> Tensor:
        ctx.save_for_backward(x, free, members)
        centre, *others = _sums(x, members)
        y = torch.addmm(bias, centre, free[0].T)
        for own, values in zip(others, free[1:], strict=True):
            y.addmm_(own, values.T)
        return _image(y, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Sums of the gradient's neighbours, with the kernel turned by 180°, serve both x and the values."""
        x, free, members = ctx.saved_tensors
        sums, pixels = _sums(grad, members.flip(1, 2)), _pixels(x)
        of_x = sums[0] @ free[0]
        for own, values in zip(sums[1:], free[1:], strict=True):
            of_x.addmm_(own, values)
        return _image(of_x, x), torch.stack([own.T @ pixels for own in sums]), sums[0].sum(0), None


def _sums(x: Tensor, members: Tensor) -> list[Tensor]:
    """The sum over every set of neighbours, one row a pixel: n x `[B H W, C]`."""
    channels, k = x.shape[1], members.shape[-1]
    kernels = (m.expand(channels, 1, k, k) for m in members[1:])
    return [_pixels(x), *(_pixels(F.conv2d(x, kernel, padding=k // 2, groups=channels)) for kernel in kernels)]


def _pixels(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _image(pixels: Tensor, like: Tensor) -> Tensor:
    return pixels.view(len(like), *like.shape[2:], pixels.shape[1]).permute(0, 3, 1, 2)


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
        self.maps = regular_maps(group.name) if kernel_size == 3 and n > 1 and not kind else None

    def laid_out(self) -> Tensor:
        """The kernel of the ordinary convolution, `[out channels, in channels, k, k]`."""
        weight = self.values().flatten(2).index_select(2, self.index.flatten())
        weight = weight.unflatten(2, self.index.shape).permute(0, 2, 1, 3, 4)  # [O, h, I, h', k²]
        return weight.reshape(*self.channels, self.kernel_size, self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        if (y := self.natively(x, self.bias)) is not None:
            return y
        bias = self.bias.repeat_interleave(self.repeat)
        return F.conv2d(x, self.kernel_for_pytorch(), bias, padding=self.kernel_size // 2)
