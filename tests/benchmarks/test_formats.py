import subprocess
import sys

import numpy as np

from benchmarks import formats
from tests.datasets.make import two_folders
from tests.scripts.sampling_runs import environment

KEEPING = """
import sys
from benchmarks import formats
from datasets.paired import FolderPairs
get, held = FolderPairs.get, []
FolderPairs.get = lambda self, *how: [item := get(self, *how), held.append(item)][0]
print(formats.kept(sys.argv[1]))
"""


def test_memory_counts_what_is_kept(tmp_path):
    """A reader that keeps every pair of 2 x 3 x 128² float32 is found out."""
    two_folders(tmp_path, 60, height=128, width=128)
    two_folders(tmp_path, 1, sides=("val/source", "val/target"))
    words = [sys.executable, "-c", KEEPING, str(tmp_path)]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=True, timeout=60)
    whole = 60 * 2 * 3 * 128**2 * 4 / 2**20
    assert 0.8 * whole < float(done.stdout) < 2 * whole


def test_every_format_in_a_line(monkeypatch, capsys):
    """The seconds are made up: a pair of the folder takes 4 ms, of the next format half of that, and so on."""
    read = {}

    def timed(works, rounds):
        read.update({name: work() for name, work in works.items()})
        return {name: np.full(rounds, 0.012 / 2**k) for k, name in enumerate(works)}

    monkeypatch.setattr(formats, "interleaved", timed)
    monkeypatch.setattr(formats, "NEEDS", {"packed": "numpy", "zip": "zipfile"})
    assert formats.main(["--pairs", "4", "--size", "8", "--rounds", "2"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows[1:]] == [*read] and rows[1][:3] == ["folder", "4.000", "1.0"]
    assert rows[2][:3] == ["packed", "2.000", "2.0"] and all(abs(float(row[3])) < 8 for row in rows[1:])
    assert read.keys() >= {"folder", "packed", "zip"}
    for items in read.values():  # all but the held-out pair, the same pixels in the same order
        assert len(items) == 3
        for item, first in zip(items, read["folder"], strict=True):
            assert (item.source == first.source).all() and (item.target == first.target).all()
