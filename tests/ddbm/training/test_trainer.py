"""Training: exact resume, and what a step and a validation compute, against their formulas."""

import copy
import itertools
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from ddbm.files import checkpoint
from ddbm.model import sample
from ddbm.networks.convolutions import SharedKernel
from ddbm.ranks import distributed, parallel
from ddbm.symmetry.frames import seed_of
from ddbm.symmetry.groups import act, inverse
from ddbm.training import logger
from ddbm.training.loop import train
from ddbm.training.objectives import Denoising, Draw
from ddbm.training.optimizer import rectification
from tests.ddbm.runs import assert_same, batches, contents, poison, save, trainer, validation


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
    with pytest.raises(ValueError, match=r"another network .layers: tied -> regular"):
        trainer(model=dict(layers="regular")).begin_from(path)


@pytest.mark.parametrize("masked", [False, True])
def test_microbatches_change_nothing_but_rounding(masked):
    one, many = trainer(dropout=0.0), trainer(dropout=0.0, microbatch=2)
    for batch in itertools.islice(batches(), 3):
        batch = batch._replace(mask=torch.rand(4, 1, 8, 8) > 0.5 if masked else None)
        assert one.train_step(batch).item() == pytest.approx(many.train_step(batch).item(), rel=1e-5)
    for a, b in zip(one.model.parameters(), many.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_draws_its_share_of_what_one_would_draw_and_dropout_for_itself(monkeypatch, rank):
    monkeypatch.setattr(distributed, "size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    t, draws = trainer(seed=7, batch_size=8, microbatch=1, loss_weighting="learned"), []
    synchronised = {t.network: [], t.weighting: []}
    monkeypatch.setattr(parallel, "gradients", lambda part, last: nullcontext(synchronised[part].append(last)))
    honest = Denoising.__call__

    def noted(*arguments):
        draws.append((arguments[-1], torch.initial_seed()))
        return honest(*arguments)

    monkeypatch.setattr(Denoising, "__call__", noted)
    t.step = 3
    batch = next(batches())._replace(mask=torch.rand(4, 1, 8, 8) > 0.5)
    loss = t.train_step(batch)
    torch.manual_seed(seed_of(7, 3))
    u, noise = torch.rand(8, dtype=torch.float64), torch.randn(8, 1, 8, 8)
    g = t.model.group.elements[int(torch.randint(8, ()))]
    for i, (draw, seed) in enumerate(draws):
        assert torch.equal(draw.t, 1e-4 + (1 - 1e-4) * u[4 * rank + i : 4 * rank + i + 1])
        assert torch.equal(draw.noise[0], noise[4 * rank + i]) and draw.g == g
        assert all(torch.equal(getattr(draw, k)[0], getattr(batch, k)[i]) for k in ("target", "source", "mask"))
        assert seed == seed_of(7, 3, rank)
    assert [*synchronised.values()] == 2 * [[False, False, False, True]] and loss.isfinite() and t.step == 4


def test_the_validation_loss_is_the_formula(monkeypatch):
    """Mean of all images of all ranks, of the average without dropout, with times and noise by index alone."""
    t = trainer(seed=5, ema_rate=(0.5,))
    t.train_step(next(batches()))
    own, other = (next(batches(s))._replace(index=torch.tensor(i)) for s, i in ((1, [6, 0, 31, 2]), (2, [1, 5, 4, 3])))
    expected = []
    for batch in (own, other):
        for k, i in enumerate(batch.index.tolist()):
            time = 1e-4 + (1 - 1e-4) * ((i + 0.5) * (5**0.5 - 1) / 2 % 1)
            noise = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(seed_of(5, i)))
            one = slice(k, k + 1)
            draw = Draw(batch.target[one], batch.source[one], None, None, torch.tensor([time]).double(), noise[None])
            with torch.no_grad():
                expected.append(Denoising()(t.model, t.averaged_network(), {}, draw).item())
    parts = [own.rows(slice(3)), own.rows(slice(3, 4))]
    assert t.validation_loss(parts) == pytest.approx(np.mean(expected[:4]), rel=1e-5) == t.validation_loss(iter(parts))
    theirs = np.array([(sum(expected[4:]), 4)] + [(0.0, 0)] * 2)
    monkeypatch.setattr(distributed, "largest", lambda rounds: max(rounds, 3))
    monkeypatch.setattr(distributed, "gather", lambda sums: [theirs, sums])
    assert t.validation_loss(parts) == pytest.approx(np.mean(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("bridge", "spread"),
    [
        (dict(schedule="linear", gamma_max=0.3, source_noise=0.4), lambda t: (0.36 * t * (1 - t) + 0.16 * t**2) ** 0.5),
        (dict(schedule="i2sb", ot=True), lambda t: 0 * t),
        (dict(schedule="i2sb", ot=True, source_noise=0.4), None),
    ],
    ids=["linear", "ot", "ot_noise"],
)
def test_a_network_that_does_or_does_not_see_the_source_is_given_states_with_the_noise_of_both(bridge, spread):
    """a x_T + b x_0 + c z, whose c has the noise on the source; the condition, if there is one, has none."""
    condition = "none" if "ot" in bridge else "source"
    t, batch, seen = trainer(bridge=bridge, model=dict(condition=condition)), next(batches()), []
    times, noise = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64), torch.randn(4, 1, 8, 8)
    forward = t.model.network.forward
    t.model.network.forward = lambda x, c_noise, source, label: seen.append((x, source)) or forward(x, c_noise, source)
    Denoising()(t.model, t.model.network, {}, Draw(batch.target, batch.source, None, None, times, noise))
    ((x, source),) = seen
    a = t.model.bridge.coefficients(times).a
    c = spread(times) if spread else 0.4 * a
    a, c, c_in = (v.float().view(-1, 1, 1, 1) for v in (a, c, t.model.bridge.precondition(times).c_in))
    torch.testing.assert_close(x, c_in * (a * batch.source + (1 - a) * batch.target + c * noise))
    assert source is None if condition == "none" else torch.equal(source, batch.source)
    assert t.model.network.stem.weight.shape[1] == (1 if condition == "none" else 2)


@pytest.mark.parametrize(("rate", "every"), [(0.5, 1), (0.3, 3), (0.9, 2)])
def test_the_average_and_the_learning_rate_are_the_formulas(rate, every):
    t = trainer(ema_rate=(rate,), ema_interval=every, optimizer="adam")
    average = [p.detach().clone().double() for p in t.model.network.parameters()]
    for step, batch in enumerate(itertools.islice(batches(), 7), 1):
        t.train_step(batch)
        assert t.optimizer.adam.param_groups[0]["lr"] == pytest.approx(1e-3 * min(1, step / 5))
        if step % every == 0:
            r = min(rate, step / (step + 9)) ** every
            average = [r * a + (1 - r) * p.double() for a, p in zip(average, t.model.network.parameters(), strict=True)]
    for a, p in zip(average, t.averaged_network().parameters(), strict=True):
        torch.testing.assert_close(a, p.double(), rtol=1e-5, atol=1e-7)
    assert not t.averaged_network().training and t.model.network.training
    t = trainer(optimizer="radam", lr_warmup_steps=0)
    t.step = 8
    assert t.learning_rate() == pytest.approx(1e-3 * rectification(9))


def test_the_learning_rate_falls_like_the_inverse_square_root():
    t, rates = trainer(optimizer="adam", lr_warmup_steps=6, lr_decay_steps=10), []
    for t.step in range(1000):
        rates.append(t.learning_rate())
    assert rates[:10] == pytest.approx([1e-3 * min(1, n / 6) for n in range(1, 11)])
    assert rates[10:] == pytest.approx([1e-3 * (10 / n) ** 0.5 for n in range(11, 1001)])
    assert trainer(optimizer="adam", lr_warmup_steps=6).learning_rate() == pytest.approx(1e-3 / 6)


@pytest.mark.parametrize("masked", [False, True])
def test_the_regulariser_is_the_formula(masked):
    """loss + weight · mean |F(x_t, x_T) - g^-1 F_teacher(g x_t, g x_T)|² inside the mask: all of them turn together."""
    weight, batch = 0.7, next(batches())
    mask = torch.rand(4, 1, 8, 8) > 0.5 if masked else torch.ones(4, 1, 8, 8, dtype=torch.bool)
    plain = dict(layers="plain", group="D4")
    t = trainer(dropout=0.0, model=plain, regularization_weight=weight, teacher_rate=0.5, ema_interval=2)
    teacher = t.copies["teacher"]
    for p in (*t.model.network.parameters(), *teacher.parameters()):
        torch.nn.init.normal_(p, std=0.1)
    times, noise = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64), torch.randn(4, 1, 8, 8)
    bridge, g = t.model.bridge, (0, 1)
    a, b, c = (v.float().view(-1, 1, 1, 1) for v in bridge.coefficients(times))
    c_in = bridge.precondition(times).c_in.float().view(-1, 1, 1, 1)
    x = c_in * (a * batch.source + b * batch.target + c * noise) * mask
    c_noise = bridge.precondition(times).c_noise.float()
    target, source = batch.target * mask, batch.source * mask  # as in the data
    F = t.model.network(x, c_noise, source)
    T = act(inverse(g), teacher(act(g, x), c_noise, act(g, source)))
    draw = Draw(target, source, mask if masked else None, None, times, noise, g)
    bare = Denoising()(t.model, t.model.network, {}, draw)
    full = t.objective(t.model, t.model.network, t.copies, draw)
    mean = ((F - T).square() * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))
    torch.testing.assert_close(full - bare, weight * mean, rtol=1e-4, atol=1e-5)
    full.sum().backward()
    assert all(p.grad is None for p in teacher.parameters()) and not teacher.training
    before = [p.clone() for p in teacher.parameters()]
    t.train_step(batch)
    moved = [(p, q, r) for p, q, r in zip(before, teacher.parameters(), t.model.network.parameters(), strict=True)]
    for old, new, student in moved:  # the first step's rate is 1/10, by the warm-up
        torch.testing.assert_close(new, 0.1 * old + 0.9 * student, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="--group"):
        trainer(model=dict(layers="plain", group="none"), regularization_weight=1.0)


