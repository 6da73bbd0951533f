"""Every way to write images is read or refused with the reason."""

import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddbm.files import npz
from evaluations.evaluator import evaluate
from evaluations.images import Images, as_images, load_images, order_digest
from evaluations.references import load_reference

IMAGES = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)


def pixels(images: Images) -> np.ndarray:
    return next(images.walk(len(images)))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("fortran", [False, True])
def test_batches_of_every_rank(tmp_path: Path, save: object, fortran: bool) -> None:
    """From an npz, a folder and an array alike: all images once, in their order, in the same batches."""
    images = np.random.default_rng(0).integers(0, 256, (11, 4, 5, 3), dtype=np.uint8)
    save(tmp_path / "a.npz", np.asfortranarray(images) if fortran else images)  # type: ignore[operator]
    (tmp_path / "folder").mkdir()
    for n, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "folder" / f"{n:02}.png")
    sets = [load_images(tmp_path / "a.npz"), load_images(tmp_path / "folder"), as_images(images, "sample")]
    for loaded in sets:
        assert loaded.shape == images.shape and len(loaded) == 11
        for ranks in (1, 2, 3, 8):
            walks = [list(loaded.walk(2, rank, ranks)) for rank in range(ranks)]
            batches = [walks[n % ranks][n // ranks] for n in range(6)]
            assert sum(map(len, walks)) == 6 and [len(batch) for batch in batches] == [2] * 5 + [1]
            np.testing.assert_array_equal(np.concatenate(batches), images)
    assert len({loaded.digest for loaded in sets}) == 1
    assert as_images(images[::-1], "sample").digest != sets[0].digest
    assert as_images(images.reshape(11, 5, 4, 3), "sample").digest != sets[0].digest


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    """24 MB of images, paired metrics and features: less than 10 MB at any time."""
    parts = [np.full((100, 64, 64, 3), n, np.uint8) for n in range(20)]
    for name in ("a", "b"):
        npz.write(tmp_path / f"{name}.npz", lambda w, _: w.stream("arr_0", (2000, 64, 64, 3), np.uint8, parts))
    assert (tmp_path / "a.npz").stat().st_size > 24e6
    reference, sample = (load_images(tmp_path / f"{name}.npz") for name in ("a", "b"))
    evaluate(reference, sample, ["mse"], batch_size=200)  # whatever is loaded once
    tracemalloc.start()
    try:
        found = evaluate(reference, sample, ["mse"], batch_size=20)["metrics"]["mse"]
        assert sample.digest == reference.digest
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()
    assert found["mean"] == 0 and found["n"] == 2000


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".webp"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_folder_round_trip(tmp_path: Path, suffix: str, mode: str) -> None:
    for name, array in zip(("b", "a"), IMAGES, strict=True):
        image = Image.fromarray(array).convert("L" if mode == "L" else "RGB")
        image.save(tmp_path / (name + suffix), lossless=True)
    (tmp_path / "notes.txt").write_text("not an image")
    loaded = load_images(tmp_path)
    assert loaded.names == ("a" + suffix, "b" + suffix)
    if mode == "RGB":
        np.testing.assert_array_equal(pixels(loaded), IMAGES[::-1])
    elif suffix != ".webp":  # which stores no grey
        np.testing.assert_array_equal(pixels(loaded)[0, :, :, 0], Image.fromarray(IMAGES[1]).convert("L"))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (-np.ones((2, 4, 4, 3), np.float32), r"float32 of shape .* or \(x \+ 1\) \* 127\.5 of \[-1, 1\]"),
        (np.full((2, 4, 4, 3), 300), r"int64 of shape .* expected uint8"),
        (np.ones((2, 4, 4, 3), bool), r"bool of shape .*; store x \* 255 of \[0, 1\]"),
        (
            np.zeros((2, 3, 4, 5), np.uint8),
            r"expected uint8 of \[N, H, W, C\].*x\.transpose\(0, 2, 3, 1\) of \[N, C, H, W\]",
        ),
        (np.zeros((2, 4, 4), np.uint8), r"shape \(2, 4, 4\); expected uint8 of \[N, H, W, C\]"),
        (np.zeros((0, 4, 4, 3), np.uint8), r"shape \(0, 4, 4, 3\); expected"),
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
    with pytest.raises(ValueError, match=r"found keys x, y; expected arr_0 \(images\), mu and sigma"):
        load_reference(tmp_path / "keys.npz")
    np.savez(tmp_path / "whole.npz", IMAGES)
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:200])
    with pytest.raises(ValueError, match="truncated"):
        load_images(tmp_path / "cut.npz")
    (tmp_path / "hurt.npz").write_bytes(whole[:180] + b"\x00\xff" + whole[182:])
    with pytest.raises(ValueError, match=r"hurt\.npz: cannot be read.*write the file again"):
        evaluate(load_images(tmp_path / "hurt.npz"), IMAGES, ["mse"])
    (tmp_path / "none.npz").write_bytes(b"")
    np.savez(tmp_path / "empty.npz")
    with pytest.raises(ValueError, match="not an npz file, or a truncated one"):
        load_images(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="found keys none; expected arr_0"):
        load_images(tmp_path / "empty.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match="not an npz"):
        load_reference(tmp_path / "text.npz")


def test_refuses_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images"):
        load_images(tmp_path)
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")
    Image.fromarray(IMAGES[0, :3]).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b\.png: shape \(3, 5, 3\), but a\.png has \(4, 5, 3\)"):
        evaluate(load_images(tmp_path), load_images(tmp_path), ["mse"])
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])
    with pytest.raises(ValueError, match=r"b\.png: cannot be read"):
        evaluate(load_images(tmp_path), load_images(tmp_path), ["mse"])
    (tmp_path / "a.png").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"a\.png: cannot be read"):
        load_images(tmp_path)


