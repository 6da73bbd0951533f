"""Both images of a pair are read, checked, resized and cropped alike."""

import numpy as np
import pytest
import torch

from datasets import open_data
from ddbm.config import parse_size


def opened(make, root, source, target, **options):
    """A data set of one training pair in two folders."""
    for split in ("train", "val"):
        make.write(root / split / "A" / "x.tif", source)
        make.write(root / split / "B" / "x.tif", target)
    return open_data("mine", "train", data_dir=str(root), **options)


def test_each_side_has_its_own_channels_and_white(make, tmp_path):
    source, target = make.noise(channels=5), make.noise(channels=1, dtype=np.uint16) // 16
    data = opened(make, tmp_path, source, target, target_white=4095.0)
    assert (data.source_channels, data.target_channels, data.size) == (5, 1, (8, 8))
    item = data.get(0, None)
    np.testing.assert_allclose(item.source, source.transpose(2, 0, 1) / 255 * 2 - 1, atol=1e-6)
    np.testing.assert_allclose(item.target, target.transpose(2, 0, 1) / 4095 * 2 - 1, atol=1e-6)


@pytest.mark.parametrize("text", ["6", "6x10", "12x4", "20"])
@pytest.mark.parametrize("fit", ["resize", "crop"])
def test_size_and_alignment(make, tmp_path, fit, text):
    pixels = make.noise(20, 30)
    data = opened(make, tmp_path, pixels, pixels, image_size=text, fit=fit)
    for rng in (None, np.random.default_rng(0)):
        item = data.get(0, rng)
        assert item.target.shape == (3, *parse_size(text)) and torch.equal(item.target, item.source)
        assert item.target.abs().max() <= 1


def test_resize_covers_then_cuts_the_centre(make, tmp_path):
    pixels = np.repeat(np.arange(30, dtype=np.uint8)[None, :, None], 20, 0)
    image = opened(make, tmp_path, pixels, pixels, image_size="10").get(0, None).target
    values = make.stored(image)[0, :, 0]  # 20 x 30 -> 10 x 15 -> columns 2 to 12
    assert np.abs(values - (np.arange(2, 12) * 2 + 0.5)).max() <= 0.5


def test_random_crops_differ_and_the_centre_is_fixed(make, tmp_path):
    pixels = make.noise(40, 40)
    data = opened(make, tmp_path, pixels, pixels, image_size="8", fit="crop")
    rng = np.random.default_rng(0)
    assert not torch.equal(data.get(0, rng).target, data.get(0, rng).target)
    assert np.array_equal(make.stored(data.get(0, None).target), pixels[16:24, 16:24])


def test_masks_of_both_sides_are_joined_and_cropped_alike(make, tmp_path):
    source, target = np.full((2, 12, 12, 4), 255, np.uint8)
    source[:, :6, 3], target[:6, :, 3] = 0, 0
    for side, pixels in (("A", source), ("B", target)):
        for split in ("train", "val"):
            make.write(tmp_path / split / side / "x.png", pixels)
    quarter = np.zeros((12, 12), bool)
    quarter[6:, 6:] = True
    options = {"data_dir": str(tmp_path)}
    assert np.array_equal(open_data("mine", "train", **options).get(0, None).mask[0], quarter)
    resized = open_data("mine", "train", image_size="6", **options).get(0, None)
    assert np.array_equal(resized.mask[0], quarter[::2, ::2]) and resized.mask.dtype == torch.bool
    cropped = open_data("mine", "train", image_size="4", fit="crop", **options).get(0, None)
    assert np.array_equal(cropped.mask[0], quarter[4:8, 4:8])


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


def test_an_image_smaller_than_the_crop_is_named(make, tmp_path):
    data = opened(make, tmp_path, make.noise(), make.noise(), image_size="9", fit="crop")
    with pytest.raises(ValueError, match=r"x\.tif: 8x8 pixels is smaller than the crop 9x9"):
        data.get(0, None)


def test_opening_reads_only_the_first_pair(make, tmp_path):
    root = make.two_folders(tmp_path, 3)
    (tmp_path / "train/source/1.png").write_bytes(b"broken")
    assert len(open_data("mine", "train", data_dir=root)) == 2


@pytest.mark.parametrize(("text", "size"), [("native", None), ("64", (64, 64)), ("64x96", (64, 96))])
def test_parse_size(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-4", "64x", "x64", "64x0", "6.5", "64 x 64", "1x2x3", "Native", "٣"])
def test_parse_size_refuses_nonsense(text):
    with pytest.raises(ValueError, match="is no size") as error:
        parse_size(text)
    assert "\n" not in str(error.value)
