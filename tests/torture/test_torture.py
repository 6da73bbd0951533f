"""The kill tests in short, and that they would notice: a changed tensor, a damaged file, a step that was lost."""

import shutil
import signal
from pathlib import Path
from random import Random

import pytest
import safetensors.torch

from ddbm.files import checkpoint
from tests.torture import __main__ as torture
from tests.torture import hits as torture_hits
from tests.torture import run as torture_run

STEPS = 30


class Bench:
    """Modes in one directory, so that they share the run that was left alone."""

    def __init__(self, work):
        self.torture = torture.Torture(torture.TortureConfig(kills=1, steps=STEPS, disk="limit"), work, verbose=True)

    def hit(self, mode, kills=1):
        config = torture.TortureConfig(kills=kills, steps=STEPS, disk="limit")
        self.torture.config = config
        tally = self.torture.run(mode)
        assert tally.problems == []
        assert tally.kills == kills and tally.starts > kills
        assert tally.identical == tally.runs > 0 and tally.values > 1000
        assert tally.damaged == tally.others == 0
        return tally


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("torture"))


@pytest.fixture
def whole(bench, tmp_path):
    """A run that was left alone, and a copy of it to spoil."""
    flags = [*torture_run.SETTINGS, "--total_steps", str(STEPS), "--seed", "0"]
    run = bench.torture.alone(flags, 1)[0]
    return run, Path(shutil.copytree(run, tmp_path / "copy"))


def test_killed(bench):
    assert bench.hit("kill", kills=3).aimed == 1


def test_asked_to_stop(bench):
    assert bench.hit("term").again == 0


def test_disk_full(bench):
    bench.hit("disk")


def test_one_rank_killed(bench):
    assert bench.hit("ranks").slowest < torture_hits.PATIENCE


def spoil_weight(run):
    path = run / "checkpoints" / f"step_{STEPS:08d}" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    name = min(tensors)
    tensors[name].view(-1)[0] += 1e-6
    safetensors.torch.save_file(tensors, path)
    return f"checkpoints/step_{STEPS:08d}/model/{name}"


def spoil_snapshot(run):
    path = sorted((run / "ema").iterdir())[3]
    tensors = safetensors.torch.load_file(path)
    name = max(tensors)
    tensors[name].neg_()
    safetensors.torch.save_file(tensors, path)
    return f"ema/{path.stem}/{name}"


def lose_snapshot(run):
    path = sorted((run / "ema").iterdir())[-1]
    name = min(safetensors.torch.load_file(path))
    path.unlink()
    return f"ema/{path.stem}/{name} (missing)"


def lose_loss(run):
    lines = (run / "log.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith('{"step": 7,')]
    assert len(kept) == len(lines) - 1
    (run / "log.jsonl").write_text("".join(kept))
    return "log/7/loss (missing)"


def lose_last_checkpoint(run):
    shutil.rmtree(run / "checkpoints" / f"step_{STEPS:08d}")
    return f"checkpoints/step_{STEPS:08d}/config/step (missing)"


@pytest.mark.parametrize("spoil", [spoil_weight, spoil_snapshot, lose_snapshot, lose_loss, lose_last_checkpoint])
def test_what_differs_is_named(whole, spoil):
    name = spoil(whole[1])
    assert name in torture_run.compare(*whole).differing


def test_a_copy_does_not_differ(whole):
    assert torture_run.compare(*whole).differing == []


def test_what_is_damaged_is_found(whole):
    run = whole[1]
    assert torture_run.damaged(run) == ([], []) and torture_run.leftovers(run) == []
    newest = checkpoint.steps(run)[-1][1]
    (newest / "state.pt").write_bytes((newest / "state.pt").read_bytes()[:-1])
    snapshot = sorted((run / "ema").iterdir())[0]
    snapshot.write_bytes(snapshot.read_bytes()[:-1])
    (run / "run.json").write_text("{")
    (run / "checkpoints" / ".step_00000099.1").mkdir()
    (run / ".config.json.1").touch()
    checkpoints, others = torture_run.damaged(run)
    assert len(checkpoints) == 1 and newest.name in checkpoints[0]
    assert len(others) == 2 and snapshot.name in others[0] and "run.json" in others[1]
    assert torture_run.leftovers(run) == [".config.json.1", "checkpoints/.step_00000099.1"]


class Stopped:
    """A start that did not do what SIGTERM asks for: it lost a step, and left something aside."""

    pid = returncode = 0

    def __init__(self, run):
        self.run_dir, self.process, self.signals = run, self, []

    def terminate(self):
        self.signals.append(signal.SIGTERM)

    def wait(self, limit):
        return -signal.SIGTERM

    def step(self):
        return STEPS + 1

    def last_words(self):
        return "nothing"

    def writes(self):
        return {"checkpoints/.step_00000031.1"}


def test_a_bad_end_is_noticed(whole):
    life = Stopped(whole[1])
    code, lost, left = torture_hits.terminate(life, Random(0))
    assert "exit code -15" in code and "75" in code
    assert f"step {STEPS + 1} was done" in lost and f"of step {STEPS}" in lost
    assert ".step_00000031.1 was left behind" in left


@pytest.mark.parametrize("problems", [[], ["run_0: step 3 was lost"]])
def test_the_exit_code_is_the_verdict(monkeypatch, tmp_path, capsys, problems):
    tally = torture.Tally("SIGKILL", kills=2, runs=1, identical=1 - len(problems), problems=problems)
    monkeypatch.setattr(torture.Torture, "run", lambda self, name: tally)
    monkeypatch.setattr(torture.tempfile, "mkdtemp", lambda prefix: str(make(tmp_path / "work")))
    assert torture.main(["--kills", "2"]) == len(problems)
    out, err = capsys.readouterr()
    row = next(line.split() for line in out.splitlines() if line.startswith("as promised"))
    assert row[-1] == ("NO" if problems else "yes")
    assert ("step 3 was lost" in err) == bool(problems)
    assert (tmp_path / "work").exists() == bool(problems)  # kept to be looked at


def make(path):
    path.mkdir()
    return path


def test_mistakes(tmp_path):
    make(tmp_path / "full").joinpath("file").touch()
    for argv, word in (
        (["--mode", "kil"], "kill"),
        (["--steps", "10"], "expected 30 or more"),
        (["--run_dir", str(tmp_path / "full")], "not empty"),
    ):
        with pytest.raises(ValueError, match=word):
            torture.main(argv)


def test_training_that_cannot_work_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(torture_run.sys, "executable", "false")
    idle = torture.Torture(torture.TortureConfig(), tmp_path)
    with pytest.raises(ValueError, match="exit code 1: it said nothing"):
        idle.alone(torture_run.SETTINGS, 1)
