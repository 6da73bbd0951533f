"""Training: exact resume, what a step computes, how a run ends."""

import itertools
import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch

from ddbm.files import checkpoint
from ddbm.symmetry.averaging import equivariance_error
from ddbm.symmetry.groups import act, inverse
from ddbm.training import logger
from ddbm.training.loop import owed, train
from ddbm.training.objectives import Denoising, Draw
from tests.ddbm.runs import assert_same, batches, contents, save, trainer, validation, whole_dir


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "radam", "ema_rate": (0.9, 0.99), "ema_interval": 2, "ema_snapshots": 3},
        {"optimizer": "adam", "regularization_weight": 0.3},
        {"optimizer": "adam", "precision": "fp16", "checkpoint_blocks": True, "channels_last": True},
    ],
    ids=str,
)
def test_resuming_is_exact(tmp_path, settings):
    """12 steps are 5 steps, a new process's start and 7 steps, bit for bit, also with another save interval."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(trainer(**settings), batches(), validation, whole_dir(whole))
    first = trainer(**settings, save_interval=5)
    for _ in range(5):
        first.train_step(next(batches(first.step)))
    save(first, parts)
    torch.manual_seed(123)  # nothing may hang on the state of the old process
    second = trainer(**settings)
    second.restore(checkpoint.latest(parts, print))
    assert second.step == 5
    train(second, batches(5), validation, parts)
    paths = [checkpoint.latest(p, print) for p in (whole, parts)]
    assert [p.name for p in paths] == ["step_00000012"] * 2
    assert_same(contents(paths[0])[:2], contents(paths[1])[:2])
    losses = [
        [r["loss"] for r in logger.read(p / "log.jsonl") if "loss" in r and r["step"] > 6] for p in (whole, parts)
    ]
    assert losses[0] == losses[1]


def test_weights_alone_can_be_a_beginning(tmp_path):
    """Of another bridge and data, of a model or of an average alone; a network of other shapes is refused."""
    first = trainer(optimizer="adam")
    for batch in itertools.islice(batches(), 3):
        first.train_step(batch)
    save(first, tmp_path)
    path = checkpoint.latest(tmp_path, print)
    for name in ("model", "ema"):
        second = trainer(optimizer="adam", ema_rate=(0.5, 0.9), model=dict(group="C4"))
        assert second.begin_from(path) == ["group: D4 -> C4"]
        weights = checkpoint.read_weights(path, name)
        held = [dict(second.model.network.named_parameters()), *(a.weights for a in second.averages.values())]
        assert len(held) == 5 and second.step == 0 and not second.optimizer.adam.state
        assert all(torch.equal(own[key], weights[key]) for own in held for key in weights)
        (path / "model.safetensors").unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"another network \(layers: tied -> regular\): use its settings"):
        trainer(model=dict(layers="regular")).begin_from(path)


def test_a_new_run_may_have_averages_of_other_rates(tmp_path):
    """Those of the same rate go on, whatever their names; others begin at the checkpoint's first."""
    first, second = trainer(ema_rate=(0.1, 0.9)), trainer(ema_rate=(0.9, 0.7))
    for batch in itertools.islice(batches(), 3):
        first.train_step(batch)
    save(first, tmp_path)
    path = checkpoint.latest(tmp_path, print)
    with pytest.raises(ValueError, match=r"ema_rate: \(0.1, 0.9\) -> \(0.9, 0.7\)"):
        second.restore(path)
    assert "ema_rate: (0.1, 0.9) -> (0.9, 0.7)" in second.restore(path, new_run=True)
    for own, stored in (("ema", "ema_0.9"), ("ema_0.7", "ema")):
        weights = checkpoint.read_weights(path, stored)
        assert all(torch.equal(value, weights[name]) for name, value in second.averages[own].weights.items())
    assert not torch.equal(*(next(iter(a.weights.values())) for a in list(second.averages.values())[:2]))


