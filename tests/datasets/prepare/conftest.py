"""What every test of a recipe needs: the command, and what it wrote."""

import json
from pathlib import Path

import pytest

from datasets.prepare.__main__ import main
from tests.datasets.prepare import scans


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch):
    """That of the whole machine."""
    monkeypatch.setattr("os.sync", lambda: None)


@pytest.fixture
def prepare(tmp_path, capsys):
    """Runs the command on raw files below tmp_path / "raw": the manifest, the folder and what was printed."""

    def run(name, *flags, source="raw", out="out"):
        assert main([name, "--source", str(tmp_path / source), "--out", str(tmp_path / out), *map(str, flags)]) == 0
        folder = tmp_path / out
        return json.loads((folder / "manifest.json").read_text()), folder, capsys.readouterr().out

    return run


@pytest.fixture
def bytes_below():
    """Every visible file below a folder and its bytes."""
    return lambda folder: {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*.*")) if p.name[0] != "."
    }


@pytest.fixture
def ct_pet(tmp_path):
    return scans.ct_pet(tmp_path).rename(tmp_path / "raw")


@pytest.fixture
def mr_ct(tmp_path):
    return scans.mr_ct(tmp_path).rename(tmp_path / "raw")
