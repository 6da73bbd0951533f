"""Translating files and folders: names, formats, killed and gone on with, ranks."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from datasets.images import read_image
from datasets.large import resolution
from ddbm.model import load
from ddbm.translation.answers import Translator, translate
from scripts import translate as script
from tests.ddbm.runs import refused
from tests.scripts.sampling_runs import ROOT, Killed, environment
from tests.scripts.translate_runs import RGB, close, make_run, pictures, put, translated


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def inputs(tmp_path):
    """Five pictures of two sizes in folders, one of which has a blank in its name."""
    folder = tmp_path / "in puts"
    for i, name in enumerate(("a.png", "b c.png", "sub/a.tif", "sub/deep er/d.webp")):
        put(folder / name, np.roll(RGB, i, 0), **({"lossless": True} if name.endswith("webp") else {}))
    put(folder / "small.png", RGB[:5, :7])
    return folder


NAMES = ["a.png", "b c.png", "small.png", "sub/a.png", "sub/deep er/d.png"]


def test_a_folder_and_files_keep_their_structure_and_names(run, inputs, tmp_path, capsys):
    single = put(tmp_path / "one.jpg", RGB)
    found = translated(run, [inputs, single], tmp_path / "out")
    assert [*found] == sorted([*NAMES, "one.png"])
    assert "6 images translated\n" in capsys.readouterr().out
    model = load(run)
    for name, pixels in (("a.png", RGB), ("sub/a.png", np.roll(RGB, 2, 0)), ("small.png", RGB[:5, :7])):
        close(read_image(tmp_path / "out" / name).pixels, translate(model, pixels, nfe=2).sample)
    record = json.loads((tmp_path / "out" / script.RECORD).read_text())
    source = inputs / "sub" / "a.tif"
    changed = [source.stat().st_size, source.stat().st_mtime_ns]
    assert record["files"]["sub/a"] == {"input": str(source), "changed": changed, "sample": "sub/a.png"}
    assert record["depends_on"]["checkpoint"] == "step_00000001" and record["depends_on"]["nfe"] == 2
    assert "workers" not in record["depends_on"]


def test_batches_do_not_show(run, inputs, tmp_path, monkeypatch):
    """Pictures of one size go together, as many as give full batches of windows."""
    folders, real, sizes = [tmp_path / str(batch) for batch in (1, 4, 64)], Translator.__call__, []

    def counted(translator, images, *given):
        sizes.append(len(images))
        return real(translator, images, *given)

    monkeypatch.setattr(Translator, "__call__", counted)
    for folder in folders:
        translated(run, [inputs], folder, "--batch_size", folder.name, "--workers", 3)
    assert sizes == [1] * 5 + [2, 1, 2] + [2, 1, 2]
    monkeypatch.undo()
    (inputs / "small.png").unlink()
    monkeypatch.setattr(Translator, "__call__", counted)
    translated(run, [inputs], tmp_path / "together", "--batch_size", 7)
    assert sizes[11:] == [4]
    for name in NAMES:
        first, *others = (read_image(folder / name).pixels for folder in folders)
        for other in others:
            close(other, first)


def test_all_answers(run, tmp_path, capsys):
    """Draws, their mean and spread: as the library gives them for the same image."""
    path, out = put(tmp_path / "a.png", RGB, dpi=(300, 150)), tmp_path / "out"
    flags = ["--answer", "both", "--draws", 3, "--keep_draws", "--seed", 4, "--overlap", 0.3, "--window", 12]
    flags += ["--sampler", "dbim", "--eta", 0.8, "--order", 1]
    found = translated(run, [path], out, *flags)
    assert [*found] == [
        "a.png", "a_draw0.png", "a_draw1.png", "a_draw2.png", "a_mean.png", "a_spread.tif", "a_spread_picture.png",
    ]  # fmt: skip
    how = dict(answer="both", draws=3, seed=4, overlap=0.3, window=12, nfe=2, sampler="dbim", eta=0.8, order=1)
    wanted = translate(load(run), RGB, keep_draws=True, **how)
    shown = {"a": wanted.sample, "a_mean": wanted.mean} | {f"a_draw{k}": wanted.draws[k] for k in range(3)}
    for name, pixels in shown.items():
        assert np.array_equal(read_image(out / f"{name}.png").pixels, pixels)
        assert resolution(out / f"{name}.png")[:2] == pytest.approx((300, 150), abs=0.02)
    numbers = tifffile.imread(out / "a_spread.tif")
    assert numbers.dtype == np.float32 and resolution(out / "a_spread.tif")[:2] == pytest.approx((300, 150), abs=0.02)
    np.testing.assert_allclose(numbers, wanted.spread * 255, rtol=1e-5, atol=1e-4)  # in the targets' levels
    grey = read_image(out / "a_spread_picture.png").pixels[..., 0]
    close(grey, np.rint(np.clip(wanted.spread.mean(-1) / 0.25, 0, 1) * 255))
    assert grey.max() > 30
    (out / "a_mean.png").unlink()  # of an input all is made, or nothing
    capsys.readouterr()
    assert translated(run, [path], out, *flags) == found and "1 images translated\n" in capsys.readouterr().out
    only = translated(run, [path], tmp_path / "mean", "--answer", "mean")
    assert [*only] == ["a.png"]
    assert np.array_equal(read_image(tmp_path / "mean" / "a.png").pixels, translate(load(run), RGB, answer="mean").mean)
    for name, flags, files in (
        ("mean", ["--answer", "mean"], ["a.png"]),
        ("kept", ["--keep_draws"], ["a.png", "a_draw0.png"]),
        ("one", ["--answer", "mean", "--draws", 1], ["a.png"]),
    ):
        assert [*translated(run, [path], tmp_path / name, *flags)] == files
        capsys.readouterr()
        translated(run, [path], tmp_path / name, *flags)
        assert "0 images translated, 1 were there" in capsys.readouterr().out


def test_killed_it_goes_on(run, inputs, tmp_path, monkeypatch, capsys):
    out, expected = tmp_path / "out", translated(run, [inputs], tmp_path / "whole", "--batch_size", 1)
    real, calls = script.write_image, []

    def dying(path, *given):
        if len(calls) == 2:
            raise Killed
        calls.append(path)
        real(path, *given)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(script, "write_image", dying)
        translated(run, [inputs], out, "--batch_size", 1)
    assert len(pictures(out)) == 2
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.png")}
    capsys.readouterr()
    assert translated(run, [inputs], out, "--batch_size", 1) == expected
    assert "3 images translated, 2 were there (--overwrite makes them anew)" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    monkeypatch.setattr(Translator, "__call__", None)  # nothing is left to do
    translated(run, [inputs], out)
    assert "0 images translated, 5 were there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("stored", "data", "ending", "kind", "black", "white"),
    [
        (("uint8", "uint16", "png"), {}, "png", np.uint16, 0, 65535),
        (("uint8", "uint16", "tiff"), {}, "tif", np.uint16, 0, 65535),
        (("uint8", "uint8", "jpeg"), {}, "png", np.uint8, 0, 255),
        (("uint8", "uint8", "tiff"), dict(target_white=1.0), "tif", np.uint8, 0, 1),
        (("uint8", "float32", "tiff"), dict(target_black=-2.0, target_white=6.0), "tif", np.float32, -2, 6),
    ],
)
def test_written_as_the_targets_were(tmp_path, stored, data, ending, kind, black, white):
    run = make_run(tmp_path / "run", stored=stored, data=data)
    path, out = put(tmp_path / "a.tif", RGB, resolution=(40, 50), resolutionunit=3), tmp_path / "out"
    translated(run, [path], out, "--answer", "both", "--draws", 2)
    ours = translate(load(run), RGB / 255, answer="both", draws=2, nfe=2)
    for name, share in ((f"a.{ending}", ours.sample), (f"a_mean.{ending}", ours.mean)):
        wanted, found = black + share * (white - black), read_image(out / name).pixels
        assert found.dtype == kind
        tolerance = 0.001 if kind == np.float32 else 0.51 + 1e-5 * white
        np.testing.assert_allclose(found, wanted, atol=tolerance)
        size = resolution(out / name)
        scale = 2.54 if size.unit == "inch" else 1
        assert size[:2] == pytest.approx((40 * scale, 50 * scale), abs=0.02)
    np.testing.assert_allclose(tifffile.imread(out / "a_spread.tif"), ours.spread * (white - black), atol=1e-3 * white)


def test_other_channels_masks_and_classes(tmp_path, capsys):
    run = make_run(tmp_path / "run", channels=(1, 3), classes=("he", "pas"))
    mask = np.where(RGB[..., 1] < 90, 0, 200).astype(np.uint8)
    put(tmp_path / "in" / "a.png", np.dstack([RGB, mask]))
    plain = put(tmp_path / "in" / "b.png")
    translated(run, [tmp_path / "in"], tmp_path / "out", "--label", "pas", "--answer", "both", "--draws", 2)
    wanted = translate(load(run), RGB, mask=mask > 0, label=1, nfe=2, answer="both", draws=2)
    found = read_image(tmp_path / "out" / "a.png")
    close(found.pixels[..., 0], wanted.sample[..., 0])
    assert np.array_equal(found.mask, mask > 0) and read_image(tmp_path / "out" / "b.png").mask is None
    spread = read_image(tmp_path / "out" / "a_spread.tif")
    assert np.array_equal(spread.mask, mask > 0)
    np.testing.assert_allclose(spread.pixels, wanted.spread * 255, atol=1e-2)
    refused(script.main, [run, plain, "--out", tmp_path / "no"], "found --label ''", "he, pas")
    refused(script.main, [run, plain, "--out", tmp_path / "no", "--label", "hee"], "'hee'", "he, pas")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ({"mask_suffix": "_m"}, "in/a_m.png"), ({"mask_folder": "mask"}, "mask/a.png"),
        ({"mask_folder": "mask"}, "in/mask/a.png"), ({"mask_folder": "mask", "mask_suffix": "_m"}, "mask/in/a_m.png"),
    ],
)  # fmt: skip
def test_masks_in_files_are_those_of_alpha(tmp_path, capsys, data, place):
    """They are no inputs, lie as in training, and hide what alpha would; without one all is translated."""
    seen = np.ones(RGB.shape[:2], bool)
    seen[4:9, 2:20] = False
    alpha = np.where(seen, 255, 0).astype(np.uint8)
    put(tmp_path / "alpha/a.png", np.concatenate([RGB, alpha[..., None]], -1))
    put(tmp_path / "in/a.png"), put(tmp_path / "in/b.png")
    put(tmp_path / place, alpha)
    masked = make_run(tmp_path / "masked", data=data)
    expected = translated(make_run(tmp_path / "run"), [tmp_path / "alpha"], tmp_path / "out_alpha")
    found = translated(masked, [tmp_path / "in"], tmp_path / "out")
    assert found.keys() == {"a.png", "b.png"} and found["a.png"] == expected["a.png"]
    said = re.findall("note: (.*): has no mask, as the training's images had", capsys.readouterr().out)
    assert said == [str(tmp_path / "in/b.png")]
    with Image.open(tmp_path / "out/b.png") as whole:
        assert whole.mode == "RGB"
    put(tmp_path / place, alpha[:-1])
    translated(masked, [tmp_path / "in/a.png"], tmp_path / "wrong", code=1)
    assert "the mask is 20x27 pixels but its pair 21x27" in capsys.readouterr().err


def test_inputs_are_resized_as_the_training_did(tmp_path, capsys):
    """A slide scanner's pictures of twice the pixels; the resolution follows."""
    path = put(tmp_path / "a.tif", RGB, resolution=(400, 200), resolutionunit=2)
    cases = (
        (dict(fit="resize"), (32, 64), [], (10, 14), "0.5 (as"),
        (dict(fit="stretch"), (32, 64), [], (10, 7), "0.5 x 0.25"),
        (dict(fit="crop"), (32, 64), [], (21, 27), ""),
        (dict(image_size="native"), (16, 16), [], (21, 27), ""),
        (dict(fit="resize"), (), [], (21, 27), ""),
        (dict(fit="resize"), (32, 64), ["--scale", 1], (21, 27), ""),
        (dict(fit="stretch"), (32, 64), ["--scale", 2], (42, 54), "by 2\n"),
    )
    for number, (data, native, flags, size, said) in enumerate(cases):
        run, out = make_run(tmp_path / f"run{number}", data=data, native=native), tmp_path / f"out{number}"
        capsys.readouterr()
        translated(run, [path], out, *flags)
        found, printed = read_image(out / "a.png").pixels, capsys.readouterr().out
        assert found.shape[:2] == size
        assert said.split(" (")[0] in printed and ("inputs are resized" in printed) == bool(said)
        assert ("as the training resized its pairs (--scale 1" in printed) == bool(said and not flags)
        factor = {(10, 7): (0.25, 0.5), (10, 14): (0.5, 0.5), (42, 54): (2, 2)}.get(size, (1, 1))
        wanted = (400 * factor[0], 200 * factor[1])
        assert resolution(out / "a.png")[:2] == pytest.approx(wanted, abs=0.02)


