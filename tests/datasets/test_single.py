"""Sources of any size are read to the values of training: by hand, by Pillow, and as a pair of the same file."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from datasets import large, paired
from datasets.paired import FolderPairs
from datasets.single import read_source
from ddbm.config import DataConfig
from ddbm.files import canvas
from tests.ddbm.runs import one_line

RANDOM = np.random.default_rng(9)
RGB = RANDOM.integers(0, 256, (45, 70, 3), np.uint8)
MASK = np.where(np.arange(70) < 40, 0, 90).astype(np.uint8)[None].repeat(45, 0)
PLAIN = DataConfig()


def put(path, pixels, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        colours = "rgb" if pixels.shape[2:] in ((3,), (4,)) else "minisblack"
        tifffile.imwrite(path, pixels, **({"photometric": colours, "metadata": None} | how))
    else:
        Image.fromarray(pixels).save(path)
    return path


def wanted(pixels, white, black=0):
    values = (np.clip(pixels, black, white).astype(np.float64) - black) / (white - black) * 2 - 1
    return np.atleast_3d(values).transpose(2, 0, 1)


@pytest.mark.parametrize("strip", [1 << 22, 500])
@pytest.mark.parametrize(
    ("pixels", "options", "levels"),
    [
        (RGB, {}, (255, 0)),
        (RGB, dict(source_white=200.0, source_black=30.0, target_white=7.0), (200, 30)),
        (RGB[..., 0].astype(np.uint16) * 200, {}, (65535, 0)),
        (RGB[..., 0].astype(np.uint16) * 16, dict(source_white=4095.0), (4095, 0)),
        (RGB[..., 1] / np.float32(255), {}, (1, 0)),
        (RGB[..., 1] / np.float32(10) - 5, dict(source_black=-3.0, source_white=15.0), (15, -3)),
    ],
)
def test_values_are_those_of_their_type_or_levels(tmp_path, monkeypatch, pixels, options, levels, strip):
    monkeypatch.setattr(paired, "STRIP", strip)
    path = put(tmp_path / "a.tif", pixels)
    found = read_source(path, DataConfig(**options), len(np.atleast_3d(pixels)[0, 0]), (1.0, 1.0))
    np.testing.assert_allclose(found.image, wanted(pixels, *levels), atol=1e-6)
    assert found.image.dtype == np.float32 and found.mask is None
    assert (found.kind, found.note) == (pixels.dtype.name, "")


def on_disk(array):
    """Whether its memory is that of a mapped file."""
    start = array.__array_interface__["data"][0]
    spans = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    ends = [(map_[-1], *(int(n, 16) for n in map_[0].split("-"))) for map_ in spans]
    return any(low <= start < high and "(deleted)" in name for name, low, high in ends)


@pytest.mark.parametrize("disk", [False, True])
def test_alpha_is_a_mask_by_tiles_too(tmp_path, monkeypatch, disk):
    """Mid-grey where nothing is to be seen; tiles that all show count as shown."""
    pixels = np.dstack([RGB, MASK])
    path = put(tmp_path / "a.tif", pixels, extrasamples=["unassalpha"], tile=(16, 32))
    if disk:
        monkeypatch.setattr(large, "LARGE", 1)
        monkeypatch.setattr(canvas, "DISK", 1000)
    found = read_source(path, PLAIN, 3, (1.0, 1.0), tmp_path)
    assert np.array_equal(found.mask, MASK[None] > 0) and found.mask.dtype == bool
    np.testing.assert_allclose(found.image, wanted(RGB, 255) * (MASK > 0), atol=1e-6)
    assert on_disk(found.image) == disk and [p.name for p in tmp_path.iterdir()] == ["a.tif"]
    assert on_disk(found.mask) == disk
    shown = put(tmp_path / "b.tif", RGB, tile=(16, 32))
    assert read_source(shown, PLAIN, 3, (1.0, 1.0), tmp_path).mask is None


@pytest.mark.parametrize("size", [(15, 70), (90, 35), (45, 71), (10, 20)])
def test_resized_as_pillow_resizes(tmp_path, size):
    path = put(tmp_path / "a.png", RGB)
    how = dict(source_resize="bilinear")
    found = read_source(path, DataConfig(**how), 3, (size[0] / 45, size[1] / 70)).image
    for channel in range(3):
        plane = Image.fromarray(RGB[..., channel].astype(np.float32))
        other = np.asarray(plane.resize(size[::-1], Image.Resampling.BILINEAR))
        np.testing.assert_allclose(found[channel], other / 127.5 - 1, atol=2e-3)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("resize", ["bicubic", "nearest"])
def test_resized_as_a_training_resizes(tmp_path, masked, resize):
    """A pair of the same file, stretched to the same size."""
    pixels = np.dstack([RGB, MASK]) if masked else RGB
    for side in ("source", "target"):
        put(tmp_path / side / "a.png", pixels)
    options = DataConfig(
        data_dir=str(tmp_path), image_size="20x28", fit="stretch", source_resize=resize, source_white=230.0
    )
    pair = FolderPairs("all", options).get(0, None)
    found = read_source(tmp_path / "source" / "a.png", options, 3, (20 / 45, 28 / 70))
    assert np.array_equal(found.image, pair.source)
    assert np.array_equal(found.mask, pair.mask) if masked else pair.mask is found.mask is None


def test_what_is_odd_about_levels_is_noted(tmp_path, monkeypatch):
    dark = put(tmp_path / "a.tif", (RGB[..., 0] * np.uint16(16)).astype(np.uint16))
    note = read_source(dark, PLAIN, 1, (1.0, 1.0)).note
    assert "no value above 4080 of 65535" in note and "4095" in note and "takes 65535 as white" in note
    with monkeypatch.context() as patch:  # of all its tiles
        patch.setattr(large, "LARGE", 1)
        for i, (first, last) in enumerate(((60000, 5), (5, 60000), (5, 9))):
            values = np.r_[[first] * 20, [last] * 25].astype(np.uint16)[:, None].repeat(70, 1)
            found = read_source(put(tmp_path / f"{i}.tif", values, tile=(16, 32)), PLAIN, 1, (1.0, 1.0)).note
            assert ("no value above 9" in found) == (i == 2) and bool(found) == (i == 2)
    assert read_source(dark, DataConfig(source_white=4095.0), 1, (1.0, 1.0)).note == ""
    assert read_source(dark, DataConfig(source_black=1.0), 1, (1.0, 1.0)).note == ""


def test_twelve_bits_in_a_file_are_white_of_them(tmp_path, monkeypatch):
    """Where levels are given without a white it is that of the file."""
    path = put(tmp_path / "a.tif", RGB[..., 0])
    picture = large.read_image(path, True)._replace(white=200)
    monkeypatch.setattr(large, "read_image", lambda path, stored: picture if stored else None)
    found = read_source(path, DataConfig(source_black=10.0), 1, (1.0, 1.0))
    np.testing.assert_allclose(found.image, wanted(RGB[..., 0], 200, 10), atol=1e-6)
    resized = read_source(path, DataConfig(source_black=10.0, source_resize="nearest"), 1, (2.0, 1.0))
    assert np.array_equal(resized.image, found.image.repeat(2, 1))


@pytest.mark.parametrize("limit", [1, 10**9])
def test_what_cannot_be_used_is_named(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(large, "LARGE", limit)
    path = put(tmp_path / "a.tif", RGB, tile=(16, 32))
    with one_line(path, "has 3 channels, the model takes 1"):
        read_source(path, PLAIN, 1, (1.0, 1.0))
    values = RGB[..., 0] / np.float32(255)
    values[40, 60] = np.nan
    for factor in (1.0, 0.5):
        with one_line("b.tif", "NaN"):
            read_source(put(tmp_path / "b.tif", values, tile=(16, 32)), PLAIN, 1, (factor, factor))
    with one_line("c.png", "cannot be read"):
        (tmp_path / "c.png").write_bytes(b"")
        read_source(tmp_path / "c.png", PLAIN, 1, (1.0, 1.0))


def test_a_pixel_is_left_of_the_smallest(tmp_path):
    found = read_source(put(tmp_path / "a.png", RGB[:1]), PLAIN, 3, (0.1, 0.1))
    assert found.image.shape == (3, 1, 7) and np.abs(found.image).max() <= 1
