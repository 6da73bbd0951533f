"""Batches as a pure function of the seed and the step, whatever the number of workers."""

import atexit
import itertools
import os
import signal
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple
from weakref import WeakSet

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ddbm.symmetry.pairs import Batch

from .augmentation import Augmentation
from .base import Item, Pairs
from .images import Unreadable
from .latents import Latents
from .skipping import Skipped

PLAIN = Augmentation()


def train_batches(
    data: Pairs,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    augmentation: Augmentation = PLAIN,
    workers: int = 0,
    rank: int = 0,
    ranks: int = 1,
    skip: bool = False,
) -> Iterator[Batch]:
    """Endless shuffled batches from `start_step` on, each pair augmented by one draw. Of latents it is the copy
    that was turned before it was encoded.

    Sample n = step * batch_size + j is the (n mod len)-th of the shuffle of epoch n // len. With several ranks each
    gets its `batch_size / ranks` consecutive samples of every batch. Raises ValueError for what cannot be read; with
    `skip` the next pair of the shuffle that can takes its place, and the data's `skipped` is told.
    """
    assert batch_size % ranks == 0, "a batch has the same number of images for every rank"
    share = batch_size // ranks
    firsts = (step * batch_size + rank * share for step in itertools.count(start_step))
    numbers = (range(first, first + share) for first in firsts)
    return _batches(TrainSamples(data, seed, augmentation, skip), numbers, workers)


def eval_batches(
    data: Pairs, *, batch_size: int, workers: int = 0, rank: int = 0, ranks: int = 1, skip: bool = False
) -> Iterator[Batch]:
    """Every pair once, in the order of the data set; the last batch may be short.

    Several ranks take turns: rank r gets the batches r, r + ranks, ... With `skip` those that cannot be read are left
    out, and the data's `skipped` is told.
    """
    numbers = (
        range(i, min(i + batch_size, len(data))) for i in range(rank * batch_size, len(data), ranks * batch_size)
    )
    return batches_of(data, numbers, workers, skip)


def batches_of(data: Pairs, numbers: Iterable[Sequence[int]], workers: int = 0, skip: bool = False) -> Iterator[Batch]:
    """A batch for every list of positions in the data set, as in `eval_batches`."""
    return _batches(_EvalSamples(data, skip), numbers, workers)


class Sample(NamedTuple):
    """What a worker hands over: a pair, if there is one, and what could not be read in its place."""

    number: int  # of the pair
    item: Item | None
    problems: list[str]


class _EvalSamples(Dataset):
    def __init__(self, data: Pairs, skip: bool) -> None:
        self.data, self.skip = data, skip

    def __getitem__(self, n: int) -> Sample | ValueError:
        problems: list[str] = []
        try:
            for index in self.candidates(n):
                try:
                    return Sample(index, self.draw(n, index), problems)
                except Unreadable as error:
                    if not self.skip:
                        raise
                    problems.append(str(error))
        except ValueError as error:  # as a value: a worker would wrap what it raises in a long traceback
            return error
        return Sample(n, None, problems)

    def candidates(self, n: int) -> Iterable[int]:
        """The pair that sample n is, and those that may stand in for it."""
        return [n]

    def draw(self, n: int, index: int) -> Item:
        return self.data.get(index, None)


class TrainSamples(_EvalSamples):
    """The endless sequence of training samples, by their numbers."""

    def __init__(self, data: Pairs, seed: int, augmentation: Augmentation, skip: bool = False) -> None:
        super().__init__(data, skip)
        self.seed, self.augmentation = seed, augmentation

    def candidates(self, n: int) -> Iterable[int]:
        epoch, position = divmod(n, len(self.data))
        order = _shuffle(self.seed, epoch, len(self.data))
        return (int(order[(position + k) % len(order)]) for k in range(len(order)))

    def draw(self, n: int, index: int) -> Item:
        if isinstance(self.data, Latents):  # the codec need not commute with the group
            return self.data.turned(index, self.augmentation.element(self._rng(n)))
        *_, item = self.steps(n, index)
        return item

    def steps(self, n: int, index: int) -> Iterator[Item]:
        """Sample n, which is the pair at `index`, as it is read and after each step of augmentation."""
        rng = self._rng(n)
        yield (item := self.data.get(index, rng))
        yield from self.augmentation.steps(item, rng)

    def _rng(self, n: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, 1, n))


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
    skipped: Skipped | None = getattr(samples.data, "skipped", None)
    for read in loader:
        if isinstance(read, ValueError):
            raise read
        batch, problems = read
        for problem in problems:
            assert skipped is not None, "only files are skipped, and they have it"
            skipped.tell(problem)
        if batch is None and isinstance(samples, TrainSamples):
            raise ValueError(f"none of {len(samples.data)} pairs can be read; {problems[0]}")
        if batch is not None:
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


def _collate(samples: list[Sample | ValueError]) -> tuple[Batch | None, list[str]] | ValueError:
    """The batch, if anything of it can be read, and what cannot; or what the first image says that is no such."""
    read: list[Sample] = []
    for sample in samples:
        if isinstance(sample, ValueError):
            return sample
        read.append(sample)
    problems = [problem for sample in read for problem in sample.problems]
    pairs = [(sample.number, sample.item) for sample in read if sample.item is not None]
    if not pairs:
        return None, problems
    index, items = zip(*pairs, strict=True)
    targets, sources, masks, labels = zip(*items, strict=True)
    mask = None
    if any(one is not None for one in masks):
        whole = torch.ones(1, *targets[0].shape[-2:], dtype=torch.bool)
        mask = torch.stack([whole if one is None else one for one in masks])
    label = None if labels[0] is None else torch.tensor(labels)
    return Batch(torch.stack(targets), torch.stack(sources), torch.tensor(index), mask, label), problems
