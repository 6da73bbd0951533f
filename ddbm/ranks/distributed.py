"""Ranks: who am I among how many, meeting the others, agreeing and gathering. One process takes the same path.

Read from what the launcher left in the environment: torchrun, Slurm's srun, or an MPI (Open MPI, MPICH's Hydra, Intel
MPI), whose ranks meet by mpi4py or by MASTER_ADDR and MASTER_PORT.
"""

import ctypes
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from threading import Timer
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
MARGIN = 5.0  # seconds after which a wait that does not end by itself is ended
COLLECTIVES = timedelta(minutes=30)  # a save or an evaluation of rank 0 must fit; dead ranks are noticed at once
LAUNCHERS = (  # rank, size, local rank; the first that is there
    ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("mpi", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("mpi", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("mpi", "PMIX_RANK", "PMIX_SIZE", "MPI_LOCALRANKID"),
    ("slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)
LOST = re.compile(r"closed by peer|reset by peer|Broken pipe|Connection refused|NCCL|timed? ?out", re.IGNORECASE)


class Unmet(ValueError):
    """What keeps this rank from meeting the others: none of them can know, so it says so itself."""


@dataclass(frozen=True)
class World:
    """This process among all: rank of size, the local_rank-th of its node; launcher: who started it."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    launcher: str = ""


def world_of(environment: Mapping[str, str]) -> World:
    """The world that a launcher's environment describes; one process if there is none. Raises Unmet."""
    slurm = [environment.get(name, "") for name in LAUNCHERS[-1][1:3]]
    for launcher, *names in LAUNCHERS:
        found = [environment.get(name, "") for name in names]
        if not all(found[:2]) or (launcher == "mpi" and found[:2] == slurm):  # srun --mpi=pmi2 sets both
            continue
        try:
            rank, size, local = (int(text or 0) for text in found)
        except ValueError:
            shown = ", ".join(f"{name}={text}" for name, text in zip(names, found, strict=True))
            raise Unmet(f"expected numbers in the environment, found {shown}") from None
        if not (0 <= rank < size and 0 <= local < size):
            raise Unmet(f"{launcher} says rank {rank} of {size}, the {local}-th on its node: that cannot be")
        return World(rank, size, local, launcher)
    return World()


def pick_device(name: str, tf32: bool = False, world: World = World()) -> torch.device:
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
        return torch.device("cuda", device.index or 0)  # set_device wants a number
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


def start(world: World, device: torch.device, timeout: float) -> None:
    """Meets the other ranks, if there are any, within `timeout` seconds; NCCL for GPUs, gloo for CPUs.

    Raises ValueError when they do not come, Unmet where nobody else can say so.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not world.launcher or (world.size == 1 and "MASTER_ADDR" not in os.environ):
        return
    os.environ.update(RANK=str(world.rank), WORLD_SIZE=str(world.size), LOCAL_RANK=str(world.local_rank))
    if not ("MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ):
        with _at_most(timeout, world, "by MPI or Slurm"):
            address, port = _meeting_point(world)
        os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    options: dict[str, Any] = {"device_id": device} if device.type == "cuda" else {}
    limit = timedelta(seconds=timeout)
    try:
        with _at_most(timeout, world, f"at {place}"):
            store, rank, size = next(iter(dist.rendezvous("env://", world.rank, world.size, timeout=limit)))
            store.set_timeout(limit)
            store.set(f"here/{rank}", "1")
            _shared.append(store)
            store.wait([f"here/{r}" for r in range(size)], limit)
            store.set_timeout(COLLECTIVES)
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=COLLECTIVES, **options)
    except (dist.DistError, RuntimeError, ValueError) as error:
        kind = ValueError if _shared else Unmet
        if "EADDRINUSE" in str(error) or "in use" in str(error):
            raise kind(f"{place} is in use by another program or run: set another MASTER_PORT") from None
        raise kind(f"{_waited(timeout, world, f'at {place}')} ({str(error).splitlines()[0]})") from None


def _waited(timeout: float, world: World, where: str) -> str:
    return (
        f"rank {world.rank} of {world.size} waited {timeout:g} s for the others {where}: start all of them, with one "
        "MASTER_ADDR and MASTER_PORT that every node can reach"
    )


@contextmanager
def _at_most(timeout: float, world: World, where: str) -> Iterator[None]:
    """Ends the process when this takes longer: MPI waits for ever, and so may a connection to a foreign program."""

    def end() -> None:
        print(f"error: {_waited(timeout, world, where)}", file=sys.stderr, flush=True)
        os._exit(2)

    timer = Timer(timeout + MARGIN, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


_shared: list[Any] = []  # the store of the group, to tell who failed first


def _meeting_point(world: World) -> tuple[str, int]:
    """Address and port of rank 0, from Slurm's variables or by mpi4py."""
    if world.launcher == "slurm":
        job = int(os.environ.get("SLURM_JOB_ID", 0)) * 64 + int(os.environ.get("SLURM_STEP_ID", 0)) % 64
        nodes = os.environ.get("SLURM_STEP_NODELIST", "")
        return _first_host(nodes), 20_000 + job % 10_000
    try:
        import mpi4py

        mpi4py.rc.initialize = False
        from mpi4py import MPI as mpi
    except ImportError as error:
        raise Unmet(
            f"{world.size} ranks were started by MPI, but mpi4py cannot be imported ({error}): "
            "pip install 'ddbm[mpi]', or set MASTER_ADDR and MASTER_PORT"
        ) from None
    ctypes.CDLL(mpi.__file__).MPI_Init(None, None)  # mpi4py's own would hold up the thread that watches the time
    everyone = mpi.COMM_WORLD
    if everyone.size != world.size:
        raise Unmet(
            f"the launcher started {world.size} ranks, mpi4py sees {everyone.size}: it was built for another MPI; "
            "reinstall it, or set MASTER_ADDR and MASTER_PORT"
        )
    host = socket.gethostname()
    alone = len(set(everyone.allgather(host))) == 1
    point = everyone.bcast(("127.0.0.1" if alone else host, _free_port()) if everyone.rank == 0 else None)
    mpi.Finalize()  # nothing else needs it, and a rank that fails must not wait for the others in it
    assert isinstance(point, tuple)
    return point


def _first_host(nodes: str) -> str:
    """The first name of a Slurm node list such as `gpu[03-05,9],login1`."""
    first = re.sub(r"\[(\w+)[^\]]*\]", r"\1", nodes).split(",")[0]
    if not first:
        raise Unmet(f"SLURM_STEP_NODELIST '{nodes}' names no node: set MASTER_ADDR and MASTER_PORT")
    return first


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("", 0))
        return int(s.getsockname()[1])


def stop() -> None:
    """Leaves the others; a rank that fails just ends."""
    if dist.is_initialized():
        dist.destroy_process_group()
        _shared.clear()


# --------------------------------------------------------------------------------------------- what ranks do together


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def largest(value: int) -> int:
    """The largest of all ranks' values, on every rank; through the CPU, whatever the GPUs are doing."""
    if size() == 1:
        return value
    tensor = torch.tensor(value)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def gather(own: T) -> list[T]:
    """What every rank has, in their order, on all of them; through the CPU. Something that can be pickled."""
    if size() == 1:
        return [own]
    every: list[Any] = [None] * size()
    dist.all_gather_object(every, own)
    return every


def from_main(make: Callable[[], T]) -> T:
    """What `make` returns on rank 0, on every rank; it runs nowhere else. Something that can be pickled."""
    if size() == 1:
        return make()
    made: list[Any] = [make() if is_main() else None]
    dist.broadcast_object_list(made, device=torch.device("cpu"))
    return made[0]


def barrier() -> None:
    largest(0)


# ------------------------------------------------------------------------------------------------------ when one fails


def first_to_fail(error: BaseException) -> bool:
    """Whether this rank is to say why it fails: the first of all does, and one that the others have not met."""
    if isinstance(error, Unmet):
        return True
    if not _shared:  # such as a flag that does not exist: the same on all
        return world_of(os.environ).rank == 0
    try:
        _shared[0].set_timeout(timedelta(seconds=5))
        return int(_shared[0].add("failed", 1)) == 1
    except (RuntimeError, dist.DistError):  # rank 0 is gone with the store; its launcher says so
        return not lost_another(error)


def lost_another(error: BaseException) -> bool:
    """Whether an error says that another rank ended."""
    return size() > 1 and isinstance(error, RuntimeError) and bool(LOST.search(str(error)))
