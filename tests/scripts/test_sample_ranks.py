"""Sampling on several ranks, killed and started again, and the launcher, as users start them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts import sample
from scripts.torchrun import children
from tests.scripts.sampling_runs import assert_same_files, make_run

ROOT = Path(__file__).parent.parent.parent
COUNT = 26


def environment(**extra):
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")}
    return clean | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | extra


def words_of(run, out, *flags):
    settings = ["--device", "cpu", "--num_samples", COUNT, "--batch_size", 4, "--nfe", 30, "--png", "true"]
    return [*map(str, [run, "--out_dir", out, *settings, "--trajectory", 3, *flags])]


def two_ranks(*words):
    start = ["-m", "scripts.torchrun", "--standalone", "--nproc_per_node", "2", "-m", "scripts.sample"]
    return [sys.executable, *start, *words_of(*words)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the ranks have, so that sums are in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def expected(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    assert sample.main(words_of(model, folder)) == 0
    return folder


def test_two_ranks_write_the_files_of_one(model, expected, tmp_path):
    command = two_ranks(model, tmp_path)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment(), cwd=ROOT)
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    assert_same_files(tmp_path, expected)
    assert done.stdout.count("samples_") == 1 and "26/26" in done.stderr
    assert not (tmp_path / ".parts").exists()


def until_images(process, folder, number):
    limit, nfe = time.monotonic() + 60, folder / ".parts" / "nfe.npy"
    while not nfe.is_file() or (np.fromfile(nfe, np.uint8)[128:] > 0).sum() < number:  # after its header
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.005)


def test_a_killed_rank_ends_the_other_and_one_rank_goes_on(model, expected, tmp_path, capsys):
    process = subprocess.Popen(
        two_ranks(model, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=environment(), cwd=ROOT,
    )  # fmt: skip
    try:
        until_images(process, tmp_path, 8)
        ranks = children(process.pid)
        os.kill(ranks[1], signal.SIGKILL)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode not in (0, 75) and "failed (exitcode: -9) local_rank: 1" in said, said
    assert "Traceback" not in said and not Path(f"/proc/{ranks[0]}").exists()
    assert not list(tmp_path.glob("*.npz"))
    assert sample.main(words_of(model, tmp_path)) == 0
    assert f"of {COUNT} images were sampled before" in capsys.readouterr().out
    assert_same_files(tmp_path, expected)


# -------------------------------------------------------------------------------------------------------- the launcher


@pytest.fixture
def words(tmp_path):
    """What sample_ddbm.sh starts, as a list of words after the interpreter's name."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 0\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    names = ("SAMPLER", "NFE", "ORDER", "ETA", "NGPU", "LAUNCHER", "DATA_DIR", "NNODES", "MASTER_PORT")
    clean = {k: v for k, v in os.environ.items() if k not in names} | {"VENV": str(tmp_path / "venv")}

    def run(*arguments, **extra):
        done = subprocess.run(
            ["bash", str(ROOT / "sample_ddbm.sh"), "histology", "vp", "run", *map(str, arguments)],
            capture_output=True, text=True, env=clean | extra,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    return run


START = "-m scripts.sample run --dataset histology --schedule vp".split()


@pytest.mark.parametrize(
    ("arguments", "variables", "expected"),
    [
        ("", {}, ""),
        ("", dict(SAMPLER="dbim", NFE="7", ORDER="3"), "--sampler dbim --nfe 7 --order 3"),
        ("", dict(ETA="0.5"), "--eta 0.5"),
        ("--nfe 9 --split val", dict(NFE="7"), "--nfe 7 --nfe 9 --split val"),
        ("0.2 1 val", {}, "--churn 0.2 --guidance 1 --split val --sampler heun --nfe 119"),
        ("0.2 --png true", dict(NFE="7"), "--churn 0.2 --sampler heun --nfe 7 --png true"),
        ("0.2", dict(SAMPLER="ecsi"), "--churn 0.2 --sampler ecsi"),
        ("0.2 --sampler ecsi", {}, "--churn 0.2 --sampler ecsi"),
    ],
)
def test_the_environment_and_the_positions_become_flags(words, arguments, variables, expected):
    assert words(*arguments.split(), **variables) == [*START, *expected.split()]


def test_ranks_are_started_as_for_training(words):
    started = words("--nfe", 5, NGPU="2")
    assert started == ["-m", "scripts.torchrun", "--nproc_per_node", "2", "--standalone", *START, "--nfe", "5"]
