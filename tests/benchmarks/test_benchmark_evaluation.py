"""The benchmark of the evaluation runs to its end, at a size at which its numbers mean nothing."""

import re
from concurrent.futures import ThreadPoolExecutor

from benchmarks import evaluation
from evaluations.raw import FEATURES


def test_a_line_for_every_set_of_metrics(monkeypatch, capsys):
    """With the measuring in this process, as a new one would import everything again for each line."""

    monkeypatch.setattr(evaluation, "ProcessPoolExecutor", lambda workers, context: ThreadPoolExecutor(workers))
    monkeypatch.setattr("sys.argv", ["benchmark", "--images", "12", "20", "--size", "16"])
    monkeypatch.setattr(evaluation, "PART", 7)
    evaluation.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if re.match(r"\| \d", line)]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [(row[0], row[2]) for row in rows] == [(n, name) for n in ("12", "20") for name in evaluation.SETS]
    for row in rows:
        assert float(row[3]) >= 0 and float(row[4]) > 0
        held = evaluation.SETS[row[2]][2] * int(row[0]) * FEATURES * 4 / 2**20
        assert float(row[6]) == round(held)


def test_images_are_all_there():
    parts = list(evaluation.images(1100, 16, 0))
    assert [len(part) for part in parts] == [500, 500, 100] and parts[0].shape[1:] == (16, 16, 3)
    assert len({part.tobytes() for part in parts}) == 3
