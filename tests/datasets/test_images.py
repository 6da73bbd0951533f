"""What a viewer shows is read of every kind of file, or it is refused by name; values by Pillow or by hand."""

import io
import struct
import zlib
from itertools import product

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps

from datasets.images import read_image, scaled

RGB = np.random.default_rng(3).integers(0, 256, (8, 6, 3), np.uint8)
DEEP = RGB.astype(np.uint16) * 257
ADOBE, D65 = imagecodecs.cms_profile("adobergb"), (0.3127, 0.3290, 1)
LINEAR = imagecodecs.cms_profile("gray", gamma=1.0)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(pixels, *chunks):
    """A PNG with chunks before its pixels."""
    data = imagecodecs.png_encode(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
    return data[:33] + b"".join(chunks) + data[33:]


def tiff(pixels, **how):
    file = io.BytesIO()
    colours = "rgb" if pixels.shape[2:] in ((3,), (4,)) else "minisblack"
    tifffile.imwrite(file, pixels, **({"photometric": colours, "metadata": None} | how))
    return file.getvalue()


def pillow(pixels, kind, mode="", **how):
    file, image = io.BytesIO(), Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, kind, **how)
    return file.getvalue()


def read(tmp_path, data, **how):
    (tmp_path / "a").write_bytes(data)  # by content, not by name
    return read_image(tmp_path / "a", **how)


def exif(orientation):
    made = Image.Exif()
    made[274] = orientation
    return made


def tag(orientation):
    return [(274, "H", 1, orientation, True)]


TURNED = {
    "png": lambda n: pillow(RGB, "png", exif=exif(n)),
    "png 16": lambda n: png(DEEP, chunk(b"eXIf", exif(n).tobytes()[6:])),
    "webp": lambda n: pillow(RGB, "webp", exif=exif(n), lossless=True),
    "jpeg": lambda n: pillow(RGB, "jpeg", exif=exif(n), quality=100, subsampling=0),
    "tiff": lambda n: tiff(RGB, extratags=tag(n)),
    "tiff 16, planes": lambda n: tiff(DEEP.transpose(2, 0, 1), planarconfig="separate", extratags=tag(n)),
    "tiff by Pillow": lambda n: pillow(RGB, "tiff", "CMYK", exif=exif(n)),
}


@pytest.mark.parametrize("orientation", [*range(1, 9), 99])
@pytest.mark.parametrize("kind", TURNED)
def test_upright(tmp_path, kind, orientation):
    image = Image.fromarray(RGB)
    image.info["exif"] = exif(orientation).tobytes()
    found = read(tmp_path, TURNED[kind](orientation)).pixels
    levels = found / (257 if found.dtype == np.uint16 else 1)
    np.testing.assert_allclose(levels, np.asarray(ImageOps.exif_transpose(image)), atol=5 if kind == "jpeg" else 0)


@pytest.mark.parametrize(("orientation", "hidden"), [(1, [1, 2]), (6, [2, 6]), (7, [3, 6])])
def test_the_mask_is_turned_with_the_picture(tmp_path, orientation, hidden):
    pixels = np.dstack([RGB, np.full((8, 6), 255, np.uint8)])
    pixels[1, 2, 3] = 0
    found = read(tmp_path, tiff(pixels, extrasamples=["unassalpha"], extratags=tag(orientation)))
    assert np.argwhere(~found.mask).tolist() == [hidden]


