"""Batches are a function of (seed, step) alone; one draw turns all images of a pair."""

import multiprocessing
import subprocess
import time
from itertools import islice

import numpy as np
import pytest
import torch

from datasets import Batch, Item, batches_of, eval_batches, open_data, train_batches
from datasets.loader import act

D4 = tuple((flip, turns) for flip in (0, 1) for turns in range(4))
pytestmark = [  # about the machine that runs the tests
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]


class Numbered:
    """Images that hold their own index and a random crop number; odd ones have a mask."""

    source_channels, target_channels, num_classes, notice = 1, 3, 0, ""

    def __init__(self, length, size=(4, 4)):
        self.length, self.size, self.names = length, size, [str(i) for i in range(length)]

    def __len__(self):
        return self.length

    def get(self, index, rng):
        pattern = torch.arange(self.size[0] * self.size[1], dtype=torch.float32).reshape(1, *self.size) + 100 * index
        shift = 0.0 if rng is None else float(rng.random())
        mask = pattern % 3 > 0 if index % 2 else None
        return Item((pattern + shift).repeat(3, 1, 1), pattern + shift, mask, None)


def same(a, b):
    return all((x is None and y is None) or torch.equal(x, y) for x, y in zip(a, b, strict=True))


def take(data, count, **how):
    return list(islice(train_batches(data, **({"batch_size": 3, "seed": 7, "elements": D4} | how)), count))


@pytest.mark.parametrize("length", [1, 2, 5, 12])
def test_start_step_continues_the_same_sequence(length):
    whole = take(Numbered(length), 9)
    for start in (1, 4, 8):
        assert all(map(same, whole[start:], take(Numbered(length), 9 - start, start_step=start)))


@pytest.mark.parametrize("start_step", [0, 3])
def test_workers_change_nothing(start_step):
    alone, helped = (take(Numbered(5), 6, start_step=start_step, workers=workers) for workers in (0, 2))
    assert all(map(same, alone, helped))
    assert all(map(same, eval_batches(Numbered(5), batch_size=2), eval_batches(Numbered(5), batch_size=2, workers=2)))


def test_ranks_share_the_batches_of_one():
    whole = take(Numbered(5), 6, batch_size=4)
    parts = [take(Numbered(5), 6, batch_size=4, rank=rank, ranks=2) for rank in (0, 1)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(batch.target, torch.cat([first.target, second.target]))
        assert torch.equal(batch.index, torch.cat([first.index, second.index]))
    turns = [list(eval_batches(Numbered(5), batch_size=2, rank=rank, ranks=2)) for rank in (0, 1)]
    together = eval_batches(Numbered(5), batch_size=2)
    assert all(map(same, together, [turns[0][0], turns[1][0], turns[0][1]]))


def test_histology_with_workers():
    data = open_data("histology", "train")
    assert all(map(same, take(data, 2), take(data, 2, workers=1)))


def test_every_epoch_visits_each_pair_once_in_a_new_order():
    index = torch.cat([batch.index for batch in take(Numbered(10), 10)]).reshape(3, 10).tolist()
    assert all(sorted(epoch) == list(range(10)) for epoch in index)
    assert index[0] != index[1] != index[2]
    other = torch.cat([batch.index for batch in take(Numbered(10), 4, seed=8)])[:10].tolist()
    assert other != index[0]


def test_repeats_of_a_small_set_are_drawn_anew():
    targets = torch.cat([batch.target for batch in take(Numbered(1), 4)])
    assert len({float(x.sum()) for x in targets}) == len(targets)


@pytest.mark.parametrize("element", D4)
def test_the_action_mirrors_then_turns_as_numpy_does(element):
    x = torch.rand(2, 3, 5, 5)
    flip, turns = element
    mirrored = x.numpy()[..., ::-1] if flip else x.numpy()
    assert np.array_equal(act(element, x), np.rot90(mirrored, turns, (-2, -1)))


def test_one_draw_for_target_source_and_mask():
    data, seen = Numbered(5), set()
    for batch in take(data, 30):
        for j, index in enumerate(batch.index.tolist()):
            plain = data.get(index, None)
            shift = float(batch.source[j].min()) - 100 * index
            matches = [g for g in D4 if torch.allclose(act(g, plain.source) + shift, batch.source[j], atol=1e-3)]
            assert len(matches) == 1
            assert torch.allclose(act(matches[0], plain.target) + shift, batch.target[j], atol=1e-3)
            mask = torch.ones(1, 4, 4, dtype=torch.bool) if plain.mask is None else act(matches[0], plain.mask)
            assert batch.mask is None or torch.equal(batch.mask[j], mask)
            seen.add(matches[0])
    assert seen == set(D4)


def test_eval_is_in_order_with_a_short_last_batch():
    batches = list(eval_batches(Numbered(7), batch_size=3))
    assert [batch.index.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    assert batches[0].target.shape == (3, 3, 4, 4) and batches[0].source.shape == (3, 1, 4, 4)
    assert batches[0].index.dtype == torch.int64 and batches[2].mask is None and batches[2].label is None
    assert batches[0].mask[0].all() and not batches[0].mask[1].all()
    chosen = batches_of(Numbered(7), [range(2, 4), [6, 0]], workers=1)
    assert [batch.index.tolist() for batch in chosen] == [[2, 3], [6, 0]]


def test_the_global_random_state_is_left_alone():
    before = torch.random.get_rng_state()
    take(Numbered(5), 2)
    list(eval_batches(Numbered(5), batch_size=2))
    assert torch.equal(before, torch.random.get_rng_state())


def test_to_keeps_the_batch(make, tmp_path):
    for kind in ("cat", "dog"):
        for side in ("source", "target"):
            make.write(tmp_path / side / kind / "0.png", make.noise())
    data = open_data("mine", "train", data_dir=str(tmp_path), num_classes=2)
    batch = next(eval_batches(data, batch_size=2))
    moved = batch.to("cpu")
    assert isinstance(moved, Batch) and same(batch, moved) and batch.label.tolist() == [0]


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


def test_workers_outlive_signals_of_others_and_obey_their_parent():
    """Slurm and terminals signal all processes of a job; training then still needs its batch."""
    batches = train_batches(Numbered(5), batch_size=3, seed=7, workers=1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    for name in ("TERM", "INT", "USR1"):  # from another process
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    time.sleep(0.2)
    assert same(next(batches), take(Numbered(5), 2, elements=((0, 0),))[1])
    assert worker.is_alive()
    worker.terminate()
    worker.join(10)
    assert not worker.is_alive()
    with pytest.raises(RuntimeError, match="worker"):
        for _ in range(9):
            next(batches)
