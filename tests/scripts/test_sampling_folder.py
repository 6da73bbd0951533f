"""What a folder of samples holds, and which pairs are sampled."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.scripts.sampling_runs import arrays, assert_close, drawn, killed_after, make_run, sampled


@pytest.mark.parametrize("old", [False, True])  # an older version said less in its record
def test_a_folder_holds_one_sampling(model, expected, tmp_path, monkeypatch, capsys, old):
    """It is extended, said to be finished, refused, or replaced as a whole."""
    sampled(model, tmp_path, "--trajectory", 1, count=6)
    record = json.loads((tmp_path / "sampling.json").read_text())
    names = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")} - {".lock", "sampling.json"}
    assert names == set(record["files"]) and len(names) == 4
    if old:
        record = {name: value for name, value in record.items() if name not in ("depends_on", "files")}
        (tmp_path / "sampling.json").write_text(json.dumps(record))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("[!.]*") if path.is_file()}
    assert drawn(monkeypatch, model, tmp_path, count=6) == [] and "is finished: 6 images" in capsys.readouterr().out
    for flags, count, said in (
        (["--seed", 1], 6, r"seed: 0 -> 1\).* another --out_dir, or --restart"),
        (["--split", "train"], 6, r"split: test -> train.*"),
        ([], 5, "count: 6 -> 5"),
    ):
        with pytest.raises(ValueError, match=f"holds 6 images of another sampling .*{said}"):
            sampled(model, tmp_path, *flags, count=count)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert drawn(monkeypatch, model, tmp_path) == [2, 4, 2]  # the first six are taken from the npz
    assert_close(tmp_path, expected)
    stem = "samples_14x16x16x3_nfe4"
    assert {p.name for p in tmp_path.glob("[!.]*")} == {
        "grid.png", "sampling.json", f"{stem}.npz", "reference_14x16x16x3.npz"
    }  # fmt: skip
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
    for run, flags, count in ((model, [], 3), (own, [], 1), (own, ["--data_dir", tmp_path / "own/../n"], 1)):
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        sampled(run, out, *(flags or ["--data_dir", tmp_path / "n"]), count=9)
        reference = arrays(out, "reference")
        assert len(reference["names"]) == count and (reference["arr_0"] == 255).all() and not reference["source"].any()
    assert "all its pairs are meant" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"have 24x24 pixels .*, the model 16x16 pixels; convert them"):
        sampled(own, tmp_path / "out", "--data_dir", tmp_path / "big")
    all_of_them = (own, tmp_path / "out", "--split", "all")
    killed_after(monkeypatch, 1, *all_of_them, batch=1)
    for side in "AB":
        (tmp_path / "n" / side / "0.png").rename(tmp_path / "n" / side / "3.png")  # so the first is another one
    with pytest.raises(ValueError, match=r"holds 1 images of an unfinished sampling .*\(pairs: "):
        sampled(*all_of_them)