@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 10, 12, 14, 16])
def test_a_ramp_of_any_depth_ends_at_white(tmp_path, bits, order, white_is_zero):
    """By hand, most significant bit first; 12 bits and less in the file's own units where a white is given."""
    levels = [x * (2**bits - 1) // 31 for x in range(32)]
    whole = sum(level << bits * n for n, level in enumerate(reversed(levels)))
    row = whole.to_bytes(4 * bits, "big")
    if bits == 16:
        row = struct.pack(f"{order}32H", *levels)
    tags = {256: 32, 257: 1, 258: bits, 259: 1, 262: int(not white_is_zero), 273: 8, 277: 1, 278: 1, 279: len(row)}
    entries = b"".join(struct.pack(f"{order}HHIHH", name, 3, 1, value, 0) for name, value in tags.items())
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(row))
    data = head + row + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    ramp = np.array(levels) / (2**bits - 1)
    ramp = 1 - ramp if white_is_zero else ramp
    found = read(tmp_path, data).pixels
    np.testing.assert_allclose((scaled(found, 0, tmp_path)[0, 0] + 1) / 2, ramp, atol=1e-5)
    if bits not in (1, 8, 16):
        stored = read(tmp_path, data, stored=True)
        np.testing.assert_array_equal(stored.pixels[0, :, 0], np.rint(ramp * (2**bits - 1)))
        assert stored.white == 2**bits - 1


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float16, np.float32])
@pytest.mark.parametrize(
    "how",
    [
        {"planarconfig": "contig"},
        {"planarconfig": "separate"},
        {"imagej": True, "metadata": {"axes": "CYX"}},
        {"metadata": {"axes": "CYX"}},
        {"ome": True, "metadata": {"axes": "CYX"}},
        {"planarconfig": "contig", "compression": "zlib", "predictor": True, "tile": (16, 16), "byteorder": ">"},
    ],
)
def test_tiff_of_any_channels(make, tmp_path, how, dtype, channels):
    if dtype in (np.int16, np.float16):  # ImageJ and OME have no such pixels
        how = {name: value for name, value in how.items() if name not in ("imagej", "ome")}
    pixels = make.noise(9, 10, channels).astype(dtype)
    first = pixels.transpose(2, 0, 1) if how.get("planarconfig") != "contig" else pixels
    first = np.squeeze(first) if channels == 1 else first
    if channels == 1:
        how = {name: value for name, value in how.items() if name not in ("metadata", "planarconfig")}
    found = read(tmp_path, tiff(first, **({"photometric": "minisblack"} | how)))
    assert found.pixels.dtype == dtype and np.array_equal(found.pixels, pixels) and found.mask is None


PROFILES = {
    "png": lambda p: pillow(RGB, "png", icc_profile=p),
    "webp": lambda p: pillow(RGB, "webp", icc_profile=p, lossless=True),
    "tiff": lambda p: tiff(RGB, iccprofile=p),
    "tiff 16": lambda p: tiff(DEEP, iccprofile=p),
    "png 16": lambda p: png(DEEP, chunk(b"iCCP", b"x\0\0" + zlib.compress(p))),
}


@pytest.mark.parametrize("kind", PROFILES)
def test_colours_are_brought_to_srgb(tmp_path, kind):
    """By Pillow's LittleCMS; profiles of sRGB, of another number of channels and broken ones change nothing."""
    srgb = ImageCms.createProfile("sRGB")
    expected = ImageCms.profileToProfile(Image.fromarray(RGB), ImageCms.ImageCmsProfile(io.BytesIO(ADOBE)), srgb)
    found = read(tmp_path, PROFILES[kind](ADOBE)).pixels
    full = np.iinfo(found.dtype).max // 255
    np.testing.assert_allclose(found / full, np.asarray(expected), atol=1)
    assert np.abs(found / full - RGB).max() > 50
    for same in (ImageCms.ImageCmsProfile(srgb).tobytes(), LINEAR, b"broken"):
        assert np.array_equal(read(tmp_path, PROFILES[kind](same)).pixels, RGB.astype(found.dtype) * full)


@pytest.mark.parametrize("full", [255, 65535])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("gamma", "applied"), [(100000, True), (45455, False), (100000, False)])
def test_gamma(tmp_path, channels, full, gamma, applied):
    """Linear light by the curve of sRGB (IEC 61966-2-1); 1/2.2, or beside a chunk sRGB, is what is meant anyway."""
    ramp = np.rint(np.linspace(0, 1, 24) * full)
    pixels = np.stack([np.roll(ramp, 7 * c) for c in range(channels)], -1).reshape(4, 6, channels)
    chunks = [chunk(b"gAMA", struct.pack(">I", gamma))] + [chunk(b"sRGB", b"\0")] * (gamma == 100000 and not applied)
    found = read(tmp_path, png(pixels.astype(np.uint8 if full == 255 else np.uint16), *chunks)).pixels
    v = pixels / full
    expected = np.where(v <= 0.0031308, 12.92 * v, 1.055 * v ** (1 / 2.4) - 0.055) if applied else v
    np.testing.assert_allclose(found / full, expected, atol=1.6 / 255 if applied else 0)


