"""Sampling a folder of sources without targets: what is written, going on, and what evaluator and report say of it."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from evaluations import evaluator
from scripts.report.__main__ import main as report
from tests.scripts.sampling_runs import arrays, assert_same_files, drawn, killed_after, make_run, sampled

REASON = "samples of sources without targets, which nothing can be compared with"


@pytest.fixture
def folders(tmp_path):
    """The same sources, of 6 images, with targets and alone; one is partly transparent."""
    rng = np.random.default_rng(0)
    for i in range(6):
        pixels = rng.integers(0, 256, (20, 20, 4), np.uint8)
        pixels[..., 3] = 255
        pixels[:10, :, 3] *= i != 4
        for place in ("pairs/A", "alone/A", "pairs/B"):
            (tmp_path / place).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / place / f"{i}.png")
    return tmp_path / "pairs", tmp_path / "alone"


def test_samples_are_those_of_pairs(model, folders, tmp_path, capsys, monkeypatch):
    pairs, alone = (
        sampled(model, tmp_path / f"out_{n}", "--data_dir", folder, "--png", "true", "--trajectory", 1, count=5)
        for n, folder in enumerate(folders)
    )
    said = capsys.readouterr().out
    assert "no targets found, 6 images are taken as sources" in said and str(alone / "sources_5x16x16x3.npz") in said
    ours, reference, sources = arrays(alone, "samples"), arrays(pairs, "reference"), arrays(alone, "sources")
    assert all(np.array_equal(array, ours[name]) for name, array in arrays(pairs, "samples").items())
    assert list(sources) == ["source", "mask", "names", "order_digest"] and not sources["mask"].all()
    assert all(np.array_equal(array, reference[name]) for name, array in sources.items())

    record = json.loads((alone / "sampling.json").read_text())
    stem = "samples_5x16x16x3_nfe4"
    expected = [f"{stem}.npz", "sources_5x16x16x3.npz", "grid.png", f"{stem}/", "trajectory_000000_0.png"]
    assert record["files"] == expected and record["sources"] == expected[1] and "reference" not in record
    assert not [name for name in record["depends_on"]["marks"] if "target" in name]
    for name, gone in (("grid.png", 2 * 66), ("trajectory_000000_0.png", 98)):
        with Image.open(alone / name) as own, Image.open(pairs / name) as other:
            shown, whole = np.asarray(own), np.asarray(other)
        assert shown.shape[0] == whole.shape[0] and whole.shape[1] - shown.shape[1] == gone
        assert np.array_equal(shown[:, :90], whole[:, :90])  # a sample and more of the left

    again = ("--data_dir", folders[1])
    assert drawn(monkeypatch, model, alone, *again, count=5) == []
    assert f"is finished: 5 images; --restart samples them anew\n{alone / expected[0]}\n{alone / expected[1]}\n" in (
        capsys.readouterr().out
    )
    assert drawn(monkeypatch, model, alone, *again, count=6) == [1]  # the first five are those of the npz
    assert {p.name for p in alone.glob("[!.]*")} == {
        "grid.png", "sampling.json", "samples_6x16x16x3_nfe4.npz", "samples_6x16x16x3_nfe4", "sources_6x16x16x3.npz",
        "trajectory_000000_0.png",
    }  # fmt: skip
    assert sum(drawn(monkeypatch, model, alone, *again, "--restart", count=3)) == 3
    assert {p.name for p in alone.glob("s*")} == {
        "sampling.json", "samples_3x16x16x3_nfe4.npz", "sources_3x16x16x3.npz"
    }  # fmt: skip


def test_targets_that_come_later_or_go(model, folders, tmp_path, monkeypatch):
    """The samples stay, and get a reference; a reference is not replaced by sources."""
    command = (model, tmp_path / "out", "--data_dir", folders[1])
    sampled(*command)
    shutil.copytree(folders[0] / "B", folders[1] / "B")
    assert drawn(monkeypatch, *command) == []
    assert_same_files(tmp_path / "out", sampled(model, tmp_path / "whole", "--data_dir", folders[0]))
    assert not list((tmp_path / "out").glob("sources*")) and drawn(monkeypatch, *command) == []
    shutil.rmtree(folders[1] / "B")
    with pytest.raises(ValueError, match=r"holds samples with their targets, and .*alone has none now: put them back"):
        sampled(*command)


def test_killed_it_goes_on(model, folders, tmp_path, monkeypatch):
    command = (model, tmp_path / "out", "--data_dir", folders[1])
    killed_after(monkeypatch, 1, *command)
    assert drawn(monkeypatch, *command) == [2]
    assert np.array_equal(
        arrays(tmp_path / "out", "samples")["arr_0"],
        arrays(sampled(model, tmp_path / "pairs_out", "--data_dir", folders[0]), "samples")["arr_0"],
    )


def test_sources_of_other_channels_name_the_file(tmp_path):
    """The samples' channels are the model's, those of the sources their own."""
    run = make_run(tmp_path / "run", channels=(3, 1))
    (tmp_path / "A").mkdir()
    for i in range(2):
        Image.new("L", (16, 16), 100 * i).save(tmp_path / "A" / f"{i}.png")
    out = sampled(run, tmp_path / "out", "--data_dir", tmp_path)
    assert [p.name for p in sorted(out.glob("*.npz"))] == ["samples_2x16x16x3_nfe4.npz", "sources_2x16x16x1.npz"]
    Image.new("RGB", (16, 16)).save(tmp_path / "A" / "0.png")
    with pytest.raises(ValueError, match=r"do not fit the model \(model -> pairs, source_channels: 1 -> 3"):
        sampled(run, tmp_path / "out", "--data_dir", tmp_path, "--restart")


def test_the_training_pairs_need_their_targets(tmp_path, folders):
    run = make_run(tmp_path / "run", data={"dataset": "mine", "data_dir": str(folders[1])})
    for flags in ((), ("--data_dir", folders[1])):
        with pytest.raises(ValueError, match=r"found .*A but not .*B; add it"):
            sampled(run, tmp_path / "out", *flags)


def test_evaluator_and_report(tmp_path, folders, capsys):
    run = make_run(tmp_path / "run")
    alone = sampled(run, run / "samples" / "alone", "--data_dir", folders[1], count=3)
    files = [str(alone / name) for name in ("sources_3x16x16x3.npz", "samples_3x16x16x3_nfe4.npz")]
    with pytest.raises(ValueError, match="sources without targets, so nothing can be compared: give the targets"):
        evaluator.main(files)
    with pytest.raises(ValueError, match=f"sampling.json: {REASON}; sample pairs with targets") as error:
        report([str(run)])
    assert "\n" not in str(error.value)
    sampled(run, run / "samples" / "pairs", "--data_dir", folders[0], count=3)
    sampled(run, run / "samples" / "newest", "--data_dir", folders[1], count=2)
    capsys.readouterr()
    assert report([str(run), "--device", "cpu"]) == 0
    page = (run / "report.html").read_text()
    assert page.count(REASON) == 2 and "3 images" in page
    with pytest.raises(ValueError, match=REASON):
        report([str(run), "--samples", "newest"])
