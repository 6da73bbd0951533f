"""Convolutions that commute with a group, by convolution.cpp, and their gradients."""

import ctypes
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...symmetry.groups import GROUPS, act
from . import library

LANES = 8  # fields come in vectors of as many, or twice as many
KEPT = {"H": 2, "V": 2, "C2": 2, "C4": 6, "D2": 4, "D4": 8}  # numbers of a kernel, a pair of fields and a map


class _Layer(ctypes.Structure):
    """As in convolution.cpp."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in "x w bias other y dw kernel gradient neighbour first entry".split()]
        + [(name, ctypes.c_long) for name in "T B I H W O so si tile rows stack room threads copies".split()]
    )  # fmt: skip


class Maps(NamedTuple):
    """What a kind of convolution multiplies with its kernel; tables int32, one for it and one for its adjoint.

    function: of the library; channels: of a field; kept: numbers of a kernel, a pair of fields and a map; first: where
    the neighbours of every map begin; neighbours `[., channels]`, positions 0 .. 8; entries, as many: where in
    the weight of a pair of fields their values are, of which a map takes the mean.
    """

    function: str
    channels: int
    kept: int
    first: Tensor
    neighbours: tuple[Tensor, Tensor]
    entries: tuple[Tensor, Tensor]

    def fit(self, weight: Tensor) -> bool:
        """Whether the weight, `[O, I, ...]` of O and I fields, is one that convolution.cpp can work with."""
        maps, (out, into) = len(self.first) - 1, weight.shape[:2]
        whole = not any(fields % LANES or maps * fields % (3 * LANES) for fields in (out, into))
        plain = weight.device.type == "cpu" and weight.dtype == torch.float32 and not torch.compiler.is_compiling()
        return whole and plain and library("convolution") is not None

    def room(self, weight: Tensor) -> int:
        """Numbers of a kernel as convolution.cpp wants it."""
        return (len(self.first) - 1) * self.kept * weight.shape[0] * weight.shape[1]


def _tables(*tables: Tensor) -> Any:
    return tuple(table.int().contiguous() for table in tables)


@cache
def regular_maps(group: str) -> Maps:
    """Of regular features: map t has the neighbour h t for each h; the weight's entry for h = k is (k, k t).

    Its adjoint takes the entry (k^-1, -t).
    """
    elements, inverses = GROUPS[group].elements, torch.tensor(GROUPS[group].inverses)
    position = torch.arange(9).reshape(3, 3)
    neighbour = torch.stack([act(g, position).flatten() for g in elements]).argsort(1).T
    entries = 9 * torch.arange(len(elements)) + neighbour, 9 * inverses + 8 - torch.arange(9)[:, None]
    name = f"regular_{group if len(elements) > 2 else 'Z2'}"
    (first,) = _tables(torch.arange(10))
    return Maps(name, len(elements), KEPT[group], first, 2 * _tables(neighbour), _tables(*entries))


def tied_maps(members: Tensor) -> Maps:
    """Of scalar features and a kernel whose pixels share values: members `[maps, 3, 3]`, of 0 and 1."""
    flat = members.flatten(1)
    neighbour = flat.nonzero()[:, 1:]
    (first,) = _tables(torch.cat([torch.zeros(1), flat.sum(1).cumsum(0)]))
    return Maps("tied", 1, 1, first, _tables(neighbour, 8 - neighbour), 2 * _tables(neighbour))


def _call(maps: Maps, weight: Tensor, adjoint: bool, **tensors: Tensor | None) -> None:
    """convolution.cpp on tensors that lie as it wants them; adjoint: from the output's gradient to the input's."""
    x, threads = tensors.get("x"), torch.get_num_threads()
    (O, so), (I, si) = ((weight.shape[i], weight.stride(i)) for i in ((1, 0) if adjoint else (0, 1)))  # noqa: E741
    sizes = dict(T=len(maps.first) - 1, O=O, I=I, so=so, si=si, room=maps.room(weight), threads=threads)
    if x is not None:
        sizes |= _parts(x, O)
    given = tensors | dict(neighbour=maps.neighbours[adjoint], first=maps.first, entry=maps.entries[adjoint])
    layer = _Layer(**sizes, **{name: tensor.data_ptr() for name, tensor in given.items() if tensor is not None})
    getattr(library("convolution"), maps.function)(ctypes.byref(layer))


def _parts(x: Tensor, fields: int) -> dict[str, int]:
    """How the work on `x` for an output of so many fields is cut: into bands of rows, or several images at once.

    tile: pixels whose maps are in the cache; copies: threads that have any of the work.
    """
    (B, _, H, W), threads = x.shape, torch.get_num_threads()
    tile, rows = 48 if fields <= 32 else 96, H
    while rows % 2 == 0 and (rows * W > 256 or B * H // rows < threads):
        rows //= 2
    stack = 1 if rows < H else max(1, min(tile // (H * W), B // threads))
    return dict(B=B, H=H, W=W, rows=rows, tile=tile, stack=stack, copies=min(threads, -(-B // stack) * (H // rows)))


@torch.no_grad()
def prepared(weight: Tensor, maps: Maps) -> Tensor:
    """The kernel as convolution.cpp wants it, of one axis; `convolution` makes it for itself where it has none."""
    weight, kernel = weight.contiguous(), weight.new_empty(maps.room(weight))
    _call(maps, weight, False, w=weight, kernel=kernel)
    return kernel


def convolution(x: Tensor, weight: Tensor, bias: Tensor, maps: Maps, kernel: Tensor | None = None) -> Tensor:
    """The 3x3 convolution of features `[B, I n, H, W]` of I fields, n channels each, of the size of its input.

    weight: `[O, I, ...]` that `maps.fit`; bias `[O]`; kernel: `prepared(weight, maps)`.
    """
    y: Tensor = _NativeConvolution.apply(x, weight, bias, maps, kernel)
    return y


class _NativeConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, maps: Maps, kernel: Tensor | None) -> Tensor:
        x, w = x.contiguous(memory_format=torch.channels_last), weight.contiguous()
        ctx.save_for_backward(x, w)
        ctx.maps = maps
        y = _like(x, len(w) * maps.channels)
        made = dict(w=w, kernel=w.new_empty(maps.room(w))) if kernel is None else dict(kernel=kernel)
        _call(maps, w, False, x=x, y=y, bias=bias.contiguous(), **made)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None]:
        """The maps of the gradient serve both x and the weight, so that nothing but these is kept."""
        (x, w), maps = ctx.saved_tensors, ctx.maps
        grad, dx, dw = grad.contiguous(memory_format=torch.channels_last), _like(x, x.shape[1]), torch.empty_like(w)
        kernel, gradient = w.new_empty(maps.room(w)), w.new_zeros(_parts(grad, w.shape[1])["copies"], maps.room(w))
        _call(maps, w, True, x=grad, w=w, other=x, y=dx, dw=dw, kernel=kernel, gradient=gradient)
        dbias = grad.sum((0, 2, 3)).unflatten(0, (-1, maps.channels)).sum(1) if ctx.needs_input_grad[2] else None
        return dx, dw, dbias, None, None


def _like(x: Tensor, channels: int) -> Tensor:
    """Room for features of the size of x."""
    return x.new_empty(len(x), *x.shape[2:], channels).permute(0, 3, 1, 2)
