"""Group norm, scale and shift, SiLU and dropout as one operation, by norm.cpp, and its gradients."""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import library


class _Call(ctypes.Structure):
    """As in norm.cpp."""

    _fields_ = (
        [(name, ctypes.c_int64) for name in ("B", "N", "C", "groups")]
        + [(name, ctypes.c_int32) for name in ("threads", "silu", "threshold")]
        + [(name, ctypes.c_float) for name in ("scale", "eps")]
        + [(name, ctypes.c_void_p) for name in "bits x gain bias stats y dy dx dgain dbias".split()]
    )  # fmt: skip


def fits(x: Tensor, weight: Tensor, channels: int) -> bool:
    """Whether norm.cpp takes the features, of so many channels, and the gain."""
    alike = x.device == weight.device and x.dtype == weight.dtype == torch.float32 and x.ndim == 4
    plain = x.device.type == "cpu" and not torch.compiler.is_compiling()
    return alike and plain and x.shape[1] == channels and library("norm") is not None


def normalised(
    x: Tensor, gain: Tensor, bias: Tensor, groups: int, eps: float, silu: bool, dropout: float
) -> Tensor:  # fmt: skip
    """Features `[B, C, H, W]` that `fits`, normalised in groups of channels, times gain plus bias, both `[B, C]`.

    silu: then SiLU; dropout: the share of values that become 0, each on its own, to a multiple of 2^-16: PyTorch draws
    64 bits a value, which takes longer than all the rest, and 16 decide here. The others make up for it.
    """
    dropped = min(round(dropout * 2**16), 2**16 - 1)
    bits = None
    if dropped:
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    options = dict(silu=silu, eps=eps, threshold=dropped - 2**15, scale=2**16 / (2**16 - dropped))
    y: Tensor = _Normalised.apply(x, gain, bias, bits, groups, options)
    return y


def _call(function: str, x: Tensor, groups: int, options: dict[str, Any], **tensors: Tensor | None) -> None:
    B, C, H, W = x.shape
    given = {name: tensor.data_ptr() for name, tensor in (tensors | {"x": x}).items() if tensor is not None}
    call = _Call(B=B, N=H * W, C=C, groups=groups, threads=torch.get_num_threads(), **options, **given)
    getattr(library("norm"), function)(ctypes.byref(call))


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, bias: Tensor, bits: Tensor | None, groups: int, options: dict[str, Any]
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        gain, bias = gain.contiguous(), bias.contiguous()
        y, stats = torch.empty_like(x), x.new_empty(len(x), 3, x.shape[1])
        _call("norm_forward", x, groups, options, gain=gain, bias=bias, bits=bits, stats=stats, y=y)
        ctx.save_for_backward(x, gain, bias, bits, stats)
        ctx.how = groups, options
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        x, gain, bias, bits, stats = ctx.saved_tensors
        dy, dx = grad.contiguous(memory_format=torch.channels_last), torch.empty_like(x)
        dgain, dbias = torch.zeros_like(gain), torch.zeros_like(bias)
        tensors = dict(gain=gain, bias=bias, bits=bits, stats=stats, dy=dy, dx=dx, dgain=dgain, dbias=dbias)
        _call("norm_backward", x, *ctx.how, **tensors)
        return dx, dgain, dbias, None, None, None
