"""Sampling on several ranks, killed and started again, as users start them."""

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
from tests.scripts.sampling_runs import ROOT, assert_same_files, environment

COUNT = 26


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
def expected(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    assert sample.main(words_of(model, folder)) == 0
    return folder


def test_two_ranks_write_the_files_of_one(model, tmp_path):
    """And share the draws."""
    few = ("--draws", 3, "--num_samples", 6, "--nfe", 4)
    command = two_ranks(model, tmp_path / "two", *few)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment(), cwd=ROOT)
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    assert sample.main(words_of(model, tmp_path / "one", *few)) == 0
    assert_same_files(tmp_path / "two", tmp_path / "one")
    assert done.stdout.count("samples_") == 1 and "18/18" in done.stderr
    assert not (tmp_path / "two" / ".parts").exists()


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