STORES = {
    "png": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "tiff": ("1", "L", "P", "RGB", "CMYK", "LAB", "YCbCr", "YCbCr in lzw", "YCbCr in jpeg"),
    "jpeg": ("L", "RGB", "CMYK"),
    "bmp": ("1", "L", "P", "RGB"),
    "webp": ("RGB", "RGBA"),
    "gif": ("P",),
}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in STORES.items() for mode in modes])
def test_every_mode_as_pillow_converts_it(tmp_path, kind, mode):
    mode, _, compression = mode.partition(" in ")
    data = pillow(RGB, kind, mode, **{"compression": f"tiff_{compression}"} if compression else {})
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("L" if mode in ("1", "L", "LA") else "RGB"))
    found = read(tmp_path, data).pixels
    assert found.dtype == np.uint8 and np.array_equal(np.squeeze(found), expected)
    assert found.shape[2] == (1 if mode in ("1", "L", "LA") else 3)


@pytest.mark.parametrize(("depth", "unit"), [(8, 257), (8, 1), (16, 1)])
def test_tiff_with_a_table_of_colours(tmp_path, depth, unit):
    """The table is of 16 bits; where none is above 255, of 8 (as libtiff)."""
    table = (np.arange(3 * 2**depth).reshape(3, -1) * 7 % 256).astype(np.uint16)
    index = (np.arange(48).reshape(8, 6) % 2**depth).astype(f"u{depth // 8}")
    found = read(tmp_path, tiff(index, photometric="palette", colormap=table * unit)).pixels
    assert np.array_equal(found, table[:, index].transpose(1, 2, 0)) and found.dtype == np.uint8


COLOURS, OPACITY = np.array([[[10, 20, 30], [7, 8, 9], [40, 50, 60]]]), np.array([[[255], [0], [51]]])


def transparent(kind, channels, dtype):
    """COLOURS of which the middle one is hidden, in some way."""
    unit, colours = np.iinfo(dtype).max // 255, COLOURS[..., :channels]
    if kind == "tRNS":
        return png((colours * unit).astype(dtype), chunk(b"tRNS", struct.pack(f">{channels}H", *colours[0, 1] * unit)))
    if kind.startswith("palette"):
        image, file = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P"), io.BytesIO()
        image.putpalette(COLOURS.ravel().tolist())
        image.save(file, kind[-3:], transparency=1)
        return file.getvalue()
    stored = colours * OPACITY // 255 if kind == "assocalpha" else colours
    pixels = (np.dstack([stored, OPACITY]) * unit).astype(dtype)
    if kind == "webp":
        return pillow(pixels, "webp", lossless=True, exact=True)
    return png(pixels) if kind == "png" else tiff(pixels, extrasamples=[kind])


KINDS = [*product(["tRNS", "png", "assocalpha", "unassalpha"], [1, 3], [np.uint8, np.uint16])]
KINDS += [(kind, 3, np.uint8) for kind in ("palette, png", "palette, gif", "webp")]


