"""Pictures as the targets were stored, read again by Pillow, tifffile and the reader of the data sets."""

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from datasets import large, writing
from datasets.images import read_image
from datasets.large import Resolution, resolution
from datasets.writing import Form, form_of, write_image
from ddbm.config import Config, DataConfig, Header, ImageShape
from tests.ddbm.runs import one_line

RANDOM = np.random.default_rng(5)
SMALL = (19, 30)
MASK = RANDOM.random(SMALL) < 0.7


def image(channels, size=SMALL):
    """Values in [-1, 1], both ends among them."""
    made = RANDOM.uniform(-1, 1, (channels, *size)).astype(np.float32)
    made[:, 0, :2] = -1, 1
    return made


@pytest.mark.parametrize(
    ("kind", "format", "channels", "black", "white", "wanted"),
    [
        ("uint8", "png", 3, 0, 0, ("uint8", 0, 255, ".png")),
        ("uint8", "jpg", 1, 0, 0, ("uint8", 0, 255, ".png")),
        ("", "", 3, 0, 0, ("uint8", 0, 255, ".png")),
        ("uint16", "png", 1, 0, 0, ("uint16", 0, 65535, ".png")),
        ("uint16", "png", 3, 0, 4095, ("uint16", 0, 4095, ".png")),
        ("uint8", "tiff", 3, 0, 1, ("uint8", 0, 1, ".tif")),
        ("uint8", "png", 2, 0, 0, ("uint8", 0, 255, ".tif")),
        ("uint16", "tiff", 5, 0, 0, ("uint16", 0, 65535, ".tif")),
        ("float32", "tiff", 1, 0, 0, ("float32", 0, 1, ".tif")),
        ("float64", "tiff", 1, -2, 3, ("float64", -2, 3, ".tif")),
        ("int16", "tiff", 1, -1000, 2000, ("int16", -1000, 2000, ".tif")),
        ("int16", "png", 1, -1000, 0, ("int16", -1000, 32767, ".tif")),
    ],
)
def test_the_form_is_that_of_the_targets(kind, format, channels, black, white, wanted):
    stored = ("uint8", kind, format) if kind else ()
    data = DataConfig(target_black=black, target_white=white)
    assert form_of(Header(Config(data), ImageShape(channels, 7, 8, 8, 0), 1, stored=stored)) == wanted


FORMS = [
    (Form("uint8", 0, 255, ".png"), 3), (Form("uint8", 0, 255, ".png"), 1), (Form("uint16", 0, 65535, ".png"), 3),
    (Form("uint16", 0, 4095, ".png"), 1), (Form("uint8", 255, 0, ".png"), 1), (Form("uint8", 0, 255, ".tif"), 3),
    (Form("uint16", 100, 4000, ".tif"), 1), (Form("uint8", 0, 255, ".tif"), 2), (Form("uint16", 0, 65535, ".tif"), 5),
    (Form("float32", 0, 1, ".tif"), 1), (Form("float32", -3, 5, ".tif"), 4), (Form("int16", -1000, 2000, ".tif"), 1),
    (Form("float64", 0, 1, ".tif"), 3),
]  # fmt: skip


