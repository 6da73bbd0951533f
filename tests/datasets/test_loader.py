"""Batches are a function of (seed, step) alone, stated here step by step; one draw turns all images of a pair."""

import multiprocessing
import os
import subprocess
import sys
import time
from itertools import islice

import numpy as np
import pytest
import torch

from datasets import Augmentation, Batch, Item, batches_of, eval_batches, open_data, train_batches

D4 = tuple((flip, turns) for flip in (0, 1) for turns in range(4))
pytestmark = [  # about the machine that runs the tests
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]


class Numbered:
    """Images that hold their own index and a random crop number; odd ones have a mask."""

    source_channels, target_channels, num_classes, notice = 1, 3, 4, ""

    def __init__(self, length):
        self.length, self.size, self.names = length, (4, 4), [str(i) for i in range(length)]

    def __len__(self):
        return self.length

    def get(self, index, rng):
        pattern = torch.arange(16.0).reshape(1, 4, 4) + 100 * index
        shift = 0.0 if rng is None else float(rng.random())
        mask = pattern % 3 > 0 if index % 2 else None
        return Item((pattern + shift).repeat(3, 1, 1), -pattern - shift, mask, index % 4)


def same(a, b):
    return all((x is None and y is None) or torch.equal(x, y) for x, y in zip(a, b, strict=True))


def take(data, count, **how):
    return list(
        islice(
            train_batches(data, **({"batch_size": 4, "seed": 7, "augmentation": Augmentation(elements=D4)} | how)),
            count,
        )
    )


def drawn(data, n, seed, elements):
    """Index and images of the n-th training sample."""
    order = np.random.default_rng((seed, n // len(data))).permutation(len(data))
    index = int(order[n % len(data)])
    rng = np.random.default_rng((seed, 1, n))
    item = data.get(index, rng)
    flip, turns = elements[rng.integers(len(elements))]
    mask = torch.ones(1, 4, 4, dtype=torch.bool) if item.mask is None else item.mask
    images = [image.numpy()[..., ::-1] if flip else image.numpy() for image in (item.target, item.source, mask)]
    return index, [np.rot90(image, turns, (-2, -1)) for image in images]


@pytest.mark.parametrize("length", [1, 5, 12])
@pytest.mark.parametrize(
    ("start", "rank", "ranks", "workers", "seed", "elements"),
    [(0, 0, 1, 0, 7, D4), (3, 1, 2, 0, 8, D4[:3]), (1, 3, 4, 2, 7, ((0, 0),))],
)
def test_training_step_by_step(length, start, rank, ranks, workers, seed, elements):
    data, share = Numbered(length), 4 // ranks
    how = {"start_step": start, "rank": rank, "ranks": ranks, "workers": workers} if start else {}
    for step, batch in enumerate(take(data, 9, seed=seed, augmentation=Augmentation(elements=elements), **how), start):
        assert len(batch.index) == len(batch.target) == share
        masked = False
        for j in range(share):
            index, images = drawn(data, 4 * step + rank * share + j, seed, elements)
            mask = torch.ones(1, 4, 4, dtype=torch.bool) if batch.mask is None else batch.mask[j]
            for found, expected in zip((batch.target[j], batch.source[j], mask), images, strict=True):
                assert np.array_equal(found, expected)
            assert batch.index[j] == index and batch.label[j] == index % 4
            masked |= index % 2 == 1
        assert (batch.mask is not None) == masked


@pytest.mark.parametrize("workers", [0, 1])
def test_eval_is_in_order_with_a_short_last_batch(workers):
    data = Numbered(7)
    batches = list(eval_batches(data, batch_size=3, workers=workers))
    assert [batch.index.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    for batch in batches:
        for j, index in enumerate(batch.index.tolist()):
            item = data.get(index, None)
            assert torch.equal(batch.target[j], item.target) and torch.equal(batch.source[j], item.source)
    assert batches[0].index.dtype == torch.int64 and batches[2].mask is None and batches[1].label.tolist() == [3, 0, 1]
    assert batches[0].mask[0].all() and torch.equal(batches[0].mask[1], data.get(1, None).mask)
    turns = [list(eval_batches(data, batch_size=3, rank=rank, ranks=2)) for rank in (0, 1)]
    assert all(map(same, batches, [turns[0][0], turns[1][0], turns[0][1]])) and len(turns[1]) == 1
    chosen = batches_of(data, [range(2, 4), [6, 0]], workers)
    assert [batch.index.tolist() for batch in chosen] == [[2, 3], [6, 0]]


def test_the_global_random_state_is_left_alone():
    before = torch.random.get_rng_state()
    take(Numbered(5), 2)
    list(eval_batches(Numbered(5), batch_size=2))
    assert torch.equal(before, torch.random.get_rng_state())


def test_to_keeps_the_batch():
    batch = next(eval_batches(Numbered(3), batch_size=2))
    assert isinstance(batch.to("cpu"), Batch) and same(batch, batch.to("cpu"))


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_workers_are_one_line(make, tmp_path, workers):
    root = make.two_folders(tmp_path, 4)
    (tmp_path / "train/source/1.png").write_bytes(b"broken")
    data = open_data("mine", "train", data_dir=root)
    for batches in (
        eval_batches(data, batch_size=1, workers=workers),
        train_batches(data, batch_size=2, seed=0, workers=workers),
    ):
        with pytest.raises(ValueError, match=r"1\.png: cannot be read") as error:
            for _ in range(4):
                next(batches)
        assert "\n" not in str(error.value)


def test_workers_outlive_signals():
    """Slurm and terminals signal all processes of a job; training then still needs its batch."""
    batches = train_batches(Numbered(5), batch_size=4, seed=7, workers=1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    for name in ("TERM", "INT", "USR1"):
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    time.sleep(0.2)
    assert same(next(batches), take(Numbered(5), 2, augmentation=Augmentation())[1])
    assert worker.is_alive()
    batches.close()
    worker.join(10)
    assert not worker.is_alive()


def test_workers_end_with_a_program_that_still_has_batches():
    program = (
        "import multiprocessing; from datasets import train_batches\n"
        "from tests.datasets.test_loader import Numbered\n"
        "batches = train_batches(Numbered(5), batch_size=4, seed=7, workers=1)\n"
        "next(batches)\n"
        "(worker,) = multiprocessing.active_children()\n"
        "print(worker.pid)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)