@pytest.mark.parametrize(("kind", "channels", "dtype"), KINDS)
def test_what_is_wholly_transparent_is_a_mask(tmp_path, kind, channels, dtype):
    """And colours that were multiplied by alpha are divided by it. Where all is seen there is no mask."""
    found = read(tmp_path, transparent(kind, channels, dtype))
    expected = (COLOURS[..., :channels] * (np.iinfo(dtype).max // 255)).astype(dtype)
    seen = [0, 2] if kind == "assocalpha" else [0, 1, 2]
    assert np.array_equal(found.pixels[:, seen], expected[:, seen]) and found.pixels.dtype == dtype
    assert found.mask.tolist() == [[True, False, True]]
    for lowest in (1, np.iinfo(dtype).max):  # whatever is seen, if hardly
        assert read(tmp_path, png(np.dstack([expected, np.full((1, 3), lowest, dtype)]))).mask is None
    hardly = read(tmp_path, png(np.dstack([expected, np.array([[0, 1, 2]], dtype)])))
    assert hardly.mask.tolist() == [[False, True, True]]


@pytest.mark.parametrize("bits", [9, 12, 15])
def test_colours_of_few_bits_are_divided_by_their_alpha(tmp_path, bits):
    full = 2**bits - 1
    pixels = np.array([[[200, 100, 0, full], [200, 100, 0, full // 2]]], np.uint16)
    data = tiff(pixels, bitspersample=bits, extrasamples=["assocalpha"])
    seen = pixels[..., :3] / pixels[..., 3:]
    np.testing.assert_array_equal(read(tmp_path, data, stored=True).pixels, np.rint(seen * full))
    np.testing.assert_allclose(read(tmp_path, data).pixels, seen * 65535, atol=2)


def test_an_extra_channel_of_tiff_that_is_no_alpha_is_data(tmp_path):
    pixels = np.dstack([RGB, RGB[..., :1] * 0])
    found = read(tmp_path, tiff(pixels, extrasamples=["unspecified"]))
    assert np.array_equal(found.pixels, pixels) and found.mask is None


def test_a_transparent_grey_of_two_bits(tmp_path):
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">II5B", 4, 1, 2, 0, 0, 0, 0))
    rest = chunk(b"IDAT", zlib.compress(b"\0\x1b")) + chunk(b"IEND", b"")
    found = read(tmp_path, head + chunk(b"tRNS", b"\0\2") + rest)
    assert found.pixels.ravel().tolist() == [0, 85, 170, 255] and found.mask.tolist() == [[True, True, False, True]]


def pages(*written):
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for pixels, how in written:
            writer.write(pixels, **({"photometric": "minisblack", "metadata": None} | how))
    return file.getvalue()


WHOLE, SMALL = RGB[..., 0], np.zeros((4, 3), np.uint8)


@pytest.mark.parametrize(
    "written",
    [
        [(SMALL, {"subfiletype": 1}), (WHOLE, {})],
        [(WHOLE, {}), (SMALL, {"subfiletype": 1})],
        [(WHOLE, {}), (WHOLE > 9, {"subfiletype": 4, "photometric": "mask"})],
        [(WHOLE, {"subifds": 1}), (SMALL, {"subfiletype": 1})],
    ],
)
def test_the_full_picture_of_a_tiff(tmp_path, written):
    assert np.array_equal(read(tmp_path, pages(*written)).pixels[..., 0], WHOLE)


VIDEO = (16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1)  # black and white of luma, and of both chromas


MORE = {"save_all": True, "append_images": [Image.fromarray(RGB[::-1])]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pillow(RGB, "png", **MORE), "2 frames, expected one picture a file"),
        (pillow(RGB, "webp", **MORE), "2 frames"),
        (pillow(RGB, "gif", **MORE), "2 frames"),
        (tiff(RGB, photometric="minisblack"), r"axes IYX of shape \(8, 6, 3\), expected one page"),
        (tiff(np.zeros((5, 16, 16), np.uint8), metadata={}), r"axes QYX of shape \(5, 16, 16\).*\"CYX\""),
        (tiff(np.zeros((12, 16, 7), np.uint8), metadata={}), "axes QYX"),
        (tiff(RGB, imagej=True, photometric="minisblack", metadata={"axes": "ZYX"}), "axes ZYX"),
        (tiff(WHOLE.astype(np.int16), photometric="miniswhite"), "int16 whose lowest value is white"),
        (tiff(WHOLE.astype(np.float32), photometric="miniswhite"), "float32 whose lowest value is white"),
        (tiff(WHOLE, photometric="cfa"), "colours are CFA, expected RGB or grey"),
        (tiff(np.dstack([RGB, WHOLE]), photometric="separated", extratags=[(332, "H", 1, 2, True)]), "inks other than"),
        (tiff(RGB, photometric="ycbcr", extratags=[(532, "2I", 6, VIDEO, True)]), "uncompressed YCbCr"),
        (tiff(DEEP, photometric="cielab"), "cannot identify"),
        (imagecodecs.jpeg2k_encode(RGB), "cannot identify"),
    ],
)
def test_what_cannot_be_read_rightly_is_refused(tmp_path, data, message):
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, data)
    assert "\n" not in str(error.value) and str(tmp_path / "a") in str(error.value)


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


def test_a_large_picture_is_no_attack(tmp_path):
    """Of more pixels than Pillow warns of (90 million), in one bit each."""
    assert read(tmp_path, pillow(np.zeros((9500, 9500), bool), "png")).pixels.shape == (9500, 9500, 1)


def test_a_phone_puts_a_preview_behind_its_photograph(tmp_path):
    data = pillow(RGB, "mpo", quality=100, subsampling=0, **MORE)
    np.testing.assert_allclose(read(tmp_path, data).pixels, RGB, atol=5)
