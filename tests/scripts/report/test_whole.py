"""Whole pictures that were translated lead the report, beside their truth; what is damaged is said."""

import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from ddbm.config import DataConfig
from scripts.report.charts import number
from scripts.report.runs import read_run
from scripts.report.whole import SIDE, whole_pictures
from tests.scripts.report.reports import reported, sampled, translated
from tests.scripts.sampling_runs import make_run

QUICK = ["--group", "none"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run that translated a picture and has its truth; `big` is a further picture without."""
    home = tmp_path_factory.mktemp("home")
    run = make_run(home / "run")
    sampled(run, "--nfe", 2, count=4)
    translated(run)
    return home


@pytest.fixture
def run(home, tmp_path):
    shutil.copytree(home / "run", tmp_path / "run")
    record = tmp_path / "run" / "translated" / "translation.json"
    record.write_text(record.read_text().replace(str(home), str(tmp_path)))
    return tmp_path / "run"


def changed(run, change):
    """`translation.json`, changed by a function of its files."""
    path = run / "translated" / "translation.json"
    record = json.loads(path.read_text())
    change(record["files"])
    path.write_text(json.dumps(record))


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def shown(run):
    return whole_pictures(read_run(run, "", "run"))


def test_the_picture_comes_first(run):
    page = reported(run, flags=QUICK)
    first = [image["alt"] for image in page.images[:5]]
    assert first == [f"{kind} of source" for kind in ("source", "sample", "target", "mean", "spread")]
    assert page.images[5]["alt"] == "source of pair 0"
    tags = [tag for tag, _ in page.tags]
    assert tags.index("h1") < tags.index("img") < tags.index("nav")
    target, folder = pixels(run / "picture" / "target.tif"), run / "translated"
    captions = page.captions[:5]
    assert captions[::2] == ["source", "target", "spread"]
    for caption, kind, file in zip(captions[1::2], ("sample", "mean"), ("source.png", "source_mean.png"), strict=True):
        psnr = peak_signal_noise_ratio(target, pixels(folder / file))
        assert re.fullmatch(rf"{kind}, PSNR ([\d.]+) dB", caption)[1] == number(psnr)
    assert "source: 40 × 56 pixels, translated by step_00000001: dbim, 2 evaluations at most." in page.text
    assert "Spread: white from 0.25 of the range on." in page.text
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.images[:5])
    for image, file in zip(page.images, ("picture/source.png", "translated/source.png"), strict=False):
        content = base64.b64decode(image["src"].partition(",")[2])
        assert np.abs(pixels(io.BytesIO(content)).astype(int) - pixels(run / file)).mean() < 12  # noise, as JPEG
        assert (image["width"], image["height"]) == ("56", "40")


def test_it_leads_the_png_too(run):
    reported(run, flags=QUICK)
    height = len(pixels(run / "report.png"))
    shutil.rmtree(run / "translated")
    assert "translated by" not in reported(run, flags=QUICK).text
    assert 200 < height - len(pixels(run / "report.png")) < 500  # 4 inches of 12, by 40 / 56


def test_the_images_are_those_of_the_files(run):
    ((one,), notes) = shown(run)
    files = {
        "source": "picture/source.png",
        "sample": "translated/source.png",
        "target": "picture/target.tif",
        "mean": "translated/source_mean.png",
    }
    for kind, file in files.items():
        assert np.array_equal(one.images[kind], pixels(run / file))
    spread = pixels(run / "translated" / "source_spread_picture.png")
    assert np.array_equal(one.images["spread"], spread[..., None].repeat(3, -1)) and spread.max() > 0 and not notes


def test_large_ones_are_made_smaller_and_of_many_two_are_shown(run, monkeypatch):
    shutil.rmtree(run / "translated")
    shutil.move(run / "other", run / "translated")
    (one, big), notes = shown(run)
    assert one.name == "source" and big.name == "big" and not notes
    assert list(big.images) == ["source", "sample"] and big.captions == {"source": "source", "sample": "sample"}
    assert {image.shape for image in big.images.values()} == {(14, SIDE, 3)} and "20 × 1500 pixels" in big.text
    changed(run, lambda files: files.update(third=files["big"]))
    assert [len(part) for part in shown(run)] == [2, 1] and "holds 3 translated pictures, of which 2" in shown(run)[1][
        0
    ]
    monkeypatch.setattr("scripts.report.whole.PIXELS", 20 * 1500 - 1)
    (one,), notes = shown(run)
    assert "big: the source is not shown: " in notes[0] and "20 x 1500 pixels are too many" in notes[0]


def test_without_a_truth_of_its_size_there_is_no_psnr(run):
    target = run / "picture" / "target.tif"
    Image.fromarray(pixels(target)[::2, ::2]).save(target)
    ((one,), notes) = shown(run)
    assert one.captions["sample"] == "sample" and "target" in one.images and not notes
    target.rename(target.with_name("truth.tif"))
    ((one,), notes) = shown(run)
    assert list(one.images) == ["source", "sample", "mean", "spread"] and not notes
    (run / "picture" / "source.png").rename(run / "picture" / "scan.png")
    target.with_name("truth.tif").rename(target)
    changed(run, lambda files: files["source"].update(input=str(run / "picture" / "scan.png")))
    assert list(shown(run)[0][0].images) == ["source", "sample", "mean", "spread"]


def test_a_truth_that_equals_the_sample(run):
    (run / "picture" / "target.tif").unlink()
    shutil.copy(run / "translated" / "source.png", run / "picture" / "target.png")
    assert shown(run)[0][0].captions["sample"] == "sample, PSNR ∞ dB"


def test_where_a_truth_is_transparent_nothing_is_compared(run):
    target, sample = pixels(run / "picture" / "target.tif"), pixels(run / "translated" / "source.png")
    seen = np.indices((40, 56))[1] < 50
    (run / "picture" / "target.tif").unlink()
    Image.fromarray(np.dstack([target, 255 * seen.astype(np.uint8)])).save(run / "picture" / "target.png")
    mse = ((target / 255 - sample / 255) ** 2)[seen].mean()
    assert shown(run)[0][0].captions["sample"] == f"sample, PSNR {number(-10 * np.log10(mse))} dB"


def test_values_are_between_the_black_and_white_of_the_training(run):
    ((plain,), _) = shown(run)
    known = read_run(run, "", "run")
    data = DataConfig(source_white=200, target_black=50, target_white=250)
    ((one,), _) = whole_pictures(known._replace(config=known.config.__class__(data)))
    target, sample = (np.clip((one / 200) - 0.25, 0, 1) for one in (plain.images["target"], plain.images["sample"]))
    assert one.captions["sample"] == f"sample, PSNR {number(-10 * np.log10(((target - sample) ** 2).mean()))} dB"
    assert np.abs(one.images["source"] - np.clip(plain.images["source"] * (255 / 200), 0, 255)).max() < 0.51
    assert np.array_equal(one.images["spread"], plain.images["spread"])


def test_what_is_missing_or_damaged_is_a_line(run):
    (run / "picture" / "source.png").unlink()
    (run / "translated" / "source_mean.png").write_bytes(b"no picture")
    page = reported(run, flags=QUICK)
    assert [image["alt"] for image in page.images[:3]] == [
        f"{kind} of source" for kind in ("sample", "target", "spread")
    ]
    assert "source: the source is not shown: " in page.text and "source: the mean is not shown: " in page.text
    (run / "translated" / "source.png").unlink()
    found, notes = shown(run)
    assert not found and len(notes) == 3


HOW = '{"depends_on": {"checkpoint": "a", "sampler": "b", "nfe": 1}, "files": '


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"depends_on": {}, "files": {}}', HOW + '{"a": "b"}}', HOW + "[]}"]
)
def test_a_record_that_is_damaged_is_a_line(run, content):
    (run / "translated" / "translation.json").write_text(content)
    found, (note,) = shown(run)
    assert not found and "translation.json: no translated pictures are shown: " in note
