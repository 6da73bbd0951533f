"""Translating what is odd or wrong: a line that says so, the others are done, and nothing is lost."""

import json

import numpy as np
import pytest

from datasets.images import read_image
from ddbm.model import load
from ddbm.translation.answers import translate
from scripts import translate as script
from tests.ddbm.runs import refused
from tests.scripts.translate_runs import RGB, close, make_run, pictures, put, translated


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


def test_other_settings_are_refused_and_overwrite_replaces(run, tmp_path, capsys):
    one, two, out = put(tmp_path / "a.png"), put(tmp_path / "b.png", RGB[::-1]), tmp_path / "out"
    first = translated(run, [one, two], out)
    for flags, words in (
        (["--seed", 1], "seed: 0 -> 1"), (["--answer", "mean"], "answer: sample -> mean"),
        (["--overlap", 0.25], "overlap: 0.5 -> 0.25"), (["--scale", 2], "scale: 0.0 -> 2.0"),
    ):  # fmt: skip
        words = ["translated otherwise", words, "another --out", "--overwrite"]
        refused(script.main, [run, one, "--out", out, "--nfe", 2, "--device", "cpu", *flags], *words)
    other = make_run(tmp_path / "other", step=2)
    refused(script.main, [other, one, "--out", out, "--nfe", 2], "checkpoint: step_00000001 -> step_00000002")
    assert pictures(out) == first
    again = translated(run, [one], out, "--seed", 1, "--overwrite")
    assert again["b.png"] == first["b.png"] and again["a.png"] != first["a.png"]
    record = json.loads((out / script.RECORD).read_text())
    assert record["depends_on"]["seed"] == 1 and len(record["files"]) == 1
    three = put(tmp_path / "c.png", RGB[:, ::-1])
    assert len(translated(run, [three], out, "--seed", 1)) == 3
    assert len(json.loads((out / script.RECORD).read_text())["files"]) == 2
    refused(script.main, [run, two, "--out", out, "--nfe", 2, "--seed", 1], "b is there, not of these inputs")  # seed 0
    elsewhere = put(tmp_path / "elsewhere" / "a.png", RGB)
    refused(script.main, [run, elsewhere, "--out", out, "--nfe", 2, "--seed", 1], f"a is there, made of {one}")
    put(one, RGB[:, ::-1])
    refused(script.main, [run, one, "--out", out, "--nfe", 2, "--seed", 1], "before it changed")
    translated(run, [one], out, "--seed", 1, "--overwrite")
    assert len(json.loads((out / script.RECORD).read_text())["files"]) == 2
    (out / script.RECORD).write_text("{}")
    refused(script.main, [run, one, "--out", out, "--nfe", 2], "a is there, not of these inputs")


def test_what_is_odd_is_said_once(run, tmp_path, capsys):
    """Deeper and darker pixels than in training; an older checkpoint."""
    for i in range(3):
        put(tmp_path / "in" / f"{i}.tif", RGB.astype(np.uint16) * 3 + i)
    translated(run, [tmp_path / "in"], tmp_path / "out")
    said = capsys.readouterr().out
    assert said.count("holds uint16, the model was trained on uint8: white is the full scale of each") == 1
    assert said.count("no value above") == 1 and "0.tif: " in said and "note: an older version" not in said
    dark = translate(load(run), RGB.astype(np.uint16) * 3, nfe=2).sample / 257
    close(read_image(tmp_path / "out" / "0.png").pixels, np.rint(dark))
    old = make_run(tmp_path / "old", stored=(), data=dict(source_white=255.0))
    translated(old, [tmp_path / "in" / "0.tif"], tmp_path / "other")
    said = capsys.readouterr().out
    assert "8-bit PNG it is" in said and "the model was trained" not in said
    white = make_run(tmp_path / "white", data=dict(source_white=300.0))
    translated(white, [tmp_path / "in" / "0.tif"], tmp_path / "third")
    assert "300 is white, as in training" in capsys.readouterr().out


def test_one_bad_file_does_not_stop_the_others(run, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("a", "b", "c"):
        put(folder / f"{name}.png")
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    put(folder / "grey.png", RGB[..., 0])
    values = RGB / np.float32(255)
    values[3, 4] = np.nan
    put(folder / "nan.tif", values)
    put(folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:300])
    (folder / "notes.txt").write_text("left alone")
    assert [*translated(run, [folder], out, code=1)] == ["a.png", "b.png", "c.png"]
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.strip("\r").startswith("error: ")]
    for name, words in (
        ("empty.png", "cannot be read"), ("text.jpg", "cannot be read"), ("nan.tif", "NaN"),
        ("grey.png", "has 1 channels, the model takes"), ("cut.png", "cannot be read"),
    ):  # fmt: skip
        assert sum(name in line and words in line for line in errors) == 1, said.err
    assert len(errors) == 5 and "3 images translated\n5 could not be translated: " in said.out
    put(folder / "cut.png")
    assert len(translated(run, [folder], out, code=1)) == 4
    said = capsys.readouterr().out
    assert "1 images translated, 3 were there" in said and "4 could not be translated" in said


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (300, 1)])
def test_every_size_is_translated(run, tmp_path, size):
    path = put(tmp_path / "a.png", np.resize(RGB, (*size, 3)))
    translated(run, [path], tmp_path / "out")
    assert read_image(tmp_path / "out" / "a.png").pixels.shape == (*size, 3)


