"""`run.json`: what it says, what it keeps quiet, and that nothing about it ends a run."""

import json
import os
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts import training as module
from scripts.training import git_state, provenance, write_start

COMMAND = ["python", "-m", "scripts.train", "--run_dir", "a folder/it's", "--lr", "1e-4", "$HOME"]
CPU = torch.device("cpu")


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
    monkeypatch.setenv("WANDB_API_KEY", "planted")
    start = json.loads(json.dumps(provenance(COMMAND, CPU, 2), allow_nan=False))
    assert set(start) == set("date command directory ranks device versions git hostname".split())
    age = datetime.now(timezone.utc) - datetime.fromisoformat(start["date"])
    assert 0 <= age.total_seconds() < 60
    assert shlex.split(start["command"]) == COMMAND and start["directory"] == str(Path.cwd())
    assert start["ranks"] == 2 and start["device"] == "cpu" and start["hostname"]
    versions = start["versions"]
    assert versions["torch"] == metadata.version("torch") and versions["numpy"] == np.__version__
    assert versions["python"].startswith("{}.{}.".format(*sys.version_info))
    assert {"ddbm", "cuda", "safetensors", "torchvision"} < set(versions) and "planted" not in json.dumps(start)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"NVIDIA A40, {device}")
    assert provenance(COMMAND, torch.device("cuda", 1), 1)["device"] == "NVIDIA A40, cuda:1"


def test_the_commit(checkout, monkeypatch):
    commit = git(checkout, "rev-parse", "HEAD")
    (checkout / "untracked").write_text("results")
    assert git_state(checkout) == {"commit": commit, "dirty": False}
    (checkout / "file").write_text("two")
    assert git_state(checkout) == {"commit": commit, "dirty": True}
    git(checkout, "add", "file")
    monkeypatch.setenv("GIT_DIR", str(checkout / "nowhere"))  # as inside a hook of another checkout
    monkeypatch.setattr(module, "ROOT", checkout)
    assert provenance(COMMAND, CPU, 1)["git"] == {"commit": commit, "dirty": True}


def test_no_commit(checkout, monkeypatch, tmp_path):
    installed = checkout / "site-packages"  # an environment inside somebody's checkout
    installed.mkdir()
    assert git_state(installed) is None
    assert git_state(tmp_path) is None and git_state(tmp_path / "nowhere") is None
    (checkout / ".git" / "HEAD").write_text("damaged")
    assert git_state(checkout) is None
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    monkeypatch.setenv("DDBM_COMMIT", "abc")  # of an image
    assert git_state(checkout) is None and provenance(COMMAND, CPU, 1)["git"] == {"commit": "abc"}


@pytest.mark.parametrize("damaged", [None, b"", b'{"starts": [{"da', b"\xff\xfe\0", b"[1]", b"{}", b'{"starts": 7}'])
def test_every_start_is_kept_and_a_damaged_file_set_aside(tmp_path, capsys, damaged):
    path, aside = tmp_path / "run.json", tmp_path / "run.json.damaged"
    if damaged is not None:
        path.write_bytes(damaged)
    for step in (0, 10):
        write_start(tmp_path, {"step": step})
    assert json.loads(path.read_text()) == {"starts": [{"step": 0}, {"step": 10}]}
    assert (aside.read_bytes() if aside.exists() else None) == damaged
    assert capsys.readouterr().err.count("run.json is damaged") == (damaged is not None)
