import sys

import numpy as np
import pytest

from benchmarks import translation
from scripts import translate
from scripts.report import scores
from tests.scripts.sampling_runs import make_run


def test_jumps_across_and_inside():
    """A step of 0.5 at column 4, none across rows, and a slope of 0.01 elsewhere."""
    image = np.tile(0.01 * np.arange(8.0), (1, 8, 1))
    image[..., 4:] += 0.49
    mean, largest, within, most = translation.jumps(image, [4])
    assert (mean, largest) == pytest.approx((0.25, 0.5)) and (within, most) == pytest.approx((0.005, 0.01))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


def lines(capsys, run, *words):
    translation.main([str(run), *map(str, words), "--device", "cpu"])
    return [line.split() for line in capsys.readouterr().out.splitlines() if not line.startswith("note:")]


def test_answers(run, capsys, monkeypatch):
    monkeypatch.setattr(scores, "FIT_PIXELS", 10_000)
    _, source, linear, at_T, first, *others = lines(capsys, run, "answers", "--num_images", 4, "--nfe", 2)
    assert source[:3] == ["source", "itself", "0"] and linear[0] == "linear" and linear[3] == "0"
    assert at_T[:5] == ["the", "estimate", "at", "T", "1"] and first[:3] == ["one", "sample", "2"]
    # the evaluation of the source itself is shared by all draws
    assert [line[:4] for line in others] == [["mean", "of", f"{k}", "samples"] for k in (2, 4, 8, 16)]
    assert [int(line[4]) for line in others] == [3, 5, 9, 17]


def test_seams(run, capsys, monkeypatch):
    monkeypatch.setattr(translation, "SHIFTS", 2)
    _, *rows = lines(capsys, run, "seams", "--nfe", 2)
    assert len(rows) == 18 and {row[0] for row in rows} == {"flat", "periodic", "real"}


def test_large(run, capsys, monkeypatch):
    """The commands, which are called here, and what is read of a process that holds 64 MiB for a moment."""
    own, mapped = translation.watched([sys.executable, "-c", "import time; x = b'1' * (1 << 26); time.sleep(0.3)"])
    assert 64 < own <= mapped < 200
    monkeypatch.setattr(translation, "watched", lambda command: (translate.main(command[3:]), 0))
    _, *rows = lines(capsys, run, "large", "--size", 300)
    assert [row[:3] for row in rows if row[0] == "300"] == [["300", "mean", "1"], ["300", "both", "4"]]


def test_folder(run, capsys):
    killed, again, last = lines(capsys, run, "folder", "--files", 12, "--nfe", 2)
    assert killed[-1] == "there" and again[0] == "again:" and last[0] == "OUT:"
    there = int(killed[killed.index("with") + 1])
    assert int(last[1]) + int(last[4]) == 12 and int(last[4]) >= there