@pytest.mark.parametrize(("form", "channels"), FORMS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("limit", [1, 10**9])
def test_every_form_is_read_again(tmp_path, monkeypatch, form, channels, masked, limit):
    """-1 is black and 1 is white; by tiles, of which the last are cut, and as a whole; a mask is alpha."""
    monkeypatch.setattr(writing, "LARGE", limit)
    monkeypatch.setattr(writing, "TILE", 16)
    shown, path = image(channels), tmp_path / f"a{form.ending}"
    write_image(path, shown, form, None, MASK if masked else None)
    wanted = form.black + (shown.transpose(1, 2, 0).astype(np.float64) + 1) / 2 * (form.white - form.black)
    wanted = (np.rint(wanted) if form.kind[0] in "ui" else wanted).astype(form.kind)
    if form.ending == ".tif":
        with tifffile.TiffFile(path) as tiff:
            page, stored = tiff.pages[0], tiff.asarray()
            assert page.is_tiled == (limit == 1) and len(tiff.pages) == 1 and not tiff.is_bigtiff
            assert page.photometric.name == ("RGB" if channels == 3 else "MINISBLACK") and page.compression == 8
            assert page.tilewidth == (16 if limit == 1 else 0) or limit > 1
    else:
        stored = imagecodecs.png_decode(path.read_bytes())
    stored = stored[..., None] if stored.ndim == 2 else stored
    assert stored.dtype == form.kind and np.array_equal(stored[..., :channels], wanted)
    found = read_image(path)
    assert np.array_equal(found.pixels, wanted)
    assert np.array_equal(found.mask, MASK) if masked else found.mask is None
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_values_beyond_the_type_are_cut(tmp_path):
    write_image(tmp_path / "a.png", np.array([[[-1.5, 1.5, 0]]], np.float32), Form("uint8", 0, 255, ".png"))
    assert read_image(tmp_path / "a.png").pixels.ravel().tolist() == [0, 255, 128]


@pytest.mark.parametrize("unit", ["inch", "cm", "none"])
@pytest.mark.parametrize("ending", [".png", ".tif"])
@pytest.mark.parametrize("limit", [1, 10**9])
def test_the_resolution_is_kept(tmp_path, monkeypatch, unit, ending, limit):
    """By our own reading and by Pillow's, which speaks of inches; PNG counts whole pixels a metre."""
    monkeypatch.setattr(writing, "LARGE", limit)
    path, asked = tmp_path / f"a{ending}", Resolution(300.25, 1500.0, unit)
    write_image(path, image(3), Form("uint8", 0, 255, ending), asked)
    found = resolution(path)
    with Image.open(path) as stored:
        dpi = stored.info.get("dpi")
    if unit == "none" and ending == ".png":
        assert found is None and dpi is None
        return
    factor = 2.54 if unit == "cm" else 1.0
    if unit != "none":
        assert tuple(map(float, dpi)) == pytest.approx((300.25 * factor, 1500 * factor), abs=0.02)
    if ending == ".tif":
        assert found == (pytest.approx(300.25), 1500, unit)
    else:
        assert found.unit == "inch" and found[:2] == pytest.approx((300.25 * factor, 1500 * factor), abs=0.02)
    write_image(path, image(3), Form("uint8", 0, 255, ending))
    assert resolution(path) in (None, (1, 1, "none"))
    many = Resolution(1e12, 300, "inch")
    write_image(path, image(3), Form("uint8", 0, 255, ".png"), many)
    with Image.open(path) as stored:
        assert stored.info["dpi"][0] == pytest.approx((2**32 - 1) * 0.0254)


def test_large_files_are_told_to_be_large(tmp_path, monkeypatch):
    """More than 4 GiB do not fit a TIFF's usual offsets; the picture is one that repeats a pixel."""
    seen = []

    class Writer:
        def __init__(self, file, bigtiff):
            file.write_bytes(b"")
            seen.append(bigtiff)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            """Nothing is open."""

        def write(self, tiles, **about):
            """Nothing is computed."""

    monkeypatch.setattr(tifffile, "TiffWriter", Writer)
    for side, kind in ((2**15, "uint8"), (2**15, "uint16"), (2**16, "uint8")):
        shown = np.broadcast_to(np.float32(0), (1, side, side))
        write_image(tmp_path / "a.tif", shown, Form(kind, 0, 1, ".tif"))
    assert seen == [False, True, True] and large.LARGE == writing.LARGE == 2**24


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    for ending in (".png", ".tif"):
        with one_line("cannot write", f"a{ending}", kind=OSError):
            write_image(tmp_path / "nowhere" / f"a{ending}", image(3), Form("uint8", 0, 255, ending))
