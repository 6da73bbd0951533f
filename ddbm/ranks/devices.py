"""The device a program runs on, and whether an error says that its memory is full."""

import torch

from .distributed import Unmet, World


def pick_device(name: str, tf32: bool = False, world: World = World()) -> torch.device:  # noqa: B008
    """auto: the GPU if there is one, of several that of the rank; float32 is float32 unless tf32."""
    gpus = torch.cuda.device_count()
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError
    except RuntimeError:
        raise ValueError(f"unknown device '{name}': known are auto, cpu, cuda, cuda:N") from None
    if device.type == "cpu":  # what works on the CPU leaves a training beside it alone
        return device
    if (device.index or 0) >= gpus:
        raise ValueError(f"--device {name}: this machine has {gpus} GPUs that PyTorch can use")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    if world.size == 1:
        return device
    if device.index is not None:
        raise Unmet(f"--device {device} is one GPU, but there are {world.size} ranks: say --device cuda")
    if world.local_rank >= gpus and not (world.launcher == "slurm" and gpus == 1):  # --gpus-per-task=1 shows only one
        raise Unmet(
            f"rank {world.rank} is number {world.local_rank + 1} on its node, which has {gpus} GPUs: "
            "start one rank a GPU (NGPU=n)"
        )
    return torch.device("cuda", min(world.local_rank, gpus - 1))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says so; a CPU's allocator has no type of its own for it."""
    words = ("DefaultCPUAllocator", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)
