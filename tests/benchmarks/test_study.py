"""The study trains, measures and goes on where it was stopped."""

import pytest

from benchmarks import study


def test_a_stopped_study_goes_on(tmp_path, capsys, monkeypatch):
    """With two of the ways and a network of a few channels."""
    trained, own, measure = [], study.train.main, study.measure
    monkeypatch.setattr(study, "WAYS", {name: study.WAYS[name] for name in ("plain", "plain + Reg")})
    monkeypatch.setattr(study, "COMMON", f"{study.COMMON} --image_size 16 --model_channels 8 --num_head_channels 8")
    monkeypatch.setattr(study.train, "main", lambda argv: trained.append(argv[-1]) or own(argv))
    monkeypatch.setattr(study, "measure", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    argv = ["--steps", "1", "--seeds", "2", "--nfe", "1", "--device", "cpu", "--out", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        study.main(argv)
    begun = (tmp_path / "study.json").read_text()
    monkeypatch.setattr(study, "measure", measure)
    assert study.main(argv) == 0 and (tmp_path / "study.json").read_text() == begun
    first = capsys.readouterr().out
    assert "is finished" in first  # the run that was trained but not measured
    assert len(trained) == 5 and study.main(argv) == 0 and len(trained) == 5
    assert first[first.index("| training") :] in capsys.readouterr().out
    table = [line.strip("| ").split(" | ") for line in first.splitlines() if line.startswith("| plain")]
    assert [row[2:4] for row in table] == 2 * [["none", "1"], ["average", "8"], ["canonical", "1"]]
    assert table[2][-1] == "0.0e+00 ± 0.0e+00"
    with pytest.raises(ValueError, match="another --out"):
        study.main([*argv, "--nfe", "4"])
