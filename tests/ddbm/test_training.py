"""Training: exact resume, what a step computes, what a checkpoint refuses."""

import copy
import hashlib
import itertools
import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch

from datasets import Batch
from ddbm import checkpoint, load, logger
from ddbm.config import BridgeConfig, Config, DataConfig, ModelConfig, TrainConfig
from ddbm.groups import act, inverse
from ddbm.model import BridgeModel, ImageShape
from ddbm.symmetry import equivariance_error
from ddbm.trainer import Trainer, train

SHAPE = ImageShape(1, 1, 8, 8, 0)
DEVICE = torch.device("cpu")


def batches(start=0):
    for step in itertools.count(start):
        rng = np.random.default_rng(step)
        target, source = torch.from_numpy(rng.uniform(-1, 1, (2, 4, 1, 8, 8)).astype(np.float32))
        yield Batch(target, source, torch.arange(4), None, None)


def trainer(dropout=0.2, model=None, **settings):
    config = Config(
        data=DataConfig(dataset="test"),
        bridge=BridgeConfig(schedule="vp"),
        model=ModelConfig(
            model_channels=8, channel_mult=(1, 2), num_res_blocks=1, num_head_channels=8,
            dropout=dropout, **(dict(layers="tied", group="D4") | (model or {})),
        ),
        train=TrainConfig(
            **(dict(total_steps=12, batch_size=4, lr=1e-3, lr_warmup_steps=5, log_interval=2) | settings)
        ),
    )  # fmt: skip
    torch.manual_seed(0)
    return Trainer(config, BridgeModel(config, SHAPE), DEVICE)


def validation():
    return itertools.islice(batches(1000), 2)


def contents(path):
    """Every tensor and value of a checkpoint."""
    files = {p.stem: checkpoint.read_weights(path, p.stem) for p in path.glob("*.safetensors")}
    return files, checkpoint.read_state(path), checkpoint.read_header(path)