def test_microbatches_change_nothing_but_rounding():
    one, many = trainer(dropout=0.0), trainer(dropout=0.0, microbatch=1)
    for batch in itertools.islice(batches(), 3):
        assert one.train_step(batch).item() == pytest.approx(many.train_step(batch).item(), rel=1e-5)
    for a, b in zip(one.model.parameters(), many.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_masks_go_with_the_microbatches():
    one, many = trainer(dropout=0.0), trainer(dropout=0.0, microbatch=2)
    mask = torch.rand(4, 1, 8, 8) > 0.5
    batch = next(batches())._replace(mask=mask)
    assert one.train_step(batch).item() == pytest.approx(many.train_step(batch).item(), rel=1e-5)
    other = trainer(dropout=0.0)  # the same step without the mask
    assert trainer(dropout=0.0).train_step(batch).item() != other.train_step(next(batches())).item()


def test_the_average_and_the_warm_up_are_the_formulas():
    t = trainer(ema_rate=(0.5,), optimizer="adam")
    average = [p.detach().clone().double() for p in t.model.network.parameters()]
    for step, batch in enumerate(itertools.islice(batches(), 8)):
        t.train_step(batch)
        assert t.optimizer.adam.param_groups[0]["lr"] == pytest.approx(1e-3 * min(1, (step + 1) / 5))
        rate = min(0.5, (1 + step) / (10 + step))
        average = [
            rate * a + (1 - rate) * p.double() for a, p in zip(average, t.model.network.parameters(), strict=True)
        ]
    for a, p in zip(average, t.averaged_network().parameters(), strict=True):
        torch.testing.assert_close(a, p.double(), rtol=1e-5, atol=1e-7)
    assert not t.averaged_network().training and t.model.network.training


def test_the_gradient_is_clipped(monkeypatch):
    t = trainer(grad_clip=0.01, dropout=0.0)
    t.train_step(next(batches()))
    norm = torch.stack([p.grad.norm() for p in t.model.network.parameters() if p.grad is not None]).norm()
    assert norm <= 0.0101


def test_training_learns_and_validation_repeats(tmp_path):
    """The target is a function of the source: the loss falls well below that of a constant."""

    def easy(start=0):
        for batch in batches(start):
            yield batch._replace(target=0.5 * batch.source**2)

    t = trainer(lr=5e-3, dropout=0.0, total_steps=150, lr_warmup_steps=0, batch_size=4)
    before = t.validation_loss(itertools.islice(easy(1000), 2))
    assert before == t.validation_loss(itertools.islice(easy(1000), 2))
    train(t, easy(), lambda: itertools.islice(easy(1000), 2), tmp_path)
    assert t.validation_loss(itertools.islice(easy(1000), 2)) < 0.5 * before
    records = logger.read(tmp_path / "log.jsonl")
    assert records[-1]["step"] == 150 and "val_loss" in records[-1]


def test_the_regulariser_is_the_formula():
    """loss + weight · mean |F(x_t, x_T) - g^-1 F_teacher(g x_t, g x_T)|²: state and source turn together."""
    weight, batch = 0.7, next(batches())
    plain = dict(layers="plain", group="D4")
    t = trainer(dropout=0.0, model=plain, regularization_weight=weight, teacher_rate=0.5)
    for p in t.model.network.parameters():
        torch.nn.init.normal_(p, std=0.1)
    teacher = t.copies["teacher"]
    for p in teacher.parameters():
        torch.nn.init.normal_(p, std=0.1)
    times = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)
    noise = torch.randn(4, 1, 8, 8)
    bridge, g = t.model.bridge, (1, 1)
    a, b, c = (v.float().view(-1, 1, 1, 1) for v in bridge.coefficients(times))
    c_in = bridge.precondition(times).c_in.float().view(-1, 1, 1, 1)
    x = c_in * (a * batch.source + b * batch.target + c * noise)
    c_noise = bridge.precondition(times).c_noise.float()
    F = t.model.network(x, c_noise, batch.source)
    T = act(inverse(g), teacher(act(g, x), c_noise, act(g, batch.source)))
    draw = Draw(batch.target, batch.source, None, None, times, noise, g)
    bare = Denoising()(t.model, t.model.network, {}, draw)
    full = t.objective(t.model, t.model.network, t.copies, draw)
    torch.testing.assert_close(full - bare, weight * (F - T).square().mean((1, 2, 3)), rtol=1e-4, atol=1e-5)
    full.sum().backward()
    assert all(p.grad is None for p in teacher.parameters()) and not teacher.training
    before = [p.clone() for p in teacher.parameters()]
    t.train_step(batch)
    moved = [(p, q, r) for p, q, r in zip(before, teacher.parameters(), t.model.network.parameters(), strict=True)]
    for old, new, student in moved:  # the first step's rate is 1/10, by the warm-up
        torch.testing.assert_close(new, 0.1 * old + 0.9 * student, rtol=1e-4, atol=1e-6)


