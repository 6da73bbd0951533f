"""Snapshots of power function averages on disk: what is stored, kills, full disks, damage."""

import json
import os

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from ddbm.training.averages import outdated, reconstruct, snapshots, write_snapshot

TRACKED, FIRST = (0.05, 0.1), "step_00000010.safetensors"
HALF = 2.0**-11  # largest relative rounding of float16


def test_float16_unless_it_overflows(tmp_path):
    weights = {"usual": torch.randn(1000), "large": torch.tensor([1.0, 7e4]), "small": torch.tensor([3e-6])}
    kept = safetensors.torch.load_file(write_snapshot(tmp_path, 1, {0.1: weights}))
    assert [kept[f"0.1/{k}"].dtype for k in weights] == [torch.float16, torch.float32, torch.float16]
    torch.testing.assert_close(kept["0.1/usual"].float(), weights["usual"], rtol=HALF, atol=2**-25)
    assert kept["0.1/small"].item() == pytest.approx(3e-6, abs=2**-25)
    with pytest.raises(ValueError, match="average of w is no longer finite"):
        write_snapshot(tmp_path, 1, {0.1: {"w": torch.tensor([float("nan")])}})


def test_the_file_says_what_it_is(tmp_path):
    path = write_snapshot(tmp_path, 300, {s: {"a.b": torch.ones(2, 3) * s} for s in TRACKED})
    assert path == tmp_path / "ema" / "step_00000300.safetensors" and snapshots(tmp_path) == [(300, path)]
    with safe_open(path, "pt") as file:
        header = file.metadata()
        assert sorted(file.keys()) == ["0.05/a.b", "0.1/a.b"]
    assert (header["format"], header["step"], json.loads(header["sigma_rels"])) == ("ddbm-ema-1", "300", [0.05, 0.1])


def test_a_run_resumed_earlier_forgets_what_came_after():
    names = [f"ema/step_000000{n}.safetensors" for n in (10, 20, 30)]
    others = ["log.jsonl", "samples/ema/step_00000030.safetensors", "checkpoints/step_00000030/ema.safetensors"]
    assert outdated([*names, *others], 20) == names[2:] and outdated(names, 0) == names
    assert outdated([left := "ema/.step_00000010.safetensors.new"], 20) == [left]


def test_a_full_disk_leaves_the_earlier_snapshots(tmp_path, monkeypatch):
    write_snapshot(tmp_path, 1, {0.1: {"w": torch.ones(9)}})

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"step_00000002.*No space left"):
        write_snapshot(tmp_path, 2, {0.1: {"w": torch.ones(9)}})
    assert [p.name for p in (tmp_path / "ema").iterdir()] == ["step_00000001.safetensors"]


def stored(run):
    for n in (10, 20):
        write_snapshot(run, n, {s: {"w": torch.ones(9), "v": torch.ones(2)} for s in TRACKED})
    return run / "ema" / "step_00000020.safetensors"


def changed(data):
    return data[:-1] + bytes([data[-1] ^ 1])


def other(**weights):
    """Another snapshot of the same step, of a network with these numbers of weights."""

    def write(path):
        write_snapshot(path.parent.parent, 20, {s: {k: torch.ones(n) for k, n in weights.items()} for s in TRACKED})

    return write


def directory(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-3]), "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: path.write_bytes(changed(path.read_bytes())), "contents have changed"),
        (directory, "damaged"),
        (lambda path: path.write_bytes(path.with_name(FIRST).read_bytes()), r"found \('ddbm-ema-1', '10'\)"),
        (lambda path: safetensors.torch.save_file({"w": torch.ones(2)}, path), "no snapshot"),
        (other(w=8, v=2), "another run"),
        (other(w=9), "another run"),
    ],
    ids=["cut", "empty", "changed", "directory", "swapped", "foreign", "another_network", "fewer"],
)
def test_what_is_wrong_with_a_snapshot_is_one_line_that_names_it(tmp_path, harm, words):
    path = stored(tmp_path)
    harm(path)
    with pytest.raises(ValueError, match=words) as error:
        reconstruct(tmp_path, 20, 0.07)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert reconstruct(tmp_path, 10, 0.07)[2] == [10]


def test_steps_and_runs_without_snapshots(tmp_path):
    for run in (tmp_path / "none", tmp_path):
        with pytest.raises(ValueError, match=r"no snapshots.*--ema_snapshots"):
            reconstruct(run, 10, 0.1)
    stored(tmp_path)
    for step in (9, 21):
        with pytest.raises(ValueError, match=rf"step {step} is outside .* 10 to 20"):
            reconstruct(tmp_path, step, 0.1)
    assert reconstruct(tmp_path, 15, 0.1)[2] == [10]
