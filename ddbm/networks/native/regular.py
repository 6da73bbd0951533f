"""Group convolutions by the irreducible basis (regular.cpp), and their gradients."""

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...symmetry.groups import GROUPS, act
from . import library

PRODUCTS = {"H": 2, "V": 2, "C2": 2, "C4": 6, "D2": 4, "D4": 12}  # of numbers, a pair of fields and a neighbour
LANES = 8  # fields come in vectors of as many, or twice as many


class _Layer(ctypes.Structure):
    """As in regular.cpp."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in "x w bias other y dw kernel gradient neighbour index".split()]
        + [(name, ctypes.c_long) for name in "B I H W O so si tile rows room threads".split()]
    )  # fmt: skip


def fits(weight: Tensor, group: str) -> bool:
    """Whether the weight `[O, I, |G|, k, k]`, O and I fields, is one that regular.cpp can work with."""
    fields, known = weight.shape[:2], group in PRODUCTS and weight.shape[2] == len(GROUPS[group])
    whole = known and weight.shape[3] == 3 and not any(n % LANES for n in fields)
    plain = weight.device.type == "cpu" and weight.dtype == torch.float32 and not torch.compiler.is_compiling()
    return whole and plain and library("regular") is not None


@cache
def _tables(group: str) -> tuple[Tensor, Tensor, Tensor]:
    """Of the 9 positions t: the neighbour h t for each h; where the weight's entry (k, k t) lies; and its adjoint's."""
    elements, inverses = GROUPS[group].elements, torch.tensor(GROUPS[group].inverses)
    position = torch.arange(9).reshape(3, 3)
    neighbour = torch.stack([act(g, position).flatten() for g in elements]).argsort(1).T
    index = 9 * torch.arange(len(elements)) + neighbour
    adjoint = 9 * inverses + 8 - torch.arange(9)[:, None]  # the entry (k^-1, -t)
    neighbour, index, adjoint = (table.int().contiguous() for table in (neighbour, index, adjoint))
    return neighbour, index, adjoint


def _call(group: str, weight: Tensor, adjoint: bool, **tensors: Tensor | None) -> None:
    """regular.cpp on tensors that lie as it wants them; adjoint: w takes the output's gradient to the input's."""
    x, threads = tensors.get("x"), torch.get_num_threads()
    neighbour, *indices = _tables(group)
    (O, so), (I, si) = ((weight.shape[i], weight.stride(i)) for i in ((1, 0) if adjoint else (0, 1)))  # noqa: E741
    sizes = dict(O=O, I=I, so=so, si=si, room=room(weight, group), threads=threads, tile=48 if O <= 32 else 96)
    if x is not None:
        B, _, H, W = x.shape
        rows = H
        while rows * W > 256 and rows % 2 == 0:
            rows //= 2
        sizes |= dict(B=B, H=H, W=W, rows=rows)
    given = tensors | dict(neighbour=neighbour, index=indices[adjoint])
    layer = _Layer(**sizes, **{name: tensor.data_ptr() for name, tensor in given.items() if tensor is not None})
    getattr(library("regular"), f"regular_{group if len(GROUPS[group]) > 2 else 'Z2'}")(ctypes.byref(layer))


def room(w: Tensor, group: str) -> int:
    """Numbers of a kernel in the irreducible basis."""
    return 9 * PRODUCTS[group] * w.shape[0] * w.shape[1]


@torch.no_grad()
def prepared(w: Tensor, group: str) -> Tensor:
    """The kernel in the irreducible basis, `[room]`, which `regular_convolution` makes for itself where it has none."""
    w, kernel = w.contiguous(), w.new_empty(room(w, group))
    _call(group, w, False, w=w, kernel=kernel)
    return kernel


def regular_convolution(x: Tensor, w: Tensor, bias: Tensor, group: str, kernel: Tensor | None = None) -> Tensor:
    """The group convolution of regular features `[B, I |G|, H, W]`, 3x3, of the size of its input.

    w: `[O, I, |G|, 3, 3]` that `fits`; bias `[O]`; kernel: `prepared(w, group)`. Twelve products a pair of fields and
    neighbour under D4, where the laid-out kernel takes 64.
    """
    y: Tensor = _RegularConvolution.apply(x, w, bias, group, kernel)
    return y


class _RegularConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor, group: str, kernel: Tensor | None) -> Tensor:
        x, w = x.contiguous(memory_format=torch.channels_last), w.contiguous()
        ctx.save_for_backward(x, w)
        ctx.group = group
        y = _like(x, len(w) * w.shape[2])
        made = dict(w=w, kernel=w.new_empty(room(w, group))) if kernel is None else dict(kernel=kernel)
        _call(group, w, False, x=x, y=y, bias=bias.contiguous(), **made)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, w = ctx.saved_tensors
        grad, dx, dw = grad.contiguous(memory_format=torch.channels_last), _like(x, x.shape[1]), torch.empty_like(w)
        size = room(w, ctx.group)
        kernel, gradient = w.new_empty(size), w.new_zeros(torch.get_num_threads(), size)
        _call(ctx.group, w, True, x=grad, w=w, other=x, y=dx, dw=dw, kernel=kernel, gradient=gradient)
        return dx, dw, grad.sum((0, 2, 3)).unflatten(0, (-1, w.shape[2])).sum(1), None, None


def _like(x: Tensor, channels: int) -> Tensor:
    """Room for features of the size of x."""
    return x.new_empty(len(x), *x.shape[2:], channels).permute(0, 3, 1, 2)