def test_the_regulariser_teaches_symmetry():
    """A plain network trained with it disagrees less with its turned self than one trained without."""
    errors = {}
    joint = torch.rand(4, 2, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    c_noise = torch.full((4,), -100.0)
    for weight in (0.0, 5.0):
        t = trainer(dropout=0.0, lr=3e-3, model=dict(layers="plain", group="D4"), regularization_weight=weight)
        for batch in itertools.islice(batches(), 100):
            t.train_step(batch._replace(target=0.5 * batch.source**2))
        network = t.model.network.eval()
        with torch.no_grad():
            found = equivariance_error(lambda z, n=network: n(z[:, :1], c_noise, z[:, 1:]), joint, t.model.group)
        errors[weight] = torch.stack(list(found.values())).mean().item()
    assert errors[5.0] < 0.7 * errors[0.0], errors


def test_the_regulariser_needs_a_group():
    with pytest.raises(ValueError, match="--group"):
        trainer(model=dict(layers="plain", group="none"), regularization_weight=1.0)


def test_bf16_trains_with_float32_weights():
    t = trainer(precision="bf16")
    losses = [t.train_step(batch) for batch in itertools.islice(batches(), 3)]
    assert all(torch.isfinite(loss) for loss in losses)
    assert {p.dtype for p in t.model.network.parameters()} == {torch.float32}


def test_an_image_that_cannot_be_read_ends_training_after_a_checkpoint(tmp_path):
    def broken():
        yield from itertools.islice(batches(), 3)
        raise ValueError("3.png: cannot be read")

    with pytest.raises(ValueError, match=r"3.png"):
        train(trainer(log_interval=100), broken(), validation, tmp_path)
    assert checkpoint.latest(tmp_path, print).name == "step_00000003"


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    t = trainer()
    with torch.no_grad():
        t.model.network.head.bias.fill_(float("inf"))
    with pytest.raises(ValueError, match="no longer finite"):
        save(t, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_a_validation_image_that_cannot_be_read_loses_nothing(tmp_path):
    def broken():
        raise ValueError("9.png: cannot be read")
        yield

    with pytest.raises(ValueError, match=r"9.png"):
        train(trainer(), batches(), broken, tmp_path)
    assert checkpoint.latest(tmp_path, print).name == "step_00000012"


def test_a_signal_saves_and_stops(tmp_path):
    t = trainer()

    def interrupted():
        for step, batch in enumerate(batches()):
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    assert not train(t, interrupted(), validation, tmp_path)
    assert checkpoint.latest(tmp_path, print).name == "step_00000003"


def test_the_time_limit_saves_and_stops(tmp_path, monkeypatch):
    """A clock that goes 10 s a look: after a minute, 6 steps are done."""
    clock = SimpleNamespace(monotonic=itertools.count(10, 10).__next__, perf_counter=time.perf_counter)
    monkeypatch.setattr("ddbm.training.stopping.time", clock)
    assert not train(trainer(time_limit=1.0), batches(), validation, tmp_path, begun=0)
    assert checkpoint.latest(tmp_path, print).name == "step_00000006"


@pytest.mark.parametrize(("size", "micro", "advice"), [(10, 4, 8), (6, 4, 8), (2, 4, 4)])
def test_a_batch_is_a_whole_number_of_passes(size, micro, advice):
    with pytest.raises(ValueError, match=f"--batch_size {size} must be .* = 4; try --batch_size {advice}"):
        trainer(batch_size=size, microbatch=micro)


def test_the_compiled_network_takes_the_same_steps(monkeypatch):
    """Traced as for a GPU, but run by PyTorch's own kernels: the compiler's would take minutes here."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, mode: compile_module(self, backend="eager"))
    one, compiled = trainer(), trainer(compile="reduce-overhead")
    for batch in itertools.islice(batches(), 2):
        assert one.train_step(batch).item() == pytest.approx(compiled.train_step(batch).item(), rel=1e-5)
    assert one.model.network.state_dict().keys() == compiled.model.network.state_dict().keys()


@pytest.mark.parametrize(
    "settings", [{}, {"precision": "fp16", "microbatch": 2}, {"regularization_weight": 0.5}], ids=str
)
def test_a_step_reads_nothing_from_the_device(settings, monkeypatch):
    """On a GPU each such reading would wait for all that is under way."""
    t = trainer(**settings)

    def stall(*_args, **_kwargs):
        raise AssertionError("a step reads a value")

    for name in ("item", "cpu", "tolist", "numpy", "__float__", "__bool__"):
        monkeypatch.setattr(torch.Tensor, name, stall)
    t.train_step(next(batches()))


class Killed(BaseException):
    """Like SIGKILL, nothing handles it."""


def test_a_validation_that_a_kill_cut_short_is_made_up_for(tmp_path):
    """Killed when the checkpoint is written and its validation is not: continued, the log is that of a whole run."""

    def killed():
        while not (parts / "checkpoints" / f"step_{first.step:08d}").exists():
            time.sleep(0.01)
        raise Killed

    def val_losses(run):
        return {r["step"]: r["val_loss"] for r in logger.read(run / "log.jsonl") if "val_loss" in r}

    whole, parts = whole_dir(tmp_path / "whole"), whole_dir(tmp_path / "parts")
    train(trainer(val_interval=6), batches(), validation, whole)
    for _ in range(2):  # at step 6, and at step 12
        first = trainer(val_interval=6)
        if newest := checkpoint.latest(parts, print):
            first.restore(newest)
        calls = iter([killed, killed] if newest is None else [validation, killed])
        with pytest.raises(Killed):
            train(first, batches(first.step), lambda calls=calls: next(calls)(), parts)
    last = trainer(val_interval=6)
    last.restore(checkpoint.latest(parts, print))
    assert last.step == 12 and owed(last, parts) == (True, False)
    assert train(last, batches(12), validation, parts)
    assert owed(last, parts) == (False, False)
    assert val_losses(parts) == val_losses(whole) and val_losses(whole).keys() == {6, 12}
