"""scripts/setup.sh, with fakes of Python; nothing is installed here."""

import subprocess

import pytest

from tests.scripts.sampling_runs import ROOT, environment

BARE = 'case "$2" in *find_spec*) exit 1;; esac; [ "$1" = -c ] && exit 0; echo called >> calls'  # without packages


def setup(cwd, text, **names):
    """Runs it twice, where the interpreter is a script; PYTHON and VENV are relative to where the user stands."""
    for path in (cwd / "python", cwd / "venv" / "bin" / "python"):
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    command, own = ["bash", str(ROOT / "scripts" / "setup.sh")], environment(**names)
    return [subprocess.run(command, cwd=cwd, env=own, capture_output=True, text=True) for _ in range(2)]


@pytest.mark.parametrize(
    ("text", "names", "words"),
    [
        ('[ "$1" = -V ] && echo Python 3.8.1 || exit 1', dict(PYTHON="./python"), ["3.10", "3.8.1", "PYTHON="]),
        ("exit 1", dict(PYTHON="./none"), ["none", "PYTHON="]),
        (f"{BARE}; echo NewConnectionError >&2; exit 1", dict(VENV="venv"), ["network", "VENV=path"]),
        (f"{BARE}; echo ERROR: No space left on device >&2; exit 1", dict(VENV="venv"), ["No space left on device"]),
    ],
)
def test_a_failure_is_one_line_and_tried_again(tmp_path, text, names, words):
    for process in setup(tmp_path, text, **{"VENV": "other", **names} if "PYTHON" in names else names):
        assert process.returncode == 2 and process.stderr.count("\n") == 1
        assert all(word in process.stderr for word in words), process.stderr


@pytest.mark.parametrize("has", [False, True])
def test_what_is_there_is_not_installed_again(tmp_path, has):
    """An environment that has everything is taken as it is, offline too; a finished install is not repeated."""
    text = '[ "$1" = -c ] && exit 0; echo called >> calls; exit 1' if has else BARE
    assert [process.returncode for process in setup(tmp_path, text, VENV="venv")] == [0, 0]
    calls = [path.read_text() for path in tmp_path.rglob("calls")]
    assert calls == ([] if has else ["called\n"])