def test_refuses_16_bit(tmp_path: Path) -> None:
    for suffix in (".tif", ".png"):  # of the first in the order of names
        Image.fromarray(np.zeros((2, 3), np.uint16)).save(tmp_path / f"a{suffix}")
        with pytest.raises(ValueError, match=rf"a\{suffix}: more than 8 bits a channel \(uint16\)"):
            load_images(tmp_path)


def test_folders_are_read_as_training_reads_them(tmp_path: Path) -> None:
    """Turned as EXIF says; mid-grey where they are transparent."""
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise shows it upright
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(pixels(load_images(tmp_path))[0], np.rot90(IMAGES[0], -1))
    image = Image.fromarray(IMAGES[0])
    image.putalpha(Image.fromarray(np.where(IMAGES[0, ..., 0] > 20, 255, 0).astype(np.uint8)))
    image.save(tmp_path / "a.png")
    expected = np.where(IMAGES[0, ..., :1] > 20, IMAGES[0], 128)
    np.testing.assert_array_equal(pixels(load_images(tmp_path))[0], expected)


def test_order_of_the_pairs(tmp_path: Path) -> None:
    """The digest of their names; other pairs, or another order, are refused for pairs and not for sets."""
    assert order_digest(["a", "b"]) == hashlib.sha256(b"a\nb").hexdigest()
    for n, order in enumerate([order_digest(["a", "b"]), order_digest(["b", "a"]), ""]):
        arrays = {"order_digest": np.array(order)} if order else {}
        np.savez(tmp_path / f"{n}.npz", arr_0=IMAGES.repeat(4, 1).repeat(4, 2), **arrays)
    one, two, unknown = (load_images(tmp_path / f"{n}.npz") for n in range(3))
    for sample in (one, unknown):
        assert evaluate(one, sample, ["mse"])["metrics"]["mse"]["mean"] == 0
    said = "order not checked: {} has no order_digest"
    assert said.format("SAMPLE") in evaluate(one, unknown, ["mse"])["notes"]
    assert said.format("REF") in evaluate(unknown, one, ["mse"])["notes"]
    for given, names in (((one, one), ["mse"]), ((unknown, unknown), ["mse"]), ((one, unknown), ["fd_raw"])):
        assert not any("order" in note for note in evaluate(*given, names)["notes"])
    with pytest.raises(ValueError, match="mse: reference and sample hold other pairs, or another order"):
        evaluate(one, two, ["mse"])
    assert evaluate(one, two, ["fd_raw"])["metrics"]["fd_raw"]["mean"] == pytest.approx(0, abs=1e-9)