def assert_same(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


@pytest.mark.parametrize(
    "settings", [{"optimizer": "radam"}, {"optimizer": "adam", "regularization_weight": 0.3}], ids=str
)
def test_resuming_is_exact(tmp_path, settings):
    """12 steps are 5 steps, a new process's start and 7 steps, bit for bit, also with another save interval."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(trainer(**settings), batches(), validation, whole_dir(whole))
    first = trainer(**settings, save_interval=5)
    for _ in range(5):
        first.train_step(next(batches(first.step)))
    first.save(parts)
    torch.manual_seed(123)  # nothing may hang on the state of the old process
    second = trainer(**settings)
    second.restore(checkpoint.latest(parts, print))
    assert second.step == 5
    train(second, batches(5), validation, parts)
    paths = [checkpoint.latest(p, print) for p in (whole, parts)]
    assert [p.name for p in paths] == ["step_00000012"] * 2
    assert_same(contents(paths[0])[:2], contents(paths[1])[:2])
    losses = [[r["loss"] for r in logger.read(p / "log.jsonl") if r["step"] > 6] for p in (whole, parts)]
    assert losses[0] == losses[1]


def whole_dir(path):
    path.mkdir()
    return path


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
    t = trainer(ema_rate=0.5)
    average = [p.detach().clone().double() for p in t.model.network.parameters()]
    for step, batch in enumerate(itertools.islice(batches(), 8)):
        t.train_step(batch)
        assert t.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * min(1, (step + 1) / 5))
        rate = min(0.5, (1 + step) / (10 + step))
        average = [
            rate * a + (1 - rate) * p.double() for a, p in zip(average, t.model.network.parameters(), strict=True)
        ]
    for a, p in zip(average, t.ema.network.parameters(), strict=True):
        torch.testing.assert_close(a, p.double(), rtol=1e-5, atol=1e-7)
    assert not t.ema.network.training and t.model.network.training


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
    for p in t.teacher.network.parameters():
        torch.nn.init.normal_(p, std=0.1)
    times = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)
    noise = torch.randn(4, 1, 8, 8)
    bridge, g = t.model.bridge, (1, 1)
    a, b, c = (v.float().view(-1, 1, 1, 1) for v in bridge.coefficients(times))
    c_in = bridge.precondition(times).c_in.float().view(-1, 1, 1, 1)
    x = c_in * (a * batch.source + b * batch.target + c * noise)
    c_noise = bridge.precondition(times).c_noise.float()
    F = t.model.network(x, c_noise, batch.source)
    T = act(inverse(g), t.teacher.network(act(g, x), c_noise, act(g, batch.source)))
    everything = slice(None)
    bare = t._losses(t.model.network, batch, times, noise, everything)
    full = t._losses(t.model.network, batch, times, noise, everything, g)
    torch.testing.assert_close(full - bare, weight * (F - T).square().mean((1, 2, 3)), rtol=1e-4, atol=1e-5)
    full.sum().backward()
    assert all(p.grad is None for p in t.teacher.network.parameters()) and not t.teacher.network.training
    before = [p.clone() for p in t.teacher.network.parameters()]
    t.train_step(batch)
    moved = [
        (p, q, r) for p, q, r in zip(before, t.teacher.network.parameters(), t.model.network.parameters(), strict=True)
    ]
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


def test_a_loss_that_is_not_finite_stops_and_leaves_the_checkpoint(tmp_path):
    t = trainer(save_interval=4)

    def poisoned():
        for step, batch in enumerate(batches()):
            yield batch if step < 5 else batch._replace(target=batch.target * float("nan"))

    with pytest.raises(ValueError, match="loss is nan at step 6"):
        train(t, poisoned(), validation, tmp_path)
    assert checkpoint.latest(tmp_path, print).name == "step_00000004"


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
        t.save(tmp_path)
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

    assert train(t, interrupted(), validation, tmp_path) == signal.SIGTERM
    assert checkpoint.latest(tmp_path, print).name == "step_00000004"


# ---------------------------------------------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    t = trainer(dropout=0.0, keep_checkpoints=2)
    for batch in itertools.islice(batches(), 3):
        t.train_step(batch)
        t.save(run)
    return run


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def test_old_checkpoints_are_pruned_and_leftovers_removed(run):
    assert [step for step, _ in checkpoint.steps(run)] == [2, 3]
    left = run / "checkpoints" / ".step_00000009.1"
    left.mkdir()
    t = trainer()
    t.step = 4
    t.save(run)
    assert not left.exists()


def test_load_gives_the_average_in_evaluation_mode(run):
    model, raw = load(run), load(run / "checkpoints" / "step_00000003", weights="model")
    assert not model.training and model.config.model.group == "D4"
    average = checkpoint.read_weights(run / "checkpoints" / "step_00000003", "ema")
    assert_same(dict(model.network.state_dict()), average)
    assert not torch.equal(model.network.head.bias, raw.network.head.bias)


def test_checkpoints_hold_no_expanded_kernels(run):
    plain = BridgeModel(Config(model=ModelConfig(model_channels=8, channel_mult=(1, 2), num_res_blocks=1,
                                                 num_head_channels=8)), SHAPE)  # fmt: skip
    weights = checkpoint.read_weights(run / "checkpoints" / "step_00000003", "model")
    assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in plain.network.state_dict().items()}


def damage(newest, how):
    file = newest / "model.safetensors"
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:-10])
    elif how == "changed":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(bytes(data))
    elif how == "missing":
        file.unlink()
    elif how == "manifest":
        (newest / "manifest.json").write_text('{"format": ')
    elif how == "unfinished":
        (newest / "manifest.json").unlink()


DAMAGES = pytest.mark.parametrize("how", ["truncated", "changed", "missing", "manifest", "unfinished"])


@DAMAGES
def test_a_damaged_checkpoint_is_named_and_passed_over(run, how):
    newest = run / "checkpoints" / "step_00000003"
    damage(newest, how)
    with pytest.raises(ValueError, match="step_00000003"):
        load(newest)
    said = []
    assert checkpoint.latest(run, said.append).name == "step_00000002"
    assert len(said) == 1 and "step_00000003" in said[0] and "\n" not in said[0]


def test_other_kinds_are_refused(run, tmp_path):
    file = tmp_path / "model.pt"
    torch.save({"w": torch.zeros(1)}, file)
    empty = whole_dir(tmp_path / "empty")
    other = run / "checkpoints" / "step_00000003"
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"format": "ddbm-checkpoint-99"}))
    for path, words in (
        (file, "is a file"),
        (empty, "manifest.json"),
        (other, "another kind"),
        (tmp_path / "no", "no ch"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            load(path)
        assert str(path) in str(error.value)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_code_in_a_checkpoint_is_refused_and_not_executed(run, tmp_path, monkeypatch):
    """Also in one whose manifest was made to fit."""
    monkeypatch.chdir(tmp_path)
    newest = run / "checkpoints" / "step_00000003"
    torch.save({"optimizer": Evil()}, tmp_path / "evil.pt")
    rewrite(newest, "state.pt", (tmp_path / "evil.pt").read_bytes())
    load(newest)
    with pytest.raises(ValueError, match="refused"):
        trainer(dropout=0.0).restore(newest)
    assert not (tmp_path / "executed").exists()


def rewrite(checkpoint_dir, name, data):
    """Replaces a file and makes the manifest fit."""
    (checkpoint_dir / name).write_bytes(data)
    manifest = json.loads((checkpoint_dir / "manifest.json").read_text())
    manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (checkpoint_dir / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("change", [{"colour": 1}, {"dropout": "much"}, {"group": "D5"}], ids=str)
def test_a_header_that_does_not_fit_is_refused(run, change):
    """An unknown and a mistyped setting, and a name no table has."""
    newest = run / "checkpoints" / "step_00000003"
    header = checkpoint.read_header(newest)
    model = {"model": header["config"]["model"] | change}
    rewrite(newest, "config.json", json.dumps(header | {"config": header["config"] | model}).encode())
    with pytest.raises(ValueError, match=next(iter(change))):
        load(newest)


@pytest.mark.parametrize(
    ("change", "word"),
    [(dict(model=dict(channel_mult=(1, 1))), "channel_mult"), (dict(optimizer="adam"), "optimizer")],
    ids=str,
)
def test_continuing_with_other_settings_is_refused_by_name(run, change, word):
    change = {k: v for k, v in change.items() if k != "model"}, change.get("model")
    base = trainer(dropout=0.0, **change[0])
    if change[1]:
        config = copy.deepcopy(base.config)
        object.__setattr__(config.model, "channel_mult", change[1]["channel_mult"])
        base = Trainer(config, BridgeModel(config, SHAPE), DEVICE)
    with pytest.raises(ValueError, match=word):
        base.restore(run / "checkpoints" / "step_00000003")


def test_a_full_disk_leaves_the_earlier_checkpoints(run, monkeypatch):
    t = trainer()
    t.step = 9

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        t.save(run)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step_00000002", "step_00000003"]


def test_the_log_forgets_what_came_after_the_step_it_resumes_from(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 2, "loss": 1}\n{"step": 4, "loss": 2}\n{"step": 6, "lo')
    logger.Logger(path, 3).write(step=4, loss=7)
    assert logger.read(path) == [{"step": 2, "loss": 1}, {"step": 4, "loss": 7}]
