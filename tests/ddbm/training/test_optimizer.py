"""The optimiser: steps left out, loss scale, half precision, rectification."""

import copy
import itertools

import pytest
import torch

from ddbm.files import checkpoint
from ddbm.training import logger, optimizer
from ddbm.training.loop import train
from tests.ddbm.runs import assert_same, batches, poison, save, trainer, validation


def test_a_step_that_is_not_finite_is_left_out_and_counted(tmp_path):
    """Weights, averages of them, moments and their count stay as they were; the log says how many."""
    t = trainer(optimizer="adam")
    for batch in itertools.islice(batches(), 3):
        t.train_step(batch)
    before = copy.deepcopy((t.model.network.state_dict(), t.optimizer.adam.state_dict()["state"]))
    t.train_step(poison(next(batches(3))))
    assert_same(before, (t.model.network.state_dict(), t.optimizer.adam.state_dict()["state"]))
    assert t.step == 4 and t.optimizer.state["skipped"] == 1
    t.train_step(next(batches(4)))
    assert t.optimizer.state["skipped_in_a_row"] == 0
    assert not torch.equal(before[0]["head.bias"], t.model.network.head.bias)

    def one_bad():
        for step, batch in enumerate(batches()):
            yield poison(batch) if step == 5 else batch

    train(trainer(), one_bad(), validation, tmp_path)
    records = [r for r in logger.read(tmp_path / "log.jsonl") if "loss" in r]
    assert [r.get("skipped_steps") for r in records] == [None, None, 1, 1, 1, 1]
    assert all(r["loss"] is not None for r in records)


def test_the_loss_scale_halves_and_grows_between_floor_and_ceiling(monkeypatch):
    monkeypatch.setattr(optimizer, "SCALE_PATIENCE", 2)
    t = trainer(precision="fp16", optimizer="adam")
    scales = []
    for step, batch in enumerate(itertools.islice(batches(), 8)):
        t.train_step(poison(batch) if step in (1, 4) else batch)
        scales.append(t.optimizer.state["scale"].item() / 2**16)
    assert scales == [1, 0.5, 0.5, 1, 0.5, 0.5, 1, 1]
    for batch in itertools.islice(batches(8), 30):
        t.train_step(poison(batch))
    assert t.optimizer.state["scale"] == optimizer.SCALE_FLOOR
    t.optimizer.state["scale"].fill_(2.0**24)
    for batch in itertools.islice(batches(38), 4):
        t.train_step(batch)
    assert t.optimizer.state["scale"] <= optimizer.SCALE_CEILING


def test_half_precision_takes_the_step_of_float32():
    """Scaled, unscaled and clipped, the gradient is float32's but for rounding."""
    moved = {}
    for precision in ("fp32", "fp16", "bf16"):
        t = trainer(precision=precision, dropout=0.0, optimizer="adam", grad_clip=0.1)
        for batch in itertools.islice(batches(), 2):
            t.train_step(batch)
        moved[precision] = torch.cat([p.grad.flatten() for p in t.model.network.parameters() if p.grad is not None])
    for precision, tolerance in (("fp16", 0.02), ("bf16", 0.1)):
        assert (moved[precision] - moved["fp32"]).norm() < tolerance * moved["fp32"].norm()


def test_rectification_is_that_of_torch():
    """From the sixth step on a step of RAdam is a step of Adam at the rectified rate (eps apart)."""
    torch.manual_seed(0)
    p, q = (torch.nn.Parameter(torch.ones(5, dtype=torch.float64)) for _ in range(2))
    theirs = torch.optim.RAdam([p], lr=0.1, eps=1e-30)
    ours = torch.optim.Adam([q], lr=0.1, eps=1e-30)
    for step in range(1, 40):
        p.grad = torch.randn(5, dtype=torch.float64)
        q.grad = p.grad.clone()
        before = p.detach().clone(), q.detach().clone()
        theirs.step()
        ours.param_groups[0]["lr"] = 0.1 * optimizer.rectification(step)
        ours.step()
        if step > 5:
            torch.testing.assert_close(p - before[0], q - before[1])
    assert [optimizer.rectification(step) for step in range(1, 6)] == [0.0] * 5


