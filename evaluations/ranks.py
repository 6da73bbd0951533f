"""Several processes that share the batches: torchrun's environment, and what rank 0 gathers from the others.

Every number is computed by rank 0; the others send it what they found, through the CPU, and are done.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

T = TypeVar("T")
PATIENCE = timedelta(hours=2)  # for what only rank 0 does, such as reading images that are in the cache


@dataclass(frozen=True)
class Ranks:
    """This process, the `rank`-th of `size`: it takes the batches rank, rank + size, ..."""

    rank: int = 0
    size: int = 1

    def active(self, batches: int) -> int:
        """How many ranks have any of so many batches."""
        return min(self.size, batches)

    def from_main(self, make: Callable[[], T]) -> T:
        """What `make` returns on rank 0, on every rank; it runs nowhere else. Something that can be pickled."""
        if self.size == 1:
            return make()
        made: list[Any] = [make() if self.rank == 0 else None]
        dist.broadcast_object_list(made)
        return made[0]

    def send(self, array: np.ndarray) -> None:
        """To rank 0, which receives in the order of sending."""
        dist.send(torch.from_numpy(np.ascontiguousarray(array)), 0)

    def receive(self, place: np.ndarray, rank: int) -> None:
        """What that rank sent, of the shape and type of `place`, into it."""
        dist.recv(torch.from_numpy(place), rank)


class Rows:
    """What every rank found of its batches, row by row, brought together in the order of the images.

    Its memory is taken once: small pieces kept from every batch would scatter over the heap, which then grows with
    every batch although the rest of it is free.
    """

    def __init__(self, ranks: Ranks, total: int, batch_size: int) -> None:
        self.ranks, self.total, self.batch_size = ranks, total, batch_size
        self.own = 0
        self.rows = np.empty(0)

    def add(self, rows: np.ndarray) -> None:
        """Of this rank's next batch."""
        if not self.own:
            batches = range(self.ranks.rank, -(-self.total // self.batch_size), self.ranks.size)
            length = self.total if self.ranks.rank == 0 else len(batches) * self.batch_size
            self.rows = np.empty((length, *rows.shape[1:]), rows.dtype)
        start = self.own * self.batch_size * (self.ranks.size if self.ranks.rank == 0 else 1)
        self.rows[start : start + len(rows)] = rows
        self.own += 1

    def gathered(self) -> np.ndarray | None:
        """All rows [total, ...] on rank 0, None on the others; all ranks call it."""
        size = self.batch_size
        for number in range(-(-self.total // size)):
            sender, local = number % self.ranks.size, number // self.ranks.size
            count = min(size, self.total - number * size)
            if sender and self.ranks.rank == 0:
                self.ranks.receive(self.rows[number * size : number * size + count], sender)
            elif sender and self.ranks.rank == sender:
                self.ranks.send(self.rows[local * size : local * size + count])
        return None if self.ranks.rank else self.rows


ONE = Ranks()
_shared: list[dist.Store] = []  # of the ranks that have met, to tell who failed first


def meet() -> Ranks:
    """The ranks that torchrun started, after they have met; one process without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ONE
    store, rank, size = next(iter(dist.rendezvous("env://")))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)
    _shared.append(store)
    return Ranks(rank, size)


def leave() -> None:
    """Ends the meeting, if there was one; a rank that fails just ends."""
    if _shared:
        dist.destroy_process_group()
        _shared.clear()


def first_to_fail() -> bool:
    """Whether this rank is to say why it fails: the first of all does."""
    return not _shared or int(_shared[0].add("failed", 1)) == 1


def local_rank() -> int:
    """The number of this process on its machine, and so of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))
