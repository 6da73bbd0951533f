"""What a folder of samples holds, and which pairs are sampled."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.scripts.sampling_runs import arrays, assert_close, drawn, killed_after, make_run, sampled


@pytest.mark.parametrize("old", [False, True])  # an older version said less in its record
def test_a_folder_holds_one_sampling(model, expected, tmp_path, monkeypatch, capsys, old):
    """It is extended, said to be finished, refused, or replaced as a whole."""
    sampled(model, tmp_path, "--png", "true", count=4)
    assert drawn(monkeypatch, model, tmp_path, "--trajectory", 1, count=6) == [2, 1]  # the last for the trajectory
    record = json.loads((tmp_path / "sampling.json").read_text())
    names = {p.name + "/" * p.is_dir() for p in tmp_path.iterdir()} - {".lock", "sampling.json"}
    assert names == set(record["files"]) and len(names) == 5 and len(list(tmp_path.glob("samples_6*/*"))) == 6
    if old:
        record = {name: value for name, value in record.items() if name not in ("depends_on", "files")}
        (tmp_path / "sampling.json").write_text(json.dumps(record))
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("[!.]*") if path.is_file()}
    for count, beyond in ((6, ""), (5, ", more than the 5 asked for")):
        assert drawn(monkeypatch, model, tmp_path, count=count) == []
        said = capsys.readouterr().out
        assert f"is finished: 6 images{beyond};" in said and ("note: an older version sampled this" in said) == old
    for flags, said in (
        (["--seed", 1], r"seed: 0 -> 1\).* another --out_dir, or --restart"),
        (["--split", "train"], r"(pairs: \w{8} -> \w{8};.* )?split: test -> train.*"),
    ):
        with pytest.raises(ValueError, match=f"holds 6 images of another sampling \\({said}"):
            sampled(model, tmp_path, *flags, count=6)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert drawn(monkeypatch, model, tmp_path) == [2, 4, 2]  # the first six are taken from the npz
    assert_close(tmp_path, expected)
    stem = "samples_14x16x16x3_nfe4"
    assert {p.name for p in tmp_path.glob("[!.]*")} == {
        "grid.png", "sampling.json", f"{stem}.npz", "reference_14x16x16x3.npz", stem,
        "trajectory_000000_row0_column128.png",
    }  # fmt: skip
    assert len(list(tmp_path.glob(f"{stem}/*"))) == 14 and ("an older version" in capsys.readouterr().out) == old
    kept = json.loads((tmp_path / "sampling.json").read_text())["depends_on"]
    assert ("reader" in kept) == ("marks" in kept) == (not old)
    (tmp_path / "thesis.txt").write_text("precious")
    assert sum(drawn(monkeypatch, model, tmp_path, "--restart", "--seed", 1, count=5)) == 5
    names = {"grid.png", "sampling.json", "samples_5x16x16x3_nfe4.npz", "reference_5x16x16x3.npz", "thesis.txt"}
    assert {p.name for p in tmp_path.glob("[!.]*")} == names


def test_other_pairs(model, tmp_path, capsys, monkeypatch):
    """All of a folder without splits, for a model of a data set without a folder too; of the wrong shape none."""
    for name, side, value, size in (("n", "A", 0, 16), ("n", "B", 255, 16), ("big", "A", 0, 24), ("big", "B", 0, 24)):
        (tmp_path / name / side).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(tmp_path / name / side / f"{i}.png")
    own = make_run(tmp_path / "own", data={"dataset": "mine", "data_dir": str(tmp_path / "n"), "image_size": "native"})
    for run, place, count in ((model, "n", 3), (own, "n", 1), (own, "own/../n", 1)):
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        with monkeypatch.context() as patched:
            patched.setenv("DATA_DIR", str(tmp_path / place))
            sampled(run, out, count=9)
        reference = arrays(out, "reference")
        assert len(reference["names"]) == count and (reference["arr_0"] == 255).all() and not reference["source"].any()
    assert "all its pairs are meant" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"the model \(.*, height: 16 -> 24; width: 16 -> 24\): convert them"):
        sampled(own, tmp_path / "out", "--data_dir", tmp_path / "big")
    all_of_them = (own, tmp_path / "out", "--split", "all")
    killed_after(monkeypatch, 1, *all_of_them, batch=1)
    with monkeypatch.context() as patched, pytest.raises(ValueError, match=r"\(reader: 2 -> 9\)"):
        patched.setattr("scripts.sample.READER", 9)
        sampled(own, out)
    Image.new("RGB", (16, 16), (9, 9, 9)).save(tmp_path / "n" / "B" / "2.png")  # replaced in place
    for command in (all_of_them, (own, out)):
        with pytest.raises(ValueError, match=r"holds 1 images of an.* sampling .*\(mean of target 2: 1.0 -> -0.9294\)"):
            sampled(*command)
    for side in "AB":
        (tmp_path / "n" / side / "0.png").rename(tmp_path / "n" / side / "3.png")  # so the first is another one
    with pytest.raises(ValueError, match=r"holds 1 images of an unfinished sampling .*\(pairs: "):
        sampled(*all_of_them)
