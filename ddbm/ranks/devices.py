"""The device a program runs on, and whether an error says that its memory is full."""

import torch


def pick_device(name: str, tf32: bool = False) -> torch.device:
    """auto: the GPU if there is one; float32 is float32 unless tf32."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError
    except RuntimeError:
        raise ValueError(f"unknown device '{name}': known are auto, cpu, cuda, cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: this machine has {torch.cuda.device_count()} GPUs that PyTorch can use")
    if device.type == "cuda":  # what works on the CPU leaves a training beside it alone
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    return device


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says so; a CPU's allocator has no type of its own for it."""
    words = ("DefaultCPUAllocator", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)
