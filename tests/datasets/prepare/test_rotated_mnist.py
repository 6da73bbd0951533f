"""Digits in IDX, turned."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.prepare.rotated_mnist import IMAGES, TURNS, RotatedMnist, idx, training
from tests.datasets.prepare import raws

REAL = Path(__file__).resolve().parents[3] / "../shared/data/mnist"


@pytest.fixture
def raw(tmp_path):
    return raws.mnist(tmp_path).rename(tmp_path / "raw")


def stored(out, side, part="train"):
    """(class, number) -> pixels"""
    found = {}
    for path in (out / part / side).rglob("*.png"):
        found[int(path.parent.name), int(path.stem.split("_")[1])] = np.asarray(Image.open(path))
    return found


def turns(image, mirrors):
    return [np.rot90(x, k) for x in (image, image[:, ::-1])[: 1 + mirrors] for k in range(4)]


@pytest.mark.parametrize("kind", ["none", "C4", "D4"])
def test_targets_are_digits_turned(raw, prepare, kind):
    manifest, out, _ = prepare("rotated_mnist", "--turns", kind, "--val", 0.25)
    assert manifest["pairs"] == {"train": 9, "val": 3, "test": 4}
    images, labels = raws.digits(12, 5)
    found = stored(out, "target") | stored(out, "target", "val")
    assert sorted(found) == sorted((label, i) for i, label in enumerate(labels))
    seen = set()
    for (_, i), image in found.items():
        allowed = turns(np.pad(images[i], 2), kind == "D4")[: 1 if kind == "none" else 8]
        (which,) = [k for k, turned in enumerate(allowed) if (turned == image).all()]
        seen.add(which)
    assert len(seen) > 2 or kind == "none"
    images, labels = raws.digits(4, 4)
    assert {(label, i) for i, label in enumerate(labels)} == set(stored(out, "target", "test"))


def test_any_angle_is_a_rotation():
    """A point at radius r about the middle stays at radius r; and angles differ."""
    image = np.zeros((33, 33), np.uint8)
    image[15:18, 24:27] = 255
    y, x = np.mgrid[:33, :33]
    angles = set()
    for seed in range(6):
        found = TURNS["any"](image, np.random.default_rng(seed)).astype(float)
        cy, cx = (found * y).sum() / found.sum() - 16, (found * x).sum() / found.sum() - 16
        assert np.hypot(cy, cx) == pytest.approx(9, abs=0.1) and found.sum() == pytest.approx(9 * 255, rel=0.03)
        angles.add(round(np.arctan2(cy, cx), 1))
    assert len(angles) == 6


def test_sources_are_the_task(raw, prepare):
    _, out, said = prepare("rotated_mnist", "--degrade", "mask_center:0.5")
    sources, targets = stored(out, "source"), stored(out, "target")
    assert sources.keys() == targets.keys()
    for key, source in sources.items():
        assert (source[8:24, 8:24] == 128).all() and source.shape == (32, 32)
        inside = np.zeros((32, 32), bool)
        inside[8:24, 8:24] = True
        assert (source[~inside] == targets[key][~inside]).all()
    assert "rotated_mnist i2sb --image_size 32" in said and "--group C4" in said


@pytest.mark.skipif(not REAL.is_dir(), reason="no real MNIST beside the repository")
def test_the_real_test_digits(tmp_path):
    assert idx(REAL / "t10k-images-idx3-ubyte.gz", IMAGES).shape == (10000, 28, 28)


@pytest.mark.skipif(not REAL.is_dir(), reason="no real MNIST beside the repository")
def test_some_real_digits(tmp_path, prepare):
    """The first 40 of them, cut out of the files: split, as there are no others."""
    (tmp_path / "real").mkdir()
    for kind, size, head in (("images-idx3", 784, 16), ("labels-idx1", 1, 8)):
        data = gzip.decompress((REAL / f"t10k-{kind}-ubyte.gz").read_bytes())
        cut = data[:4] + (40).to_bytes(4, "big") + data[8:head] + data[head : head + 40 * size]
        (tmp_path / f"real/t10k-{kind}-ubyte").write_bytes(cut)
    manifest, out, _ = prepare("rotated_mnist", "--turns", "none", source="real")
    assert manifest["pairs"] == {"train": 32, "val": 4, "test": 4}
    found = {k: v for part in ("train", "val", "test") for k, v in stored(out, "target", part).items()}
    first = sorted(found, key=lambda key: key[1])[:5]
    assert [label for label, _ in first] == [7, 2, 1, 0, 4]  # as everybody knows them
    assert all(image[16].max() > 0 for image in found.values())


def test_mistakes(raw, tmp_path, prepare):
    labels, images = raw / "t10k-labels-idx1-ubyte", raw / "train-images-idx3-ubyte.gz"
    whole = labels.read_bytes()
    labels.write_bytes(raws.idx(np.arange(3)))
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte: has 3 labels, but t10k-images-idx3-ubyte.gz has 4"):
        prepare("rotated_mnist")
    labels.write_bytes(whole[:-1])
    with pytest.raises(
        ValueError, match=r"t10k-labels-idx1-ubyte: cannot be read .3 bytes follow, expected 4: truncated"
    ):
        prepare("rotated_mnist")
    shutil.copy(images, labels)
    with pytest.raises(
        ValueError, match=r"labels-idx1-ubyte: cannot be read .begins with 1f8b.*expected 00000801 of IDX"
    ):
        prepare("rotated_mnist")
    labels.unlink()
    with pytest.raises(ValueError, match="its labels t10k-labels-idx1-ubyte are missing"):
        prepare("rotated_mnist")
    labels.write_bytes(whole)
    images.write_bytes(images.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz: cannot be read"):
        prepare("rotated_mnist")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds neither train-images-idx3-ubyte nor t10k"):
        prepare("rotated_mnist", source="empty")


@pytest.mark.parametrize(("kind", "group"), [("none", None), ("C4", "C4"), ("D4", "D4"), ("any", "C4")])
def test_training_knows_the_turns_that_there_are(kind, group):
    assert training(RotatedMnist(turns=kind))[1].get("group") == group  # digits turned by any angle are not mirrored