def test_turned_pictures_are_upright_and_so_is_their_resolution(run, tmp_path):
    turned = Image.Exif()
    turned[274] = 6
    put(tmp_path / "a.png", np.rot90(RGB).copy(), exif=turned, dpi=(300, 150))
    translated(run, [tmp_path / "a.png"], tmp_path / "out")
    found = read_image(tmp_path / "out" / "a.png").pixels
    close(found, translate(load(run), RGB, nfe=2).sample)
    assert resolution(tmp_path / "out" / "a.png")[:2] == pytest.approx((150, 300), abs=0.02)


def test_a_large_tiff_by_tiles_and_from_the_disk_is_the_same(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", stored=("uint8", "uint16", "tiff"))
    path, flags = put(tmp_path / "a.tif", RGB, tile=(16, 16)), ["--answer", "both", "--draws", 2]
    flags += ["--symmetrize", "canonical", "--group", "D4"]
    translated(run, [path], tmp_path / "whole", *flags)
    for place in ("datasets.large.LARGE", "datasets.writing.LARGE", "ddbm.files.canvas.DISK"):
        monkeypatch.setattr(place, 1)
    monkeypatch.setattr("datasets.writing.TILE", 16)
    monkeypatch.setattr("datasets.large.read_image", None)
    translated(run, [path], tmp_path / "parts", *flags)
    for name in ("a.tif", "a_mean.tif", "a_spread.tif"):
        with tifffile.TiffFile(tmp_path / "parts" / name) as tiff:
            assert tiff.pages[0].tile == (16, 16)
            assert np.array_equal(tiff.asarray(), tifffile.imread(tmp_path / "whole" / name))


def test_the_group_of_sampling_reaches_the_whole(run, tmp_path):
    """A turned input's file is the turned file, to the last bit."""
    flags = ["--symmetrize", "canonical", "--group", "D4", "--eta", 1, "--order", 1]
    put(tmp_path / "in" / "a.png"), put(tmp_path / "in" / "b.png", np.rot90(RGB[:, ::-1]).copy())
    translated(run, [tmp_path / "in"], tmp_path / "out", *flags)
    a, b = (read_image(tmp_path / "out" / f"{name}.png").pixels for name in "ab")
    assert np.array_equal(b, np.rot90(a[:, ::-1]))


def test_two_ranks_write_the_files_of_one(run, inputs, tmp_path):
    """And go on with what one began; a bad file is everybody's exit code, and the others' files are there."""
    expected = translated(run, [inputs], tmp_path / "one", "--batch_size", 1)
    (inputs / "zero.png").write_bytes(b"")
    out = tmp_path / "two"
    translated(run, [inputs / "b c.png"], out)
    start = [sys.executable, "-m", "scripts.torchrun", "--standalone", "--nproc_per_node", "2", "-m"]
    words = ["scripts.translate", run, inputs, "--out", out, "--nfe", 2, "--device", "cpu", "--batch_size", 1]
    command = [*start, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment(), cwd=ROOT)
    assert done.returncode == 1 and "Traceback" not in done.stderr and done.stderr.count("error: ") == 1, done.stderr
    assert pictures(out) == expected
    assert "4 images translated, 1 were there" in done.stdout and done.stdout.count("1 could not be translated") == 1


def test_it_shows_how_it_goes(run, tmp_path, capsys):
    translated(run, [put(tmp_path / "a.png")], tmp_path / "out")
    said = capsys.readouterr().err
    assert "1.0/1 [" in said and ("image/s" in said or "s/image" in said)
