"""Batches as a pure function of the seed and the step, whatever the number of workers."""

import itertools
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ddbm.symmetry.groups import IDENTITY, Element, act

from .base import Item, PairedData


class Batch(NamedTuple):
    target: Tensor  # float32 [B, C, H, W] in [-1, 1]
    source: Tensor  # float32 [B, C', H, W] in [-1, 1]
    index: Tensor  # type: ignore[assignment]  # int64 [B], the position in the data set (hides tuple.index)
    mask: Tensor | None  # bool [B, 1, H, W], True where the images are defined
    label: Tensor | None  # int64 [B]

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device, copied without waiting where the memory allows it."""
        return Batch(*(None if x is None else x.to(device, non_blocking=True) for x in self))  # type: ignore[arg-type]


def train_batches(
    data: PairedData,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    elements: Sequence[Element] = (IDENTITY,),
    workers: int = 0,
    rank: int = 0,
    ranks: int = 1,
) -> Iterator[Batch]:
    """Endless shuffled batches from `start_step` on, each pair turned by one random group element of `elements`.

    Sample n = step * batch_size + j is the (n mod len)-th of the shuffle of epoch n // len. With several ranks each
    gets its `batch_size / ranks` consecutive samples of every batch. Raises ValueError.
    """
    _check(data, batch_size=batch_size, workers=workers, seed=seed, start_step=start_step)
    if not elements:
        raise ValueError("elements is empty, expected at least the identity (0, 0)")
    if data.size[0] != data.size[1] and any(turns % 2 for _, turns in elements):
        height, width = data.size
        raise ValueError(
            f"quarter turns need square images, these are {height}x{width}; set --image_size N, or a group without them"
        )
    assert batch_size % ranks == 0, "a batch has the same number of images for every rank"
    share = batch_size // ranks
    firsts = (step * batch_size + rank * share for step in itertools.count(start_step))
    numbers = (range(first, first + share) for first in firsts)
    return _batches(_TrainSamples(data, seed, tuple(elements)), numbers, workers)


def eval_batches(
    data: PairedData, *, batch_size: int, workers: int = 0, rank: int = 0, ranks: int = 1
) -> Iterator[Batch]:
    """Every pair once, in the order of the data set; the last batch may be short. Raises ValueError.

    Several ranks take turns: rank r gets the batches r, r + ranks, ...
    """
    _check(data, batch_size=batch_size, workers=workers)
    numbers = (
        range(i, min(i + batch_size, len(data))) for i in range(rank * batch_size, len(data), ranks * batch_size)
    )
    return batches_of(data, numbers, workers)


def batches_of(data: PairedData, numbers: Iterable[Sequence[int]], workers: int = 0) -> Iterator[Batch]:
    """A batch for every list of positions in the data set, as in `eval_batches`."""
    return _batches(_EvalSamples(data), numbers, workers)


class _EvalSamples(Dataset):
    def __init__(self, data: PairedData) -> None:
        self.data = data

    def __getitem__(self, n: int) -> tuple[int, Item] | ValueError:
        try:
            return self.draw(n)
        except ValueError as error:  # as a value: a worker would wrap what it raises in a long traceback
            return error

    def draw(self, n: int) -> tuple[int, Item]:
        return n, self.data.get(n, None)


class _TrainSamples(_EvalSamples):
    def __init__(self, data: PairedData, seed: int, elements: tuple[Element, ...]) -> None:
        super().__init__(data)
        self.seed, self.elements = seed, elements

    def draw(self, n: int) -> tuple[int, Item]:
        epoch, position = divmod(n, len(self.data))
        index = int(_shuffle(self.seed, epoch, len(self.data))[position])
        rng = np.random.default_rng((self.seed, 1, n))
        item = self.data.get(index, rng)
        element = self.elements[rng.integers(len(self.elements))]  # one draw for all images of the pair
        mask = None if item.mask is None else act(element, item.mask)
        return index, Item(act(element, item.target), act(element, item.source), mask, item.label)


@lru_cache(maxsize=2)
def _shuffle(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(length)


def _batches(samples: _EvalSamples, numbers: Iterable[Sequence[int]], workers: int) -> Iterator[Batch]:
    loader: DataLoader[Any] = DataLoader(
        samples,
        batch_sampler=numbers,  # type: ignore[arg-type]  # any iterable of lists will do
        num_workers=min(workers, os.cpu_count() or 1),  # more would only take turns, and torch warns
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_outlive_signals,
        generator=torch.Generator(),  # else the loader draws from the global one, and resuming differs
    )
    for batch in loader:
        if isinstance(batch, ValueError):
            raise batch
        yield batch


def _outlive_signals(worker: int) -> None:
    """Lets the training answer a signal to all processes (Ctrl-C, Slurm, systemd): to finish its step it needs workers.

    SIGTERM of the training itself still ends them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _collate(samples: list[tuple[int, Item] | ValueError]) -> Batch | ValueError:
    pairs: list[tuple[int, Item]] = []
    for sample in samples:
        if isinstance(sample, ValueError):
            return sample
        pairs.append(sample)
    items = [item for _, item in pairs]
    mask = None
    if any(item.mask is not None for item in items):
        whole = torch.ones(1, *items[0].target.shape[-2:], dtype=torch.bool)
        mask = torch.stack([whole if item.mask is None else item.mask for item in items])
    labels = [item.label for item in items if item.label is not None]
    return Batch(
        torch.stack([item.target for item in items]),
        torch.stack([item.source for item in items]),
        torch.tensor([index for index, _ in pairs]),
        mask,
        torch.tensor(labels) if labels else None,
    )


def _check(data: PairedData, **numbers: int) -> None:
    if not len(data):
        raise ValueError("the data set is empty, expected at least one pair")
    for name, value in numbers.items():
        least = 1 if name == "batch_size" else 0
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")
