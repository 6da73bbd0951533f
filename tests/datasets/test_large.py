"""Parts of a large TIFF are what the whole is, by Pillow, tifffile or hand; what files say of the size of pixels."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from datasets import large
from datasets.images import read_image
from datasets.large import open_image, resolution

RANDOM = np.random.default_rng(8)
RGB = RANDOM.integers(0, 256, (45, 70, 3), np.uint8)
GREY, DEEP = RGB[..., 0], RGB.astype(np.uint16) * 200
ALPHA = np.dstack([RGB, np.where(np.arange(70) < 40, 0, 90).astype(np.uint8)[None].repeat(45, 0)])
SMOOTH = np.asarray(Image.fromarray(RGB[::9, ::9]).resize((70, 45), Image.Resampling.BICUBIC))
TILES, STRIPS = dict(tile=(16, 32)), dict(rowsperstrip=7)
JPEG = dict(compression="jpeg", compressionargs=dict(level=95), subsampling=(2, 2))  # stored as YCbCr


def put(path, pixels, **how):
    colours = "minisblack" if pixels.ndim == 2 or pixels.shape[2] == 2 else "rgb"
    tifffile.imwrite(path, pixels, **({"photometric": colours, "metadata": None} | how))
    return path


def pasted(opened):
    """Pixels and mask of all parts, and how many they were; every pixel is filled once."""
    pixels, mask, count = None, np.ones((opened.height, opened.width), bool), 0
    times = np.zeros(mask.shape, int)
    for rows, columns, picture in opened.parts:
        if pixels is None:
            pixels = np.zeros((*mask.shape, picture.pixels.shape[2]), picture.pixels.dtype)
        pixels[rows, columns] = picture.pixels
        if picture.mask is not None:
            mask[rows, columns] = picture.mask
        times[rows, columns] += 1
        count += 1
    assert (times == 1).all()
    return pixels, mask, count


CASES = {
    "tiles": (RGB, TILES, RGB),
    "strips": (RGB, STRIPS, RGB),
    "grey": (GREY, TILES, GREY[..., None]),
    "deep": (DEEP, TILES | dict(compression="zlib", predictor=True), DEEP),
    "big_endian": (DEEP, TILES | dict(byteorder=">"), DEEP),
    "float": (GREY / np.float32(255), STRIPS, GREY[..., None] / np.float32(255)),
    "white_is_zero": (GREY, TILES | dict(photometric="miniswhite"), 255 - GREY[..., None]),
    "bits": (GREY > 99, STRIPS, np.where(GREY[..., None] > 99, 255, 0)),
    "alpha": (ALPHA, TILES | dict(extrasamples=["unassalpha"]), RGB),
    "two": (RGB[..., :2], TILES | dict(planarconfig="contig", extrasamples=["unspecified"]), RGB[..., :2]),
    "jpeg": (SMOOTH, TILES | JPEG, None),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stored", [False, True])
def test_parts_are_those_of_the_whole(tmp_path, monkeypatch, case, stored):
    pixels, how, wanted = CASES[case]
    path = put(tmp_path / "a.tif", pixels, **how)
    whole = read_image(path, stored)
    if wanted is None:
        wanted = np.asarray(Image.open(path).convert("RGB"))
        assert np.abs(wanted.astype(int) - SMOOTH).mean() < 9
    hidden = ALPHA[..., 3] == 0 if case == "alpha" else np.zeros(GREY.shape, bool)
    for limit, parts in ((45 * 70 + 1, 1), (45 * 70, 7 if "rowsperstrip" in how else 9)):
        monkeypatch.setattr(large, "LARGE", limit)
        opened = open_image(path, stored)
        found, mask, count = pasted(opened)
        assert (opened.height, opened.width, count) == (45, 70, parts)
        assert np.array_equal(found, whole.pixels) and np.array_equal(found, wanted)
        assert found.dtype == whole.pixels.dtype
        assert np.array_equal(mask, ~hidden)


@pytest.mark.parametrize("stored", [False, True])
def test_values_of_twelve_bits(tmp_path, monkeypatch, stored):
    monkeypatch.setattr(large, "LARGE", 1)
    values = RANDOM.integers(0, 4096, (20, 30), np.uint16)
    (tmp_path / "a.tif").write_bytes(twelve_bits(values))
    for _, _, picture in open_image(tmp_path / "a.tif", stored).parts:
        assert picture.white == (4095 if stored else 0)
        wanted = values if stored else np.rint(values / 4095 * 65535)
        assert np.array_equal(picture.pixels[..., 0], wanted)


def twelve_bits(values):
    """A TIFF of them, which tifffile cannot write: packed by hand, one strip."""
    pairs = values.reshape(-1, 2).astype(np.uint32)
    both = pairs[:, 0] << 12 | pairs[:, 1]
    packed = np.stack([both >> 16, both >> 8 & 255, both & 255], 1).astype(np.uint8).tobytes()
    height, width = values.shape
    entries = [
        (256, 4, width), (257, 4, height), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1),
        (278, 4, height), (279, 4, len(packed)),
    ]  # fmt: skip
    where = 8 + len(packed) + len(packed) % 2
    table = b"".join(
        tag.to_bytes(2, "little") + kind.to_bytes(2, "little") + (1).to_bytes(4, "little") + value.to_bytes(4, "little")
        for tag, kind, value in entries
    )
    head = b"II*\0" + where.to_bytes(4, "little") + packed + b"\0" * (len(packed) % 2)
    return head + len(entries).to_bytes(2, "little") + table + bytes(4)


def test_what_cannot_be_read_by_parts_is_read_as_a_whole(tmp_path, monkeypatch):
    """Other files, planes one after the other, turned and indexed ones: upright and in colours."""
    monkeypatch.setattr(large, "LARGE", 1)
    Image.fromarray(RGB).save(tmp_path / "a.png")
    put(tmp_path / "b.tif", RGB.transpose(2, 0, 1), planarconfig="separate", **TILES)
    put(tmp_path / "c.tif", RGB[::-1, ::-1], extratags=[(274, "H", 1, 3, True)], **TILES)
    put(tmp_path / "d.tif", RGB.swapaxes(0, 1), extratags=[(274, "H", 1, 5, True)], **TILES)
    Image.fromarray(RGB).quantize(17).save(tmp_path / "e.tif")
    tifffile.imwrite(tmp_path / "f.tif", RGB.transpose(2, 0, 1), photometric="minisblack", metadata={"axes": "CYX"})
    for name in ("a.png", "b.tif", "c.tif", "d.tif", "e.tif", "f.tif"):
        opened = open_image(tmp_path / name)
        found, mask, count = pasted(opened)
        wanted = np.asarray(Image.open(tmp_path / name).convert("RGB")) if name[0] == "e" else RGB
        assert np.array_equal(found, wanted) and mask.all() and count == 1, name


def test_tiles_that_were_left_out_are_black(tmp_path, monkeypatch):
    path = put(tmp_path / "a.tif", RGB, **TILES)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        for tag in (tiff.pages[0].tags[code] for code in (324, 325)):
            tag.overwrite([0 if i == 4 else n for i, n in enumerate(tag.value)])
    monkeypatch.setattr(large, "LARGE", 1)
    found, _, _ = pasted(open_image(path))
    wanted = RGB.copy()
    wanted[16:32, 32:64] = 0
    assert np.array_equal(found, wanted) and np.array_equal(found, read_image(path).pixels)


@pytest.mark.parametrize("limit", [1, 10**9])
def test_a_damaged_file_is_named(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(large, "LARGE", limit)
    path = put(tmp_path / "a.tif", RGB, compression="zlib", **TILES)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[5]
    data[offset : offset + 40] = b"\xff" * 40
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"^[^\n]*a\.tif: cannot be read [^\n]*$"):
        pasted(open_image(path))
    path.write_bytes(b"")
    for look in (open_image, resolution):
        with pytest.raises(ValueError, match=r"^[^\n]*a\.tif: cannot be read [^\n]*$"):
            look(path)


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8])
@pytest.mark.parametrize("unit", [1, 2, 3])
def test_the_resolution_of_a_tiff(tmp_path, unit, orientation):
    """As the picture is shown: a quarter turn swaps the two."""
    turn = [(274, "H", 1, orientation, True)]
    put(tmp_path / "a.tif", RGB, resolution=(300, 150.5), resolutionunit=unit, extratags=turn)
    found = resolution(tmp_path / "a.tif")
    wanted = (150.5, 300) if orientation > 4 else (300, 150.5)
    assert found == (*map(pytest.approx, wanted), {1: "none", 2: "inch", 3: "cm"}[unit])


def test_the_resolution_of_others(tmp_path):
    image, turned = Image.fromarray(RGB), Image.Exif()
    turned[274] = 6
    image.save(tmp_path / "a.png", dpi=(254, 127))
    image.save(tmp_path / "b.jpg", dpi=(300, 72))
    image.save(tmp_path / "c.jpg", dpi=(300, 72), exif=turned)
    image.save(tmp_path / "d.png", dpi=(254, 127), exif=turned)
    for name, wanted in (("a.png", (254, 127)), ("b.jpg", (300, 72)), ("c.jpg", (72, 300)), ("d.png", (127, 254))):
        found = resolution(tmp_path / name)
        assert found.unit == "inch" and found[:2] == pytest.approx(wanted, abs=0.01), name
    image.save(tmp_path / "e.png")
    image.save(tmp_path / "f.jpg")
    image.save(tmp_path / "g.webp")
    image.save(tmp_path / "h.tif")
    put(tmp_path / "i.tif", RGB, resolution=((0, 1), (0, 1)), resolutionunit=2)
    with tifffile.TiffFile(put(tmp_path / "j.tif", RGB, resolution=(3, 3)), mode="r+b") as tiff:
        tiff.pages[0].tags[283].overwrite((1, 0))
    image.save(tmp_path / "k.png", dpi=(0, 0))
    for name in ("e.png", "f.jpg", "g.webp", "h.tif", "i.tif", "j.tif", "k.png"):
        assert resolution(tmp_path / name) is None, name


def test_a_tiff_that_names_no_unit_means_inches(tmp_path):
    path = put(tmp_path / "a.tif", RGB, resolution=(300, 150), resolutionunit=3)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags[296].overwrite(7)
    assert resolution(path) == (300, 150, "none")
    data = path.read_bytes().replace((296).to_bytes(2, "little") + b"\3\0", (65000).to_bytes(2, "little") + b"\3\0")
    path.write_bytes(data)
    assert resolution(path) == (300, 150, "inch")
