"""Checkpoints: whole or not there, refused when damaged or of another kind, kept and pruned."""

import hashlib
import itertools
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from ddbm import load
from ddbm.config import EvalConfig
from ddbm.files import checkpoint
from ddbm.training import logger
from ddbm.training.loop import train
from tests.ddbm.runs import Looks, assert_same, batches, save, trainer, validation


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    t = trainer(dropout=0.0, keep_checkpoints=2, optimizer="adam", lr_warmup_steps=0)
    for batch in itertools.islice(batches(), 3):
        t.train_step(batch)
        save(t, run)
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
    save(t, run)
    assert not left.exists()


def test_load_gives_the_average_in_evaluation_mode(run):
    model, raw = load(run), load(run / "checkpoints" / "step_00000003", weights="model")
    assert not model.training and model.config.model.group == "D4"
    average = checkpoint.read_weights(run / "checkpoints" / "step_00000003", "ema")
    assert_same(dict(model.network.state_dict()), average)
    assert not torch.equal(model.network.head.bias, raw.network.head.bias)
    plain = trainer(model={"layers": "plain", "group": "none"}).model.network.state_dict()  # no expanded kernels
    assert {k: v.shape for k, v in average.items()} == {k: v.shape for k, v in plain.items()}


def damage(newest, how):
    file, manifest = newest / "model.safetensors", newest / "manifest.json"
    data = file.read_bytes()
    {
        "truncated": lambda: file.write_bytes(data[:-10]),
        "changed": lambda: file.write_bytes(data[:-1] + bytes([data[-1] ^ 1])),
        "missing": file.unlink,
        "manifest": lambda: manifest.write_text('{"format": '),
        "unfinished": manifest.unlink,
    }[how]()


@pytest.mark.parametrize("how", ["truncated", "changed", "missing", "manifest", "unfinished"])
def test_a_damaged_checkpoint_is_named_and_passed_over(run, how):
    newest = run / "checkpoints" / "step_00000003"
    damage(newest, how)
    with pytest.raises(ValueError, match="step_00000003"):
        load(newest)
    said = []
    assert checkpoint.latest(run, said.append).name == "step_00000002"
    assert len(said) == 1 and "step_00000003" in said[0] and "\n" not in said[0]


def test_a_checkpoint_that_cannot_be_read_is_named_and_passed_over(run, monkeypatch):
    """A disk or a network that fails, for the newest alone."""
    honest = Path.open

    def failing(path, *how, **more):
        if path.parent.name == "step_00000003":
            raise OSError(5, "Input/output error", str(path))
        return honest(path, *how, **more)

    monkeypatch.setattr(Path, "open", failing)
    said = []
    assert checkpoint.latest(run, said.append).name == "step_00000002"
    assert len(said) == 1 and "step_00000003 cannot be read (Input/output error)" in said[0]
    checkpoint.prune(run, 1)
    assert [step for step, _ in checkpoint.steps(run)] == [2, 3]  # the one that can be read stays


def test_other_kinds_are_refused(run, tmp_path):
    file = tmp_path / "model.pt"
    torch.save({"w": torch.zeros(1)}, file)
    (empty := tmp_path / "empty").mkdir()
    other = run / "checkpoints" / "step_00000003"
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"format": "ddbm-checkpoint-99"}))
    said = {file: "is a file", empty: "manifest.json", other: "another kind", tmp_path / "no": "no checkpoint"}
    for path, words in said.items():
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


@pytest.mark.parametrize("change", [dict(model=dict(channel_mult=(1, 1))), dict(ema_sigma_rel=(0.07,))], ids=str)
def test_continuing_with_other_settings_is_refused_by_name(run, change):
    with pytest.raises(ValueError, match=r"channel_mult: |ema_sigma_rel: "):
        trainer(**{"dropout": 0.0} | change).restore(run / "checkpoints" / "step_00000003")


def test_other_data_are_refused_in_a_run_and_taken_in_a_new_one(tmp_path):
    """By what differs; a mean up to a decoder's rounding; a checkpoint that does not know its data is taken."""
    known = {"train_pairs": 4, "train_names": "ab12", "train_source_mean": 0.25}
    old = trainer()
    save(old, tmp_path / "unknown")
    old.data = known
    save(old, tmp_path / "known")
    path, unknown = (checkpoint.latest(tmp_path / name, print) for name in ("known", "unknown"))
    for change in ({"train_pairs": 5}, {"train_names": "cd34"}, {"train_source_mean": 0.5}):
        t = trainer()
        t.data = known | change
        with pytest.raises(ValueError, match=r"other data") as error:
            t.restore(path)
        ((name, value),) = change.items()
        assert f"({name}: {known[name]} -> {value})" in str(error.value)
        t.restore(unknown)
        t.restore(path, new_run=True)
    t = trainer()
    t.data = known | {"train_source_mean": 0.251}
    t.restore(path)


def test_a_full_disk_leaves_the_earlier_checkpoints(run, monkeypatch):
    t = trainer()
    t.step = 9

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save(t, run)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step_00000002", "step_00000003"]


def test_pruning_spares_multiples_the_best_and_the_newest_whole_one(run):
    t = trainer(dropout=0.0, keep_checkpoints=2, keep_every=5)
    t.restore(run / "checkpoints" / "step_00000003")
    (run / "best.json").write_text('{"checkpoint": "step_00000002"}')
    for batch in itertools.islice(batches(3), 5):
        t.train_step(batch)
        save(t, run)
    assert [step for step, _ in checkpoint.steps(run)] == [2, 5, 7, 8]
    for step in (7, 8):
        damage(run / "checkpoints" / f"step_{step:08d}", "truncated")
    (run / "best.json").unlink()
    checkpoint.prune(run, 2)
    assert [step for step, _ in checkpoint.steps(run)] == [5, 7, 8]


def test_an_error_while_writing_reaches_training(run):
    def fail():
        raise OSError(28, "No space left on device")

    writer = checkpoint.Writer()
    writer.submit(fail)
    with pytest.raises(OSError, match="No space left"):
        writer.submit(print)
    writer.submit(fail)
    with pytest.raises(OSError, match="No space left"):
        writer.wait()


def test_the_best_checkpoint_is_kept(tmp_path):
    """Looks at steps 3, 6, 9, 12; the second is the best, and survives."""
    evaluation = Looks(iter([1.0, 3.0, 2.0, 2.5]).__next__)
    t = trainer(keep_checkpoints=1)
    object.__setattr__(t.config, "eval", EvalConfig(eval_interval=3))
    train(t, batches(), validation, tmp_path, evaluation=evaluation)
    assert [step for step, _ in checkpoint.steps(tmp_path)] == [6, 12]
    assert checkpoint.best(tmp_path)["checkpoint"] == "step_00000006"
    assert [r["eval_psnr"] for r in logger.read(tmp_path / "log.jsonl") if "eval_psnr" in r] == [1, 3, 2, 2.5]
    assert t.model.network.training
