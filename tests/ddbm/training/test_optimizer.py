"""The optimiser: AdamW with clipping, steps left out, loss scale, half precision, rectification."""

import copy
import itertools

import pytest
import torch

from ddbm.files import checkpoint
from ddbm.training import optimizer
from ddbm.training.optimizer import Optimizer
from tests.ddbm.runs import assert_same, batches, save, trainer


def made(half=False, clip=0.0, weight_decay=0.0):
    """Two parameters, and an optimiser of them."""
    parameters = [torch.nn.Parameter(torch.linspace(-1, 2, n)) for n in (3, 5)]
    return parameters, Optimizer(parameters, weight_decay=weight_decay, clip=clip, half=half)


def step(made, size=1.0, lr=0.1, add=0.0):
    """A step with a gradient of this size."""
    parameters, own = made
    own.adam.zero_grad()
    own.scaled(sum((p * torch.arange(1.0, len(p) + 1)).sum() for p in parameters) * size + add).backward()
    own.step(lr)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("clip", [0.0, 0.5, 3.0])
def test_a_step_is_that_of_adamw_with_the_gradient_clipped(clip, half):
    """Against PyTorch's plain loops and its clipping: of gradients above the limit, and below, which stay small."""
    ours = made(half, clip, weight_decay=0.1)
    theirs = [p.detach().clone() for p in ours[0]]
    adam = torch.optim.AdamW(theirs, betas=(0.9, 0.999), weight_decay=0.1, foreach=False)
    for size, lr in ((1.0, 0.1), (0.02, 0.3), (0.1, 0.02)):
        step(ours, size, lr)
        for p in theirs:
            p.grad = size * torch.arange(1.0, len(p) + 1)
        if clip:
            torch.nn.utils.clip_grad_norm_(theirs, clip)
        adam.param_groups[0]["lr"] = lr
        adam.step()
        for p, q in zip(ours[0], theirs, strict=True):
            torch.testing.assert_close(p.detach(), q, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_a_loss_that_is_not_finite_leaves_the_step_out(half, value):
    """Also where its gradient is finite: weights, moments and their count stay as they were, and it is counted."""
    parameters, own = it = made(half)
    step(it)
    before = copy.deepcopy((parameters, own.adam.state_dict()["state"]))
    for count in (1, 2):
        step(it, add=float(value))
        assert_same(before, (parameters, own.adam.state_dict()["state"]))
        assert own.state["skipped"] == own.state["skipped_in_a_row"] == count
    step(it)
    assert own.state["skipped"] == 2 and own.state["skipped_in_a_row"] == 0
    assert not torch.equal(before[0][1], parameters[1])


def test_the_loss_scale_halves_and_grows_between_floor_and_ceiling(monkeypatch):
    assert (optimizer.SCALE_PATIENCE, optimizer.SCALE_FLOOR, optimizer.SCALE_CEILING) == (2000, 1, 2**24)
    monkeypatch.setattr(optimizer, "SCALE_PATIENCE", 2)
    monkeypatch.setattr(optimizer, "SCALE_FLOOR", 2.0**14)
    monkeypatch.setattr(optimizer, "SCALE_CEILING", 2.0**17)
    it, scales = made(half=True), []
    for number in range(20):
        step(it, add=float("nan") if number in (1, 4) or number > 16 else 0)
        scales.append(it[1].state["scale"].item() / 2**16)
    assert scales == [1, 0.5, 0.5, 1, 0.5, 0.5, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 0.5, 0.25]
    step(it, add=float("nan"))
    assert it[1].state["scale"] == 2**14


def test_half_precision_takes_the_step_of_float32():
    """Scaled, unscaled and clipped, the gradient is float32's but for rounding."""
    moved = {}
    for precision in ("fp32", "fp16", "bf16"):
        t = trainer(precision=precision, dropout=0.0, optimizer="adam", grad_clip=0.1)
        for batch in itertools.islice(batches(), 2):
            t.train_step(batch)
        moved[precision] = torch.cat([p.grad.flatten() for p in t.model.network.parameters() if p.grad is not None])
        assert {p.dtype for p in t.model.network.parameters()} == {torch.float32}
    assert moved["fp32"].norm() == pytest.approx(0.1, rel=1e-3)
    for precision, tolerance in (("fp16", 0.02), ("bf16", 0.1)):
        assert (moved[precision] - moved["fp32"]).norm() < tolerance * moved["fp32"].norm()


def test_rectification_is_that_of_torch():
    """From the sixth step on a step of RAdam is a step of Adam at the rectified rate (eps apart)."""
    p, q = (torch.nn.Parameter(torch.ones(5, dtype=torch.float64)) for _ in range(2))
    theirs = torch.optim.RAdam([p], lr=0.1, eps=1e-30)
    ours = torch.optim.Adam([q], lr=0.1, eps=1e-30)
    for number in range(1, 12):
        p.grad = torch.randn(5, dtype=torch.float64)
        q.grad = p.grad.clone()
        before = p.detach().clone(), q.detach().clone()
        theirs.step()
        ours.param_groups[0]["lr"] = 0.1 * optimizer.rectification(number)
        ours.step()
        if number > 5:
            torch.testing.assert_close(p - before[0], q - before[1])
    assert [optimizer.rectification(number) for number in range(1, 6)] == [0.0] * 5


def test_blocks_computed_twice_change_nothing_but_rounding():
    one, other = trainer(), trainer(checkpoint_blocks=True)
    for batch in itertools.islice(batches(), 2):
        assert one.train_step(batch).item() == pytest.approx(other.train_step(batch).item(), rel=1e-5)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("new", [False, True])
def test_what_a_continued_run_takes_of_the_old_ones_state(old, new):
    """Moments and counts; weight decay is its own; the loss scale belongs to half precision and needs it on both."""
    first, second = made(old, weight_decay=0.5), made(new, weight_decay=0.2)
    for add in (0.0, float("nan"), 0.0):
        step(first, add=add)
    second[1].load_state_dict(copy.deepcopy(first[1].state_dict()), old)
    found = {name: value.item() for name, value in second[1].state.items()}
    scale = {(True, True): 2**15, (False, True): 2**16}.get((old, new), 1)
    kept = float(old and new)
    assert found == {"scale": scale, "finite_in_a_row": kept, "skipped": 1, "skipped_in_a_row": 0}
    assert second[1].adam.param_groups[0]["weight_decay"] == 0.2
    for p, q in zip(first[0], second[0], strict=True):
        assert_same(first[1].adam.state[p], second[1].adam.state[q])


def test_the_moments_take_the_order_in_memory_of_the_weights(tmp_path):
    """Of an older run, with the channels last: the fused step reads memory without asking for its order."""
    first, second = trainer(), trainer()
    first.train_step(next(batches()))
    for moments in first.optimizer.adam.state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            moments[name] = moments[name].movedim(0, -1).contiguous().movedim(-1, 0)
    save(first, tmp_path)
    second.restore(checkpoint.latest(tmp_path, print))
    for (p, found), old in zip(second.optimizer.adam.state.items(), first.optimizer.adam.state.values(), strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            assert found[name].stride() == p.stride() and torch.equal(found[name], old[name])
