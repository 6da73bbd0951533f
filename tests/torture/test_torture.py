"""The kill tests in short, and that they would notice: a changed tensor, a damaged file, a step that was lost."""

import shutil
import signal
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import safetensors.torch

from ddbm.files import checkpoint
from tests.torture import __main__ as torture
from tests.torture import hits, run

STEPS = 30
LAST = f"checkpoints/step_{STEPS:08d}"


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Modes in one directory, so that they share the run that was left alone."""
    config = torture.TortureConfig(steps=STEPS, disk="limit")
    return torture.Torture(config, tmp_path_factory.mktemp("torture"))


@pytest.fixture
def whole(bench, tmp_path):
    """A run that was left alone, and a copy of it to spoil."""
    alone = bench.alone([*run.SETTINGS, "--total_steps", str(STEPS), "--seed", "0"], 1)[0]
    return alone, Path(shutil.copytree(alone, tmp_path / "copy"))


@pytest.mark.parametrize(("mode", "kills"), [("kill", 2), ("term", 1), ("disk", 1), ("ranks", 1)])
def test_every_mode(bench, mode, kills):
    bench.config = replace(bench.config, kills=kills)
    tally = bench.run(mode)
    seen = tally.seen
    assert tally.problem == "" and seen["times hit"] == kills and seen["starts"] > kills
    assert seen["aimed at a save"] == kills // 2 and seen["identical to one left alone"] == seen["runs"] > 0
    assert seen["tensors and values compared"] > 1000 and seen["longest time to end, s"] <= hits.PATIENCE
    assert mode != "term" or seen["steps done again"] == 0


def spoil(path, change):
    tensors = safetensors.torch.load_file(path)
    change(tensors[min(tensors)])
    safetensors.torch.save_file(tensors, path)
    return min(tensors)


def spoil_weight(copy):
    return f"{LAST}/model/{spoil(copy / LAST / 'model.safetensors', lambda x: x.view(-1)[:1].add_(1e-6))}"


def spoil_snapshot(copy):
    path = sorted((copy / "ema").iterdir())[3]
    return f"ema/{path.stem}/{spoil(path, lambda x: x.view(-1)[:1].add_(1))}"


def lose_snapshot(copy):
    path = sorted((copy / "ema").iterdir())[-1]
    name = min(safetensors.torch.load_file(path))
    path.unlink()
    return f"ema/{path.stem}/{name} (missing)"


def lose_loss(copy):
    lines = (copy / "log.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith('{"step": 7,')]
    assert len(kept) == len(lines) - 1
    (copy / "log.jsonl").write_text("".join(kept))
    return "log/7/loss (missing)"


def lose_last_checkpoint(copy):
    shutil.rmtree(copy / LAST)
    return f"{LAST}/config/step (missing)"


@pytest.mark.parametrize("change", [spoil_weight, spoil_snapshot, lose_snapshot, lose_loss, lose_last_checkpoint])
def test_what_differs_is_named(whole, change):
    assert run.compare(*whole)[1] == []
    assert change(whole[1]) in run.compare(*whole)[1]


@pytest.mark.parametrize("name", [f"{LAST}/state.pt", "ema", "run.json"])
def test_what_is_damaged_is_found(whole, name):
    copy = whole[1]
    assert run.check_whole(copy) == len(checkpoint.steps(copy)) and run.leftovers(copy) == []
    path = sorted((copy / "ema").iterdir())[0] if name == "ema" else copy / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=path.name if name != f"{LAST}/state.pt" else LAST):
        run.check_whole(copy)
    (copy / "checkpoints" / ".step_00000099.1").mkdir()
    (copy / ".config.json.1").touch()
    assert run.leftovers(copy) == [".config.json.1", "checkpoints/.step_00000099.1"]


class Stopped:
    """A start that was asked to stop, and how it ended."""

    returncode = 0

    def __init__(self, run_dir, code=hits.REQUEUE, step=STEPS, left=()):
        self.run_dir, self.process, self.code, self.left = run_dir, self, code, set(left)
        self.terminate, self.last_words, self.step = lambda: None, lambda: "nothing", lambda: step
        self.wait, self.writes, self.newest = lambda limit: code, lambda: self.left, lambda: STEPS


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        (dict(code=-signal.SIGTERM), "exit code -15 .* expected 75"),
        (dict(step=STEPS + 1), f"step {STEPS + 1} was done, .* of step {STEPS}"),
        (dict(left={"checkpoints/.step_00000031.1"}), "left behind .*step_00000031.1"),
    ],
)
def test_a_bad_end_is_noticed(tmp_path, ended, words):
    hits.terminate(Stopped(tmp_path), Random(0))
    with pytest.raises(ValueError, match=words):
        hits.terminate(Stopped(tmp_path, **ended), Random(0))


@pytest.mark.parametrize("problem", ["", "run_0: step 3 was lost"])
def test_the_exit_code_is_the_verdict(monkeypatch, tmp_path, capsys, problem):
    monkeypatch.setattr(torture.Torture, "run", lambda self, name: torture.Tally("SIGKILL", problem=problem))
    monkeypatch.setattr(torture.tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    assert torture.main(["--kills", "2"]) == bool(problem)
    out, err = capsys.readouterr()
    assert out.split()[-1] == ("NO" if problem else "yes") and problem in err
    assert tmp_path.exists() == bool(problem)  # kept to be looked at


def test_mistakes(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    for argv, words in (
        (["--mode", "kil"], "kill"),
        (["--steps", "10"], "expected 30 or more"),
        (["--run_dir", str(tmp_path)], "not empty"),
    ):
        with pytest.raises(ValueError, match=words):
            torture.main(argv)
    monkeypatch.setattr(run.sys, "executable", "false")
    with pytest.raises(ValueError, match="exit code 1: it said nothing"):
        torture.Torture(torture.TortureConfig(), tmp_path / "new").alone(run.SETTINGS, 1)
