"""Both images of a pair are read, checked, resized and cropped alike, each by its own levels."""

import tracemalloc

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from datasets import open_data, paired
from datasets.images import scaled
from ddbm.config import Config, DataConfig, Header, ImageShape, parse_size


def opened(make, root, source, target, name="x.tif", **options):
    """A data set of one training pair in two folders."""
    for split in ("train", "val"):
        make.write(root / split / "A" / name, source)
        make.write(root / split / "B" / name, target)
    return open_data("mine", "train", data_dir=str(root), **options)


def test_each_side_has_its_own_channels_black_and_white(make, tmp_path):
    source, target = make.noise(12, 10, 5), make.noise(12, 10, 1, dtype=np.uint16).astype(np.int16) // 16
    levels = {"source_white": 100, "source_black": 20, "target_white": 2000, "target_black": -1000}
    data = opened(make, tmp_path, source, target, **levels)
    assert (data.source_channels, data.target_channels, data.size, data.notice) == (5, 1, (12, 10), "")
    item = data.get(0, None)
    for image, stored, low, high in ((item.source, source, 20, 100), (item.target, target, -1000, 2000)):
        expected = (np.clip(stored.transpose(2, 0, 1).astype(float), low, high) - low) / (high - low) * 2 - 1
        np.testing.assert_allclose(image, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("pixels", "white", "black", "expected"),
    [
        (np.array([0, 51, 255], np.uint8), 0, 0, [-1, -0.6, 1]),
        (np.array([0, 13107, 65535], np.uint16), 0, 0, [-1, -0.6, 1]),
        (np.array([0, 819, 4095, 5000], np.uint16), 4095, 0, [-1, -0.6, 1, 1]),
        (np.array([0, 0.25, 1], np.float16), 0, 0, [-1, -0.5, 1]),
        (np.array([0, 40, 200], np.float64), 200, 0, [-1, -0.6, 1]),
        (np.array([0, 50, 90, 250], np.uint8), 0, 50, [-1, -1, 80 / 205 - 1, 400 / 205 - 1]),
        (np.array([-3000, -1000, -400, 2000, 3000], np.int16), 2000, -1000, [-1, -1, -0.6, 1, 1]),
        (np.array([0, 60, 255], np.uint8), 0, -5, [10 / 260 - 1, -0.5, 1]),
        (np.array([-1, -0.2, 0.6, 1], np.float32), 0, -1, [-1, -0.2, 0.6, 1]),
        (np.array([-1, -0.2, 1, 2], np.float32), 1, -1, [-1, -0.2, 1, 1]),
        (np.array([-500, -300, -100], np.float32), -200, -400, [-1, 0, 1]),
        (np.array([0, 2**30, 2**31 - 1], np.uint32), 2**31, 0, [-1, 0, 1]),
        *((np.array([2**24, 2**24 + 1, 2**24 + 2], kind), 2**24 + 2, 2**24, [-1, 0, 1]) for kind in ("f8", "i8", "i4")),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_black_and_white(tmp_path, pixels, white, black, expected, channels):
    image = scaled(np.repeat(pixels[None, :, None], channels, 2), white, tmp_path, black)
    assert image.shape == (channels, 1, len(expected))
    np.testing.assert_allclose(image, np.broadcast_to(np.float32(expected), image.shape), atol=1e-6)


@pytest.mark.parametrize(
    ("value", "levels", "message"),
    [
        (np.nan, (0, 0), "NaN"),
        (np.inf, (9, 0), "infinite"),
        (1.5, (0, 0), r"lie in \[1.5, 1.5\], expected \[0, 1\].*--source_white"),
        (1.5, (0, -1), r"expected \[-1, 1\]"),
        (-0.5, (9, 0), "expected 0 or more, or a black.*--source_black"),
        (np.int16(-5), (9, 0), r"lie in \[-5, -5\], expected 0 or more.*--source_black"),
        (np.int16(3), (0, -1000), "pixels are int16, expected uint8, uint16, float or a white; .*--source_white"),
        (np.int32(3), (0, 2), "pixels are int32"),
        (np.complex64(1), (9, 0), "pixels are complex64"),
        (np.uint8(3), (0, 255), "white is 255 by the type of the file, expected more than the black 255"),
    ],
)
def test_values_without_a_meaning_are_refused(tmp_path, value, levels, message):
    with pytest.raises(ValueError, match=message) as error:
        scaled(np.full((2, 2, 1), value), levels[0], tmp_path / "a.tif", levels[1])
    assert "a.tif" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("half", ["left", "right"])
@pytest.mark.parametrize(("level", "expected"), [("white", [-1, 1, 1]), ("black", [-1, -1, 1])])
def test_levels_that_are_given_speak_of_stored_values(tmp_path, half, level, expected):
    """Both halves in one TIFF of 12 bits, only the source with a white or black of 2000."""
    levels = np.array([[0, 2000, 4095, 0, 2000, 4095]], np.uint16)
    options = {f"source_{level}": 2000, "source_half": half}
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        tifffile.imwrite(tmp_path / split / "a.tif", levels, bitspersample=12)
    item = open_data("mine", "train", data_dir=str(tmp_path), **options).get(0, None)
    np.testing.assert_allclose(item.source[0, 0], expected, atol=1e-6)
    np.testing.assert_allclose(item.target[0, 0], [-1, 4000 / 4095 - 1, 1], atol=1e-5)


def test_white_is_above_black():
    assert DataConfig(source_black=-1000.0, source_white=-200.0, target_black=7.0)
    with pytest.raises(ValueError, match="--source_white 7 must be above --source_black 7"):
        DataConfig(source_black=7.0, source_white=7.0)
    with pytest.raises(ValueError, match="--target_white -1 must be above --target_black 0"):
        DataConfig(target_white=-1.0)


def pillows(image, size, mode):
    """[H, W] resized by Pillow in float32; size: height, width."""
    filters = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC, "nearest": Image.NEAREST}
    return np.asarray(Image.fromarray(image.astype(np.float32)).resize(size[::-1], filters[mode]))


FITS = {  # size, fit -> what 20 x 30 becomes, and the corner of what is cut from it
    ("6", "resize"): ((6, 9), (0, 1)),
    ("6x10", "resize"): ((7, 10), (0, 0)),
    ("12x4", "resize"): ((12, 18), (0, 7)),
    ("45", "resize"): ((45, 68), (0, 11)),
    ("6x10", "stretch"): ((6, 10), (0, 0)),
    ("24", "stretch"): ((24, 24), (0, 0)),
    ("6", "crop"): ((20, 30), (7, 12)),
    ("20x10", "crop"): ((20, 30), (0, 10)),
}


@pytest.mark.parametrize("strip", [1, 1 << 22])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize(("text", "fit"), FITS)
def test_size_and_place_by_pillow(make, tmp_path, monkeypatch, text, fit, mode, strip):
    """Whatever is read at a time, the source by its own way of resizing; random numbers move crops alone."""
    monkeypatch.setattr(paired, "STRIP", strip)
    pixels = make.noise(20, 30, 1)
    data = opened(make, tmp_path, pixels, pixels, image_size=text, fit=fit, target_resize=mode)
    (resized, (top, left)), (height, width) = FITS[text, fit], parse_size(text)
    values = pixels[..., 0] / 255 * 2 - 1
    for rng in (None, np.random.default_rng(0)):
        item = data.get(0, rng)
        if fit == "crop" and rng:
            assert torch.equal(item.source, item.target)
            continue
        for image, way in ((item.target, mode), (item.source, "bilinear")):
            expected = values if fit == "crop" else pillows(values, resized, way).clip(-1, 1)
            expected = expected[top : top + height, left : left + width]
            np.testing.assert_allclose(image[0], expected, atol=1e-5)


def test_random_crops_lie_anywhere(make, tmp_path):
    pixels = np.arange(9, dtype=np.uint8).repeat(9).reshape(9, 9)
    data = opened(make, tmp_path, pixels, pixels.T, image_size="8", fit="crop")
    rng = np.random.default_rng(0)
    corners = {tuple(make.stored(image)[0, 0].tolist()[0] for image in data.get(0, rng)[:2]) for _ in range(40)}
    assert corners == {(left, top) for top in (0, 1) for left in (0, 1)}


@pytest.mark.parametrize("fit", ["crop", "resize"])
def test_of_a_large_picture_little_is_float(make, tmp_path, monkeypatch, fit):
    monkeypatch.setattr(paired, "STRIP", 1 << 16)
    pixels = np.zeros((1500, 1500, 3), np.uint8)
    data = opened(make, tmp_path, pixels, pixels, image_size="8", fit=fit)
    tracemalloc.start()
    try:
        data.get(0, None)
        assert tracemalloc.get_traced_memory()[1] < 2 * pixels.nbytes + 3e6
    finally:
        tracemalloc.stop()


def test_masks_of_both_sides_are_joined_and_cropped_alike(make, tmp_path):
    source, target = np.full((2, 12, 12, 4), 255, np.uint8)
    source[:, :6, 3], target[:6, :, 3] = 0, 0
    quarter = np.zeros((12, 12), bool)
    quarter[6:, 6:] = True
    for options, expected in (
        ({}, quarter),
        ({"image_size": "6"}, quarter[::2, ::2]),
        ({"image_size": "4", "fit": "crop"}, quarter[4:8, 4:8]),
    ):
        item = opened(make, tmp_path, source, target, "x.png", **options).get(0, None)
        assert np.array_equal(item.mask[0], expected) and item.mask.dtype == torch.bool
        assert torch.equal(item.source, item.mask.expand(3, -1, -1).float()) and torch.equal(item.source, item.target)


@pytest.mark.parametrize("size", [(8, 4), (40, 32)])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
def test_what_is_hidden_does_not_bleed(make, tmp_path, mode, size):
    """The mean over what is seen, with Pillow's weights; seen is what is seen by more than half, on both sides."""
    source, target = make.noise(20, 18, 4), make.noise(20, 18, 3, seed=1)
    source[..., 3] = make.noise(5, 6, 1, seed=2).repeat(4, 0).repeat(3, 1)[..., 0] // 100 * 100
    target[:9] = 200
    text = f"{size[0]}x{size[1]}"
    data = opened(make, tmp_path, source, target, "x.png", image_size=text, fit="stretch", target_resize=mode)
    item, seen = data.get(0, None), source[..., 3] > 0
    shares = {way: pillows(seen, size, way) for way in ("bilinear", mode)}
    expected = (shares["bilinear"] > 0.5) & (shares[mode] > 0.5)
    near = np.any([np.abs(share - 0.5) < 1e-5 for share in shares.values()], 0)
    assert np.array_equal(item.mask[0][~near], expected[~near]) and 0.1 < expected.mean() < 0.9
    for image, pixels, way in ((item.source, source, "bilinear"), (item.target, target, mode)):
        for c in range(3):
            values = pillows(seen * (pixels[..., c] / 255 * 2 - 1), size, way) / np.maximum(shares[way], 0.5)
            np.testing.assert_allclose(image[c], values.clip(-1, 1) * item.mask[0].numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("top", "dtype", "white", "said"),
    [
        (1, np.uint8, 0, "set --source_white 1"),
        (15, np.uint8, 0, "set --source_white 15"),
        (16, np.uint8, 0, ""),
        (1, np.uint8, 1, ""),
        (0, np.uint8, 0, ""),
        (255, np.uint16, 0, "set --source_white 255"),
        (1000, np.uint16, 0, "set --source_white 1023"),
        (4095, np.uint16, 0, "hold no value above 4095 of 65535 (2 looked at): if 4095 is white they are nearly"),
        (4096, np.uint16, 0, "set --source_white 16383"),
        (16384, np.uint16, 0, ""),
        (4095, np.uint16, 4095, ""),
        (0.5, np.float32, 0, ""),
    ],
)
def test_values_of_few_bits_are_noted(make, tmp_path, top, dtype, white, said):
    """The largest value in any of the pairs that are looked at counts; the target's white is whole."""
    for n in range(3):
        pixels = np.full((4, 4), top if n == 1 else 0, dtype)
        make.write(tmp_path / "train/A" / f"{n}.tif", pixels)
        make.write(tmp_path / "train/B" / f"{n}.tif", np.full((4, 4), 255, np.uint8))
    notice = open_data("mine", "train", data_dir=str(tmp_path), source_white=white).notice
    assert said in notice and "target" not in notice and ("_white" in notice) == bool(said) and "\n" not in notice
    like = Header(Config(), ImageShape(1, 1, 4, 4, 0), 1)  # where no flag can be given
    notice = open_data("mine", "train", like, data_dir=str(tmp_path), source_white=white).notice
    assert (f"the model takes {np.iinfo(dtype).max} as white" in notice) if said else "_white" not in notice


@pytest.mark.parametrize(
    ("source", "target", "pattern"),
    [
        ({"channels": 1}, {}, "a.png: source has 1 channels, expected 3"),
        ({}, {"channels": 1}, "a.png: target has 1 channels, expected 3"),
        ({"height": 6}, {"height": 6}, "a.png: 6x8 pixels, expected 8x8 .* --image_size N"),
        ({"height": 6}, {}, "a.png is 6x8 pixels but .*a.png is 8x8"),
    ],
)
def test_a_file_unlike_the_first_is_named(make, tmp_path, source, target, pattern):
    make.two_folders(tmp_path, 1)
    make.two_folders(tmp_path, 1, ("val/source", "val/target"))
    make.write(tmp_path / "train/source/a.png", make.noise(**source))
    make.write(tmp_path / "train/target/a.png", make.noise(**target))
    data = open_data("mine", "train", data_dir=str(tmp_path))
    data.get(0, None)
    with pytest.raises(ValueError, match=pattern) as error:
        data.get(1, None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", ["9x8", "8x9"])
def test_an_image_smaller_than_the_crop_is_named(make, tmp_path, size):
    data = opened(make, tmp_path, make.noise(), make.noise(), image_size=size, fit="crop")
    with pytest.raises(ValueError, match=rf"x\.tif: 8x8 pixels is smaller than the crop {size}"):
        data.get(0, None)


def test_opening_reads_only_the_first_pair(make, tmp_path):
    root = make.two_folders(tmp_path, 3)
    (tmp_path / "train/source/1.png").write_bytes(b"broken")
    assert len(open_data("mine", "train", data_dir=root)) == 2


@pytest.mark.parametrize(("text", "size"), [("native", None), ("64", (64, 64)), ("64x96", (64, 96)), ("8X9", (8, 9))])
def test_parse_size(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-4", "64x", "x64", "64x0", "6.5", "64 x 64", "1x2x3", "Native", "٣"])
def test_parse_size_refuses_nonsense(text):
    with pytest.raises(ValueError, match="is no size") as error:
        parse_size(text)
    assert "\n" not in str(error.value)
