"""Every way to write images is read or refused with the reason."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluations.images import Statistics, check_pairs, load_images, load_reference, load_statistics

IMAGES = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)


def test_npz_round_trip(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", IMAGES)
    loaded = load_images(tmp_path / "a.npz")
    assert loaded.names is None
    np.testing.assert_array_equal(loaded.array, IMAGES)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".webp"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_folder_round_trip(tmp_path: Path, suffix: str, mode: str) -> None:
    for name, array in zip(("b", "a"), IMAGES, strict=True):
        image = Image.fromarray(array).convert("L" if mode == "L" else "RGB")
        if mode == "RGBA":
            image.putalpha(255)
        image.save(tmp_path / (name + suffix), lossless=True)
    (tmp_path / "notes.txt").write_text("not an image")
    loaded = load_images(tmp_path)
    assert loaded.names == ("a" + suffix, "b" + suffix)
    if mode == "L":
        assert loaded.array.shape[0] == 2
        if suffix != ".webp":  # WebP stores no grey
            grey = np.asarray(Image.fromarray(IMAGES[1]).convert("L"))
            np.testing.assert_array_equal(loaded.array[0, :, :, 0], grey)
    else:
        np.testing.assert_array_equal(loaded.array, IMAGES[::-1])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), r"float32 in \[0, 1\]; expected uint8 0\.\.255"),
        (-np.ones((2, 4, 4, 3), np.float32), r"float32 in \[-1, 1\]; expected uint8 0\.\.255"),
        (np.full((2, 4, 4, 3), 300), r"int64 in \[300, 300\]; expected uint8"),
        (np.zeros((2, 4, 4), np.uint8), r"shape \(2, 4, 4\); expected four axes"),
        (np.zeros((0, 4, 4, 3), np.uint8), "empty"),
        (np.array([{}], object), "object array"),
    ],
)
def test_refuses_array(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.savez(tmp_path / "a.npz", array)
    with pytest.raises(ValueError, match=message):
        load_images(tmp_path / "a.npz")


def test_refuses_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_images(tmp_path / "none.npz")
    np.savez(tmp_path / "keys.npz", x=IMAGES, y=IMAGES)
    with pytest.raises(ValueError, match="found keys x, y; expected arr_0"):
        load_images(tmp_path / "keys.npz")
    with pytest.raises(ValueError, match=r"found keys x, y; expected arr_0 \(images\) or mu and sigma"):
        load_reference(tmp_path / "keys.npz")
    np.savez(tmp_path / "whole.npz", IMAGES)
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:200])
    with pytest.raises(ValueError, match="truncated"):
        load_images(tmp_path / "cut.npz")
    (tmp_path / "hurt.npz").write_bytes(whole[:180] + b"\x00\xff" + whole[182:])
    with pytest.raises(ValueError, match="cannot be read"):
        load_images(tmp_path / "hurt.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match="not an npz"):
        load_reference(tmp_path / "text.npz")


def test_refuses_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images"):
        load_images(tmp_path)
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")
    Image.fromarray(IMAGES[0, :3]).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b\.png: shape \(3, 5, 3\), but a\.png has \(4, 5, 3\)"):
        load_images(tmp_path)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])
    with pytest.raises(ValueError, match=r"b\.png: cannot be read"):
        load_images(tmp_path)


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (6, 4)])
def test_refuses_16_bit_png(tmp_path: Path, colour: int, channels: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 1, 16, colour, 0, 0, 0)
    pixels = zlib.compress(bytes(1 + 2 * 2 * channels))
    data = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    with pytest.raises(ValueError, match=r"a\.png: more than 8 bits a channel"):
        load_images(tmp_path)


def test_statistics(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", mu=np.zeros(3, np.float32), sigma=np.eye(3, dtype=np.float32))
    statistics = load_reference(tmp_path / "s.npz")
    assert isinstance(statistics, Statistics)
    assert statistics.mu.dtype == statistics.sigma.dtype == np.float64
    np.testing.assert_array_equal(statistics.sigma, np.eye(3))
    np.savez(tmp_path / "bad.npz", mu=np.zeros(3), sigma=np.eye(4))
    with pytest.raises(ValueError, match=r"expected shapes \[D\] and \[D, D\]"):
        load_statistics(tmp_path / "bad.npz")
    np.savez(tmp_path / "nan.npz", mu=np.full(3, np.nan), sigma=np.eye(3))
    with pytest.raises(ValueError, match="NaN"):
        load_statistics(tmp_path / "nan.npz")


def test_pairs() -> None:
    check_pairs(IMAGES, IMAGES)
    with pytest.raises(ValueError, match=r"\(2, 4, 5, 3\) and sample \(1, 4, 5, 3\)"):
        check_pairs(IMAGES, IMAGES[:1])