def test_blocks_computed_twice_and_channels_last_change_nothing_but_rounding():
    one = trainer()
    for other in (trainer(checkpoint_blocks=True), trainer(channels_last=True)):
        again = copy.deepcopy(one)
        for batch in itertools.islice(batches(), 3):
            assert again.train_step(batch).item() == pytest.approx(other.train_step(batch).item(), rel=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_a_loss_that_is_not_finite_leaves_the_step_out(precision, value):
    """Also where its gradient is finite, and in one of two passes alone."""
    t = trainer(precision=precision, optimizer="adam", lr_warmup_steps=0, microbatch=2)
    honest, passes = t.objective, itertools.count()
    t.objective = lambda *a: honest(*a) + (float(value) if next(passes) == 0 else 0)
    before = copy.deepcopy(t.model.network.state_dict())
    t.train_step(next(batches()))
    assert_same(before, t.model.network.state_dict())
    assert t.optimizer.state["skipped"] == 1
    t.train_step(next(batches(1)))
    assert t.optimizer.state["skipped"] == 1 and not torch.equal(before["head.bias"], t.model.network.head.bias)


def continued(tmp_path, old, new):
    """A trainer of settings `new` that goes on after 3 steps of one of `old`."""
    common = dict(optimizer="adam", dropout=0.0, lr_warmup_steps=0)
    first, second = trainer(**common, **old), trainer(**common, **new)
    for batch in itertools.islice(batches(), 3):
        first.train_step(batch)
    save(first, tmp_path)
    second.restore(checkpoint.latest(tmp_path, print))
    return first, second


def distance(a, b):
    """Of two trainers' weights, relative."""
    one, other = (torch.cat([p.detach().flatten() for p in t.model.network.parameters()]) for t in (a, b))
    return ((one - other).norm() / one.norm()).item()


def test_the_loss_scale_belongs_to_half_precision(tmp_path):
    """float32 goes on as if it had always been float32; float16 begins with a scale, or goes on with its own."""
    half, full = continued(tmp_path / "a", {"precision": "fp16"}, {"precision": "fp32"})
    assert half.optimizer.state["scale"] == 2**16 and full.optimizer.state["scale"] == 1
    start = copy.deepcopy(full)
    for t in (half, full):
        t.train_step(next(batches(3)))
    assert distance(full, half) < 0.1 * distance(full, start)
    begun, half = continued(tmp_path / "b", {"precision": "bf16"}, {"precision": "fp16"})
    assert begun.optimizer.state["scale"] == 1 and half.optimizer.state["scale"] == optimizer.SCALE_START
    half.optimizer.state["scale"].fill_(optimizer.SCALE_FLOOR)
    save(half, tmp_path / "c")
    again = trainer(precision="fp16", optimizer="adam", dropout=0.0)
    again.restore(checkpoint.latest(tmp_path / "c", print))
    assert again.optimizer.state["scale"] == optimizer.SCALE_FLOOR


def test_another_weight_decay_is_taken_when_continuing(tmp_path):
    """Decoupled: the weights of one step are those without it, less lr x decay x weight."""
    plain, decayed = continued(tmp_path, {}, {"weight_decay": 50.0})
    weights = [p.detach().clone() for p in plain.model.network.parameters()]
    for t in (plain, decayed):
        t.train_step(next(batches(3)))
    for w, a, b in zip(weights, plain.model.network.parameters(), decayed.model.network.parameters(), strict=True):
        torch.testing.assert_close(a - b, 1e-3 * 50 * w, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("last", [True, False])
def test_the_moments_take_the_order_in_memory_of_the_weights(tmp_path, last):
    """A run that turns to channels_last, or back, goes on as it would have."""
    first, second = continued(tmp_path, {"channels_last": not last}, {"channels_last": last})
    start = copy.deepcopy(first)
    for parameter, moments in second.optimizer.adam.state.items():
        assert moments["exp_avg"].stride() == moments["exp_avg_sq"].stride() == parameter.stride()
    for t in (first, second):
        t.train_step(next(batches(3)))
    assert distance(first, second) < 1e-3 * distance(first, start)
