"""The study trains, measures and goes on where it was stopped."""

import json

import pytest

from benchmarks import study

ARGV = ["--steps", "1", "--seeds", "2", "--nfe", "1", "--device", "cpu"]


@pytest.fixture
def small(monkeypatch):
    """Two ways and a network of a few channels; the runs that were trained."""
    trained, own = [], study.train.main
    monkeypatch.setattr(study, "WAYS", {name: study.WAYS[name] for name in ("plain", "plain + Reg")})
    small = {"image_size 32": "image_size 16", "channels 32": "channels 8", "1,2,3": "1,2"}
    for old, new in small.items():
        monkeypatch.setattr(study, "COMMON", study.COMMON.replace(old, new))
    monkeypatch.setattr(study.train, "main", lambda argv: trained.append(argv[-1]) or own(argv))
    return trained


def test_a_stopped_study_goes_on(small, tmp_path, capsys, monkeypatch):
    out, real = tmp_path / "study", study.measure
    argv = [*ARGV, "--out", str(out)]
    monkeypatch.setattr(study, "measure", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        study.main(argv)
    seconds = json.loads((out / "study.json").read_text())["seconds"]
    monkeypatch.setattr(study, "measure", real)
    assert study.main(argv) == 0
    assert json.loads((out / "study.json").read_text())["seconds"] == seconds
    first = capsys.readouterr().out
    assert "is finished" in first  # the run that was trained but not measured
    assert len(small) == 5 and study.main(argv) == 0 and len(small) == 5
    table = [line for line in first.splitlines() if line.startswith("| plain")]
    assert [line.split(" | ")[2] for line in table] == 2 * ["none", "average", "canonical"]
    assert [line.split(" | ")[3] for line in table] == 2 * ["1", "8", "1"]
    assert table[2].endswith("| 0.0e+00 |") and "±" in table[0]
    assert table[:3] == [line for line in capsys.readouterr().out.splitlines() if line.startswith("| plain")][:3]
    with pytest.raises(ValueError, match="another --out"):
        study.main([*argv, "--nfe", "4"])
