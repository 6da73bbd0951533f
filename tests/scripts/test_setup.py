"""The shell scripts' own errors; nothing is installed here."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def setup(cwd, **extra):
    environment = {k: v for k, v in os.environ.items() if k not in ("VENV", "PYTHON")} | extra
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / "setup.sh")], cwd=cwd, env=environment, capture_output=True, text=True
    )


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_python_too_old_or_absent(tmp_path):
    old = script(tmp_path / "python", 'if [ "$1" = -V ]; then echo Python 3.8.1; else exit 1; fi')
    for python, words in ((old, ["3.10", "3.8.1", "PYTHON="]), (str(tmp_path / "none"), ["none", "PYTHON="])):
        process = setup(tmp_path, PYTHON=python, VENV=str(tmp_path / "venv"))
        assert process.returncode == 2 and process.stderr.count("\n") == 1
        assert all(word in process.stderr for word in words)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("WARNING: Retrying after connection broken by 'NewConnectionError'", ["network", "VENV=path"]),
        ("ERROR: No space left on device", ["No space left on device"]),
    ],
)
def test_a_failed_install_is_one_line_and_tried_again(tmp_path, message, words):
    lacking = 'case "$2" in *find_spec*) exit 1;; esac; [ "$1" = -c ] && exit 0'
    script(tmp_path / "venv" / "bin" / "python", f'{lacking}; echo "{message}" >&2; exit 1')
    for _ in range(2):
        process = setup(tmp_path, VENV="venv")  # relative to where the user stands
        assert process.returncode == 2 and process.stderr.count("\n") == 1
        assert all(word in process.stderr for word in words)


def test_a_finished_install_is_not_repeated(tmp_path):
    lacking = 'case "$2" in *find_spec*) exit 1;; esac; [ "$1" = -c ] && exit 0'
    script(tmp_path / "venv" / "bin" / "python", f"{lacking}; echo called >> {tmp_path}/calls")
    for _ in range(2):
        process = setup(tmp_path, VENV=str(tmp_path / "venv"))
        assert process.returncode == 0, process.stderr
    assert (tmp_path / "calls").read_text() == "called\n"


def test_an_environment_that_has_everything_is_taken_as_it_is(tmp_path):
    """Offline, too: nothing is downloaded."""
    script(tmp_path / "venv" / "bin" / "python", f'[ "$1" = -c ] && exit 0; echo called >> {tmp_path}/calls; exit 1')
    assert setup(tmp_path, VENV=str(tmp_path / "venv")).returncode == 0
    assert not (tmp_path / "calls").exists()