@pytest.mark.parametrize("layers", ["tied", "regular"])
def test_the_network_that_is_trained_is_sampled_as_it_is(layers, monkeypatch):
    """Between steps of the fused optimiser, which change weights without a word, one of them left out; as a copy is."""
    t = trainer(model=dict(layers=layers), dropout=0.0, optimizer="adam", lr=0.05, lr_warmup_steps=0)
    source, seen = next(batches()).source, []
    for batch in (next(batches(0)), next(batches(1)), poison(next(batches(2))), next(batches(3))):
        t.train_step(batch)
        live = sample(t.model, source, nfe=2).x_0
        assert torch.equal(live, sample(copy.deepcopy(t.model), source, nfe=2).x_0)
        seen.append(live)
    assert torch.equal(seen[1], seen[2]) and not any(torch.equal(seen[a], seen[b]) for a, b in ((0, 1), (2, 3)))
    shared, calls = [m for m in t.model.network.modules() if isinstance(m, SharedKernel)], []
    kind, honest = type(shared[0]), type(shared[0]).expand
    monkeypatch.setattr(kind, "expand", lambda layer: calls.append(layer) or honest(layer))
    sample(t.model, source, nfe=3)
    before = t.validation_loss(validation())
    assert len(calls) == 2 * len(shared)  # not at every evaluation
    t.averages["ema"].weights["stem.weight"].data.mul_(2)
    assert t.validation_loss(validation()) != before


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    t = trainer()
    with torch.no_grad():
        t.model.network.head.bias.fill_(float("inf"))
    with pytest.raises(ValueError, match=r"head.bias is no longer finite at step 0"):
        save(t, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(("size", "micro", "advice"), [(10, 4, 8), (6, 4, 8), (2, 4, 4)])
def test_a_batch_is_a_whole_number_of_passes(size, micro, advice):
    with pytest.raises(ValueError, match=f"--batch_size {size} must be .* = 4; try --batch_size {advice}"):
        trainer(batch_size=size, microbatch=micro)


@pytest.mark.parametrize("backbone", ["adm", "edm2"])
def test_the_compiled_network_takes_the_same_steps(backbone, monkeypatch):
    """Traced as for a GPU, but run by PyTorch's own kernels: the compiler's would take minutes here."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, mode: compile_module(self, backend="eager"))
    small = dict(channel_mult=(1,), backbone=backbone)
    one, compiled = trainer(model=small), trainer(model=small, compile="reduce-overhead")
    for batch in itertools.islice(batches(), 2):
        assert one.train_step(batch).item() == pytest.approx(compiled.train_step(batch).item(), rel=1e-5)
    assert one.model.network.state_dict().keys() == compiled.model.network.state_dict().keys()


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"precision": "fp16", "microbatch": 2}, {"regularization_weight": 0.5},
        {"model": {"backbone": "edm2"}, "loss_weighting": "learned", "time_sampling": "lognormal"},
    ],
    ids=str,
)  # fmt: skip
def test_a_step_reads_nothing_from_the_device(settings, monkeypatch):
    """On a GPU each such reading would wait for all that is under way."""
    t = trainer(**settings)

    def stall(*_args, **_kwargs):
        raise AssertionError("a step reads a value")

    for name in ("item", "cpu", "tolist", "numpy", "__float__", "__bool__"):
        monkeypatch.setattr(torch.Tensor, name, stall)
    t.train_step(next(batches()))


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "radam", "ema_rate": (0.9, 0.99), "ema_interval": 2, "ema_snapshots": 3},
        {"optimizer": "adam", "regularization_weight": 0.3},
        {"optimizer": "adam", "precision": "fp16", "checkpoint_blocks": True},
        {"optimizer": "adam", "loss_weighting": "learned", "time_sampling": "lognormal", "lr_decay_steps": 3},
        {"optimizer": "adam", "model": {"backbone": "edm2", "layers": "regular"}, "loss_weighting": "learned"},
        {"optimizer": "adam", "bridge": dict(schedule="linear", source_noise=0.3)},
    ],
    ids=str,
)
def test_resuming_is_exact(tmp_path, settings):
    """8 steps are 5 steps, a new process's start and 3 steps, bit for bit, also with another save interval."""
    settings = settings | {"total_steps": 8, "model": {"channel_mult": (1,)} | settings.get("model", {})}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    train(trainer(**settings), batches(), validation, whole)
    first = trainer(**settings, save_interval=5)
    for _ in range(5):
        first.train_step(next(batches(first.step)))
    save(first, parts)
    torch.manual_seed(123)  # nothing may hang on the state of the old process
    second = trainer(**settings)
    assert second.restore(checkpoint.latest(parts, print)) == ["save_interval: 5 -> 5000"] and second.step == 5
    train(second, batches(5), validation, parts)
    paths = [checkpoint.latest(p, print) for p in (whole, parts)]
    assert [p.name for p in paths] == ["step_00000008"] * 2
    assert_same(contents(paths[0])[:2], contents(paths[1])[:2])
    losses = [
        [r["loss"] for r in logger.read(p / "log.jsonl") if "loss" in r and r["step"] > 6] for p in (whole, parts)
    ]
    assert losses[0] == losses[1] != []
