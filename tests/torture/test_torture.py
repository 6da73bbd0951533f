"""The kill tests in short, and that they would notice: a changed tensor, a damaged file, a step that was lost."""

import shutil
import signal
from dataclasses import replace
from pathlib import Path
from random import Random
from unittest.mock import Mock

import pytest
import safetensors.torch

from ddbm.files import checkpoint
from tests.torture import __main__ as torture
from tests.torture import run

STEPS = 30
LAST = f"checkpoints/step_{STEPS:08d}"


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Modes in one directory, so that they share the run that was left alone."""
    return torture.Torture(torture.TortureConfig(steps=STEPS), tmp_path_factory.mktemp("torture"))


@pytest.fixture
def whole(bench, tmp_path):
    """A run that was left alone, and a copy of it to spoil."""
    alone = bench.alone([*run.SETTINGS, "--total_steps", str(STEPS), "--seed", "0"], 1)[0]
    return alone, Path(shutil.copytree(alone, tmp_path / "copy"))


@pytest.mark.parametrize(("mode", "kills"), [("kill", 2), ("term", 1), ("disk", 1), ("ranks", 1)])
def test_every_mode(bench, mode, kills):
    bench.config = replace(bench.config, kills=kills)
    seen, problem = bench.run(mode)
    assert problem == "" and seen["times hit"] == kills and seen["starts"] > kills
    assert seen["aimed at a save"] == kills // 2 and seen["identical to one left alone"] == seen["runs"] > 0
    assert seen["tensors and values compared"] > 1000 and (mode != "term" or seen["steps done again"] == 0)


def spoil(path, amount):
    """Changes a number of a file of tensors; returns the tensor's name."""
    tensors = safetensors.torch.load_file(path)
    tensors[min(tensors)].view(-1)[:1].add_(amount)
    safetensors.torch.save_file(tensors, path)
    return min(tensors)


def spoil_weight(copy):
    return f"{LAST}/model/{spoil(copy / LAST / 'model.safetensors', 1e-6)}"


def spoil_snapshot(copy):
    path = sorted((copy / "ema").iterdir())[3]
    return f"ema/{path.stem}/{spoil(path, 1)}"


def lose_snapshot(copy):
    path = max((copy / "ema").iterdir())
    path.rename(copy / "gone")
    return f"ema/{path.stem}/{min(safetensors.torch.load_file(copy / 'gone'))} (missing)"


def lose_loss(copy):
    lines = (copy / "log.jsonl").read_text().splitlines(keepends=True)
    (copy / "log.jsonl").write_text("".join(line for line in lines if not line.startswith('{"step": 7,')))
    return "log/7/loss (missing)"


def lose_last_checkpoint(copy):
    shutil.rmtree(copy / LAST)
    return f"{LAST}/config/step (missing)"


@pytest.mark.parametrize("change", [spoil_weight, spoil_snapshot, lose_snapshot, lose_loss, lose_last_checkpoint])
def test_what_differs_is_named(whole, change):
    assert run.compare(*whole)[1] == []
    assert change(whole[1]) in run.compare(*whole)[1]


def test_what_is_damaged_or_left_is_found(whole):
    copy = whole[1]
    assert run.check_whole(copy) == len(checkpoint.steps(copy)) and run.leftovers(copy) == []
    for name, words in ((f"{LAST}/state.pt", LAST), ("ema/step_*", "step_"), ("run.json", "delimiter")):
        path = min(copy.glob(name))
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        with pytest.raises(ValueError, match=words):
            run.check_whole(copy)
        path.write_bytes(content)
    (copy / "checkpoints" / ".step_00000099.1").mkdir()
    (copy / ".config.json.1").touch()
    assert run.leftovers(copy) == [".config.json.1", "checkpoints/.step_00000099.1"]


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        (dict(code=-signal.SIGTERM), "exit code -15 .* expected 75"),
        (dict(step=STEPS + 1), f"step {STEPS + 1} was done, .* of step {STEPS}"),
        (dict(left={"checkpoints/.step_00000031.1"}), "left behind .*step_00000031.1"),
    ],
)
def test_a_bad_end_is_noticed(tmp_path, ended, words):
    def stopped(code=run.REQUEUE, step=STEPS, left=()):
        """A start that was asked to stop, and how it ended."""
        how = dict(wait=lambda limit: code, step=lambda: step, newest=lambda: STEPS, writes=lambda: set(left))
        return Mock(run_dir=tmp_path, **how)

    run.terminate(stopped(), Random(0))
    with pytest.raises(ValueError, match=words):
        run.terminate(stopped(**ended), Random(0))


@pytest.mark.parametrize("problem", ["", "run_0: step 3 was lost"])
def test_the_exit_code_is_the_verdict(monkeypatch, tmp_path, capsys, problem):
    monkeypatch.setattr(torture.Torture, "run", lambda self, name: ({"times hit": 2}, problem))
    argv = ["--mode", "all", "--run_dir", str(tmp_path / "new")]
    assert torture.main(argv) == bool(problem)
    out, err = capsys.readouterr()
    assert "ranks: times hit 2" in out and ("all as promised" in out) == (not problem) and problem in err
    assert (tmp_path / "new").exists() == bool(problem)  # kept to be looked at


def test_mistakes(monkeypatch, tmp_path):
    for argv, words in (
        (["--mode", "kil"], "kill"),
        (["--steps", "10"], "above 29"),
        (["--run_dir", str(tmp_path)], "is there already"),
    ):
        with pytest.raises(ValueError, match=words):
            torture.main(argv)
    monkeypatch.setattr(run.sys, "executable", "false")
    with pytest.raises(ValueError, match="exit code 1: it said nothing"):
        torture.Torture(torture.TortureConfig(), tmp_path / "new").alone(run.SETTINGS, 1)
