"""Batches as a pure function of the seed and the step, whatever the number of workers."""

import atexit
import itertools
import os
import signal
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ddbm.symmetry.groups import IDENTITY, Element, act
from ddbm.symmetry.pairs import Batch

from .base import Item, Pairs
from .latents import Latents


def train_batches(
    data: Pairs,
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
    Of latents it is the copy that was turned before it was encoded.

    Sample n = step * batch_size + j is the (n mod len)-th of the shuffle of epoch n // len. With several ranks each
    gets its `batch_size / ranks` consecutive samples of every batch. Raises ValueError for what cannot be read.
    """
    assert batch_size % ranks == 0, "a batch has the same number of images for every rank"
    share = batch_size // ranks
    firsts = (step * batch_size + rank * share for step in itertools.count(start_step))
    numbers = (range(first, first + share) for first in firsts)
    return _batches(_TrainSamples(data, seed, tuple(elements)), numbers, workers)


def eval_batches(data: Pairs, *, batch_size: int, workers: int = 0, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
    """Every pair once, in the order of the data set; the last batch may be short.

    Several ranks take turns: rank r gets the batches r, r + ranks, ...
    """
    numbers = (
        range(i, min(i + batch_size, len(data))) for i in range(rank * batch_size, len(data), ranks * batch_size)
    )
    return batches_of(data, numbers, workers)


def batches_of(data: Pairs, numbers: Iterable[Sequence[int]], workers: int = 0) -> Iterator[Batch]:
    """A batch for every list of positions in the data set, as in `eval_batches`."""
    return _batches(_EvalSamples(data), numbers, workers)


class _EvalSamples(Dataset):
    def __init__(self, data: Pairs) -> None:
        self.data = data

    def __getitem__(self, n: int) -> tuple[int, Item] | ValueError:
        try:
            return self.draw(n)
        except ValueError as error:  # as a value: a worker would wrap what it raises in a long traceback
            return error

    def draw(self, n: int) -> tuple[int, Item]:
        return n, self.data.get(n, None)


class _TrainSamples(_EvalSamples):
    def __init__(self, data: Pairs, seed: int, elements: tuple[Element, ...]) -> None:
        super().__init__(data)
        self.seed, self.elements = seed, elements

    def draw(self, n: int) -> tuple[int, Item]:
        epoch, position = divmod(n, len(self.data))
        index = int(_shuffle(self.seed, epoch, len(self.data))[position])
        rng = np.random.default_rng((self.seed, 1, n))
        if isinstance(self.data, Latents):  # the codec need not commute with the group
            return index, self.data.turned(index, self._element(rng))
        item = self.data.get(index, rng)
        element = self._element(rng)  # one draw for all images of the pair
        mask = None if item.mask is None else act(element, item.mask)
        return index, Item(act(element, item.target), act(element, item.source), mask, item.label)

    def _element(self, rng: np.random.Generator) -> Element:
        return self.elements[rng.integers(len(self.elements))]


@lru_cache(maxsize=2)
def _shuffle(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(length)


def _batches(samples: _EvalSamples, numbers: Iterable[Sequence[int]], workers: int) -> Iterator[Batch]:
    batches = _loaded(samples, numbers, workers)
    _open.add(batches)
    return batches


def _loaded(samples: _EvalSamples, numbers: Iterable[Sequence[int]], workers: int) -> Generator[Batch, None, None]:
    loader: DataLoader[Any] = DataLoader(
        samples,
        batch_sampler=numbers,  # type: ignore[arg-type]  # any iterable of lists will do
        num_workers=min(workers, os.cpu_count() or 1),  # more would only take turns, and torch warns
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_ignore_signals,
        generator=torch.Generator(),  # else the loader draws from the global one, and resuming differs
    )
    for batch in loader:
        if isinstance(batch, ValueError):
            raise batch
        yield batch


def _ignore_signals(worker: int) -> None:
    """Lets the training answer a signal to all processes (Ctrl-C, Slurm, systemd): to finish its step it needs workers.

    They end when the training closes its batches, or is no more.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


_open: WeakSet[Generator[Batch, None, None]] = WeakSet()


@atexit.register
def _close() -> None:
    """Ends the workers of all batches, as Python would do it by a SIGTERM and wait."""
    for batches in list(_open):
        batches.close()


def _collate(samples: list[tuple[int, Item] | ValueError]) -> Batch | ValueError:
    """The batch, or what the first image that cannot be read says."""
    for sample in samples:
        if isinstance(sample, ValueError):
            return sample
    index, items = zip(*samples, strict=True)
    targets, sources, masks, labels = zip(*items, strict=True)
    mask = None
    if any(one is not None for one in masks):
        whole = torch.ones(1, *targets[0].shape[-2:], dtype=torch.bool)
        mask = torch.stack([whole if one is None else one for one in masks])
    label = None if labels[0] is None else torch.tensor(labels)
    return Batch(torch.stack(targets), torch.stack(sources), torch.tensor(index), mask, label)
