"""Reading loses no bit, no channel and no mask, and damaged files are named."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from datasets.images import read_image, scaled


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_8_and_16_bit_come_back_exactly(make, tmp_path, name, dtype, channels):
    pixels = make.noise(channels=channels, dtype=dtype)
    read = read_image(make.write(tmp_path / name, pixels))
    assert read.pixels.dtype == dtype and np.array_equal(read.pixels, pixels) and read.mask is None


def test_16_bit_rgb_keeps_steps_of_one_level(make, tmp_path):
    pixels = np.full((4, 4, 3), 40000, np.uint16)
    pixels[0, 0] += 1
    path = make.write(tmp_path / "a.png", pixels)
    image = scaled(read_image(path).pixels, 0, path)
    assert image[0, 0, 0] - image[0, 1, 1] == pytest.approx(2 / 65535, rel=0.01)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize(
    "how",
    [
        {"planarconfig": "contig", "photometric": "minisblack"},
        {"planarconfig": "separate", "photometric": "minisblack"},
        {"imagej": True},
        {"metadata": {"axes": "CYX"}},
        {},
        {"compression": "zlib", "photometric": "minisblack", "planarconfig": "contig"},
    ],
)
def test_tiff_of_5_channels(make, tmp_path, how, dtype):
    pixels = make.noise(9, 10, 5, dtype=np.uint8).astype(dtype)
    first = how.get("planarconfig") == "separate" or "imagej" in how or "metadata" in how
    tifffile.imwrite(tmp_path / "a.tif", pixels.transpose(2, 0, 1) if first else pixels, **how)
    read = read_image(tmp_path / "a.tif")
    assert read.pixels.dtype == dtype and np.array_equal(read.pixels, pixels) and read.mask is None


def test_tiff_of_4_channels_is_data_not_alpha(make, tmp_path):
    pixels = make.noise(channels=4)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb")
    assert np.array_equal(read_image(tmp_path / "a.tif").pixels, pixels)


def test_tiff_white_is_zero_and_single_bit(tmp_path):
    pixels = np.array([[0, 255], [10, 20]], np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="miniswhite")
    assert np.array_equal(read_image(tmp_path / "a.tif").pixels[..., 0], 255 - pixels)
    tifffile.imwrite(tmp_path / "b.tif", pixels > 15, photometric="minisblack")
    assert np.array_equal(read_image(tmp_path / "b.tif").pixels[..., 0], [[0, 255], [0, 255]])


STORES = {
    "png": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "tif": ("1", "L", "P", "RGB", "CMYK"),
    "jpg": ("L", "RGB", "CMYK"),
    "bmp": ("1", "L", "P", "RGB"),
    "webp": ("RGB", "RGBA"),
}


@pytest.mark.parametrize(("extension", "mode"), [(e, mode) for e, modes in STORES.items() for mode in modes])
def test_channels_of_every_mode(make, tmp_path, mode, extension):
    Image.fromarray(make.noise()).convert(mode).save(tmp_path / f"a.{extension}")
    read = read_image(tmp_path / f"a.{extension}")
    assert read.pixels.shape == (8, 8, 1 if mode in ("1", "L", "LA") else 3) and read.pixels.dtype == np.uint8


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_a_mask_not_a_channel(make, tmp_path, dtype, channels):
    pixels = make.noise(channels=channels, dtype=dtype)
    pixels[..., -1] = np.iinfo(dtype).max
    opaque = read_image(make.write(tmp_path / "a.png", pixels))
    pixels[2, 3, -1] = 0
    holed = read_image(make.write(tmp_path / "b.png", pixels))
    assert opaque.mask is None and np.array_equal(holed.pixels, pixels[..., :-1])
    assert np.array_equal(np.argwhere(~holed.mask), [[2, 3]])


def test_palette_transparency_is_a_mask(tmp_path):
    image = Image.new("P", (4, 4))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 2), 1)
    image.save(tmp_path / "a.png", transparency=1)
    read = read_image(tmp_path / "a.png")
    assert read.pixels[0, 0].tolist() == [10, 20, 30] and np.argwhere(~read.mask).tolist() == [[2, 1]]


def test_exif_orientation_is_applied(make, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter clockwise
    Image.fromarray(make.noise(4, 6)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png").pixels, np.rot90(make.noise(4, 6), -1))


@pytest.mark.parametrize(
    ("pixels", "white", "expected"),
    [
        (np.array([0, 51, 255], np.uint8), 0, [-1, -0.6, 1]),
        (np.array([0, 13107, 65535], np.uint16), 0, [-1, -0.6, 1]),
        (np.array([0, 819, 4095, 5000], np.uint16), 4095, [-1, -0.6, 1, 1]),
        (np.array([0, 0.2, 1], np.float32), 0, [-1, -0.6, 1]),
        (np.array([0, 40, 200], np.float64), 200, [-1, -0.6, 1]),
    ],
)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_scaling_is_the_same_for_any_channels(tmp_path, pixels, white, expected, channels):
    image = scaled(np.repeat(pixels[None, :, None], channels, 2), white, tmp_path)
    assert image.shape == (channels, 1, len(expected))
    np.testing.assert_allclose(image, np.broadcast_to(np.float32(expected), image.shape), atol=1e-6)


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "NaN"), (np.inf, "infinite"), (1.5, "source_white"), (-0.5, "negative"), (np.int32(3), "int32")],
)
def test_values_without_a_meaning_are_refused(tmp_path, value, message):
    with pytest.raises(ValueError, match=message) as error:
        scaled(np.full((2, 2, 1), value), 0, tmp_path / "a.tif")
    assert "a.tif" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.png", "b.png", "a.jpg", "a.tif"])
@pytest.mark.parametrize("damage", ["cut", "empty", "text", "gone"])
def test_a_damaged_file_is_named(make, tmp_path, name, damage):
    path = make.write(tmp_path / name, make.noise(64, 64, dtype=np.uint16 if name in ("b.png", "a.tif") else np.uint8))
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "text": b"<html>\n</html>"}.get(damage, b""))
    if damage == "gone":
        path.unlink()
    with pytest.raises(ValueError, match="cannot be read") as error:
        read_image(path)
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.webp", "a.png"])
def test_of_several_frames_none_is_taken_for_the_picture(tmp_path, name):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="2 frames, expected one picture a file"):
        read_image(tmp_path / name)
