"""A network over ranks: copies that average their gradients (DDP), or one copy in shards (FSDP2)."""

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

from . import distributed


def wrap(network: nn.Module, kind: str, blocks: list[nn.Module], device: torch.device) -> nn.Module:
    """The network as it is trained: itself, or wrapped; `blocks` are gathered one after another by FSDP.

    kind: "ddp" or "fsdp". With FSDP the parameters of `network` become DTensors, in place.
    """
    if kind == "fsdp":
        if not torch.distributed.is_initialized():
            raise ValueError("--parallel fsdp shards a network over ranks, and there is one process: set NGPU=n")
        if device.type == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):
            raise ValueError(f"--parallel fsdp on CPUs needs a newer PyTorch than {torch.__version__}: use ddp")
        from torch.distributed.fsdp import fully_shard  # which takes half a second to import

        mesh = init_device_mesh(device.type, (distributed.size(),))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)
        return network
    if not torch.distributed.is_initialized():
        return network
    known = inspect.signature(DistributedDataParallel.__init__).parameters  # the name changed after torch 2.6
    buffers: dict[str, Any] = {next(n for n in ("forward_sync_buffers", "broadcast_buffers") if n in known): False}
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=ids, gradient_as_bucket_view=True, **buffers)


def gradients(network: nn.Module | None, synchronise: bool) -> AbstractContextManager[None]:
    """Around a forward and backward pass: whether gradients are averaged over ranks, or only accumulated yet."""
    if network is None:
        return nullcontext()
    if set_sync := getattr(network, "set_requires_gradient_sync", None):  # of FSDP
        set_sync(synchronise)
    wait = isinstance(network, DistributedDataParallel) and not synchronise
    return network.no_sync() if wait else nullcontext()  # type: ignore[operator]


def whole_copy(values: Any) -> Any:
    """A copy on the CPU, that training cannot change, of a tree of tensors; shards are gathered, on every rank."""

    def copy(value: Tensor) -> Tensor:
        whole = value.full_tensor() if hasattr(value, "full_tensor") else value
        return whole.detach().to("cpu", copy=True)

    return tree_map_only(Tensor, copy, values)


def laid_out_as(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor laid out as a parameter is: on its device, in shards if it is, in its order in memory.

    A fused optimiser reads memory without asking for its order. A tensor of another shape, a count, is only moved.
    """
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    if hasattr(parameter, "device_mesh"):  # in shards
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(parameter, DTensor)
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
