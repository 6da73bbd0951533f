"""`run.json`: what it says, what it keeps quiet, and that nothing about it ends a run."""

import json
import os
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scripts import provenance as module
from scripts.provenance import git_state, provenance, write_start

COMMAND = ["python", "-m", "scripts.train", "--run_dir", "a folder/it's", "--lr", "1e-4", "$HOME"]
CPU = [torch.device("cpu")]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout with one commit; the user's own settings of git are out of the way."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "check out"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "file").write_text("one")
    git(folder, "add", "file")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "first")
    return folder


def git(folder, *command):
    return subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_what_it_says(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    start = json.loads(json.dumps(provenance(COMMAND, CPU, 2), allow_nan=False))
    assert set(start) == set(
        "date command directory ranks devices versions git hostname platform cpu memory_gib gpus environment".split()
    )
    age = datetime.now(timezone.utc) - datetime.fromisoformat(start["date"])
    assert 0 <= age.total_seconds() < 60
    assert shlex.split(start["command"]) == COMMAND and start["directory"] == str(Path.cwd())
    assert start["ranks"] == 2 and start["devices"] == ["cpu"] and start["gpus"] == []
    versions = start["versions"]
    assert versions["torch"] == torch.__version__ and versions["numpy"] == np.__version__
    assert versions["python"].startswith("{}.{}.".format(*sys.version_info))
    assert versions["safetensors"] and versions["torchvision"]
    assert {"ddbm", "cuda", "cudnn"} < set(versions)
    assert start["cpu"]["cores"] >= start["cpu"]["usable_cores"] >= 1 and start["cpu"]["model"]
    assert start["memory_gib"] > 0.1 and start["environment"]["OMP_NUM_THREADS"] == "3"


def test_what_it_keeps_quiet(monkeypatch):
    kept = dict(CUDA_VISIBLE_DEVICES="1", NCCL_P2P_DISABLE="1", TORCH_LOGS="x", SLURM_JOB_ID="7", RANK="0", NGPU="2")
    secret = dict(
        WANDB_API_KEY="planted", SLURM_JWT="planted", TORCH_HUB_TOKEN="planted", NCCL_SECRET_KEY="planted",
        AWS_SESSION_TOKEN="planted", DDBM_PASSWORD="planted", OTHER="planted",
    )  # fmt: skip
    for name, value in (kept | secret).items():
        monkeypatch.setenv(name, value)
    start = provenance(COMMAND, CPU, 1)
    assert start["environment"].items() >= kept.items()
    assert "planted" not in json.dumps(start)


def test_gpus(monkeypatch):
    properties = SimpleNamespace(name="NVIDIA A40", total_memory=48 * 2**30)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    start = provenance(COMMAND, [torch.device("cuda", 1)], 1)
    assert start["devices"] == ["cuda:1"] and start["gpus"] == [{"name": "NVIDIA A40", "memory_gib": 48.0}] * 2


def test_the_commit(checkout, monkeypatch):
    commit = git(checkout, "rev-parse", "HEAD")
    assert git_state(checkout) == {"commit": commit, "dirty": False}
    (checkout / "untracked").write_text("results")
    assert git_state(checkout) == {"commit": commit, "dirty": False}
    (checkout / "file").write_text("two")
    assert git_state(checkout) == {"commit": commit, "dirty": True}
    git(checkout, "add", "file")
    assert git_state(checkout) == {"commit": commit, "dirty": True}
    monkeypatch.setenv("GIT_DIR", str(checkout / "nowhere"))  # as inside a hook of another checkout
    assert git_state(checkout) == {"commit": commit, "dirty": True}
    monkeypatch.setattr(module, "ROOT", checkout)
    assert provenance(COMMAND, CPU, 1)["git"]["commit"] == commit


def test_no_commit(checkout, monkeypatch, tmp_path):
    installed = checkout / "site-packages"  # an environment inside somebody's checkout
    installed.mkdir()
    assert git_state(installed) is None
    assert git_state(tmp_path) is None and git_state(tmp_path / "nowhere") is None
    (checkout / ".git" / "HEAD").write_text("damaged")
    assert git_state(checkout) is None
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    assert git_state(checkout) is None


def test_a_git_that_hangs_or_asks(checkout, monkeypatch):
    seen = []

    def hang(command, **options):
        seen.append(options)
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    assert git_state(checkout) is None
    for options in seen:
        assert options["timeout"] <= 10 and options["stdin"] == subprocess.DEVNULL
        assert options["env"]["GIT_TERMINAL_PROMPT"] == "0"


def test_every_start_is_kept(tmp_path):
    for step in (0, 10, 20):
        write_start(tmp_path, provenance(COMMAND, CPU, 1) | {"step": step})
    starts = json.loads((tmp_path / "run.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, 10, 20]
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("damaged", [b"", b'{"starts": [{"da', b"\xff\xfe\0", b"[1]", b"{}", b'{"starts": 7}'])
def test_a_damaged_file_is_set_aside(tmp_path, capsys, damaged):
    path = tmp_path / "run.json"
    path.write_bytes(damaged)
    write_start(tmp_path, {"step": 1})
    assert json.loads(path.read_text()) == {"starts": [{"step": 1}]}
    assert (tmp_path / "run.json.damaged").read_bytes() == damaged
    assert "run.json is damaged" in capsys.readouterr().err


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    write_start(tmp_path, {"step": 0})
    before = (tmp_path / "run.json").read_bytes()

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match=r"cannot write .*run\.json: No space left on device"):
        write_start(tmp_path, {"step": 1})
    assert (tmp_path / "run.json").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