def test_folders_in_folders(run, tmp_path, monkeypatch, capsys):
    """What is written is no input; the folder above may be written to."""
    inner = tmp_path / "in"
    put(inner / "a.png")
    out = inner / "out"
    assert [*translated(run, [inner], out)] == ["a.png"]
    assert [*translated(run, [inner], out)] == ["a.png"] and [*pictures(inner)] == ["a.png", "out/a.png"]
    said = capsys.readouterr().out
    assert said.count(f"what lies in {out}, where this command writes, is left out") == 1 and "1 were there" in said
    translated(run, [inner / "a.png"], tmp_path)
    assert (tmp_path / "a.png").exists()
    (tmp_path / "a.png").unlink()
    (tmp_path / script.RECORD).unlink()
    translated(run, [out], tmp_path)
    assert (tmp_path / "a.png").exists() and "left out" not in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    flags = ["--nfe", "2", "--device", "cpu"]
    assert script.main([str(run), "--out", "behind", *flags, "in/a.png"]) == 0  # inputs behind flags
    assert script.main(["--out", "first", *flags, str(run), "in/a.png"]) == 0
    assert (tmp_path / "behind" / "a.png").exists() and (tmp_path / "first" / "a.png").exists()


def no_space(*given):
    raise OSError(28, "No space left on device")


def test_mistakes(run, tmp_path, capsys):
    out, a = tmp_path / "out", put(tmp_path / "in" / "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    volume = tmp_path / "CT.nii.gz"
    volume.write_bytes(b"")
    text = tmp_path / "text" / "a.txt"
    text.write_text("words")
    (tmp_path / "text" / "b.svs").write_text("words")
    put(tmp_path / "same" / "a.jpg")
    put(tmp_path / "case" / "A.png")
    put(tmp_path / "twins" / "a.png"), put(tmp_path / "twins" / "a.jpg")
    both = ["--answer", "both"]
    put(tmp_path / "means" / "x.png"), put(tmp_path / "means" / "x_mean.png")
    for inputs, flags, words in (
        ([a], ["--out", ""], ["--out DIR"]),
        ([tmp_path / "empty"], [], ["empty: no images found", ".png, .jpg"]),
        ([tmp_path / "text"], [], ["text: no images found"]),
        ([text], [], ["a.txt is no image", ".tif"]),
        ([volume], [], ["CT.nii.gz is no image", "of volumes datasets.prepare makes slices"]),
        ([tmp_path / "none.png"], [], ["none.png does not exist"]),
        ([a, tmp_path / "same"], [], [a, "same/a.jpg", "would both be written to", out / "a.png"]),
        ([tmp_path / "case", a], [], ["case/A.png", a, "would both be written"]),
        ([tmp_path / "twins"], [], ["a.png: differs from a.jpg only in its extension"]),
        ([tmp_path / "means"], both, ["x.png", "x_mean.png", "would both be written"]),
        ([tmp_path / "in"], ["--out", tmp_path / "in"], ["is the folder to write to, too", "another --out"]),
        ([a], ["--out", tmp_path / "in"], [a, "is an input and would be replaced"]),
        ([a], ["--out", text], ["a.txt is a file", "another --out"]),
        ([a], ["--out", "/proc/nowhere"], ["cannot write to /proc/nowhere"]),
        ([a], ["--draws", 3], ["--draws 3", "--answer mean"]),
        ([a], ["--answer", "mean", "--keep_draws"], ["--keep_draws", "--draws K"]),
        ([a], ["--draws", -1], ["--draws", "0 or more"]),
        ([a], ["--answer", "best"], ["'best'", "sample, mean, both"]),
        ([a], ["--sampler", "ode"], ["ode", "choose another"]),
        ([a], ["--overlap", 1], ["--overlap", "below 1"]),
        ([a], ["--window", 7], ["--window 7", "take 8"]),
        ([a], ["--label", "x"], ["no classes", "leave out --label x"]),
        ([a], ["--group", "D9"], ["D9"]),
        ([a], ["--symmetrize", "canonical"], ["add --group"]),
        ([a], ["--outt", "x"], ["--outt", "did you mean --out"]),
        ([a], ["--seed", 1, "b.png"], ["unexpected argument 'b.png'"]),
        ([], [], ["input"]),
    ):
        refused(script.main, [run, *inputs, "--out", out, *flags], *words)
        assert not out.exists(), words
    assert "b.svs" not in capsys.readouterr().err
    refused(script.main, [tmp_path / "empty", a, "--out", out], "empty")
    tied = make_run(tmp_path / "tied", layers="tied", group="D4")
    refused(script.main, [tied, a, "--out", out, "--group", "C4"], "--group C4", "tied layers have D4")
    assert [*pictures(tmp_path / "in")] == ["a.png"] and not out.exists()
    (out / "sub").parent.mkdir()
    (out / "sub").write_text("in the way")
    put(tmp_path / "in" / "sub" / "b.png")
    refused(script.main, [run, tmp_path / "in", "--out", out, "--nfe", 2], "sub")
    full = tmp_path / "full"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ddbm.files.canvas.DISK", 1)
        patch.setattr("os.posix_fallocate", no_space)
        refused(script.main, [run, a, "--out", full, "--nfe", 2], "cannot write", full, "No space left on device")
