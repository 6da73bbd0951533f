import numpy as np

from benchmarks import formats


def test_every_format_in_a_line(monkeypatch, capsys):
    """The seconds are made up: a pair of the folder takes 4 ms, of the next format half of that, and so on."""
    read = {}

    def timed(works, rounds):
        read.update({name: work() for name, work in works.items()})
        return {name: np.full(rounds, 0.012 / 2**k) for k, name in enumerate(works)}

    monkeypatch.setattr(formats, "interleaved", timed)
    assert formats.main(["--pairs", "4", "--size", "8", "--rounds", "2"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows[1:]] == [*read] and rows[1] == ["folder", "4.000", "1.0"]
    assert rows[2] == ["packed", "2.000", "2.0"] and read.keys() >= {"folder", "packed", "zip"}
    for items in read.values():  # all but the held-out pair, the same pixels in the same order
        assert len(items) == 3
        for item, first in zip(items, read["folder"], strict=True):
            assert (item.source == first.source).all() and (item.target == first.target).all()
