"""LYSTO's HDF5."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from datasets.prepare.lysto import corners
from tests.datasets.prepare.raws import lysto


@pytest.fixture
def raw(tmp_path):
    return lysto(tmp_path).rename(tmp_path / "raw")


def patches(count=16):
    return np.random.default_rng(0).integers(0, 256, (count, 24, 24, 3), np.uint8)


def test_crops_lie_in_their_patch_and_differ(raw, prepare):
    manifest, out, said = prepare("lysto", "--image_size", 8, "--crops", 4, "--run", 4, "--noise", 10)
    assert manifest["pairs"] == {"train": 32, "val": 16, "test": 16} and said.endswith("lysto64 i2sb --image_size 32\n")
    places = {}
    for path in sorted(out.rglob("target/*.png")):
        i, _ = map(int, path.stem.split("_"))
        windows = np.lib.stride_tricks.sliding_window_view(patches()[i], (8, 8), (0, 1)).transpose(0, 1, 3, 4, 2)
        (place,) = np.argwhere((windows == np.asarray(Image.open(path))).all((2, 3, 4))).tolist()
        places.setdefault(i, []).append(place)
    assert len(places) == 16
    for found in places.values():
        apart = [max(abs(a[0] - b[0]), abs(a[1] - b[1])) for n, a in enumerate(found) for b in found[:n]]
        assert len(found) == 4 and min(apart) >= 8  # disjoint
    runs = [{int(p.stem.split("_")[0]) // 4 for p in (out / part / "target").iterdir()} for part in manifest["splits"]]
    assert sum(map(len, runs)) == len(set.union(*runs)) == 4


def test_noise_has_its_level(raw, prepare):
    _, out, _ = prepare("lysto", "--image_size", 24, "--run", 2, "--noise", 8)
    names = [path.relative_to(out) for path in out.rglob("target/*.png")]
    targets = np.stack([np.asarray(Image.open(out / name)) for name in names]).astype(float)
    sources = np.stack([np.asarray(Image.open(str(out / name).replace("target", "source"))) for name in names]).astype(
        float
    )
    away = (targets > 40) & (targets < 215)
    noise = (sources - targets)[away]
    assert noise.std() == pytest.approx(np.hypot(8, 1 / np.sqrt(12)), rel=0.03) and abs(noise.mean()) < 0.2
    assert sources.min() == 0 and sources.max() == 255


def test_one_organ(raw, prepare):
    manifest, out, _ = prepare("lysto", "--image_size", 8, "--run", 1, "--organ", "colon")
    found = {int(path.stem.split("_")[0]) for path in out.rglob("target/*.png")}
    assert found == {4, 5, 6, 7, 12, 13, 14, 15} and sum(manifest["pairs"].values()) == 8


@given(st.integers(5, 40), st.integers(5, 40), st.integers(1, 5), st.integers(0, 99))
def test_corners_are_disjoint_and_inside(height, width, size, seed):
    most = (height // size) * (width // size)
    found = corners((height, width, 3), size, most, np.random.default_rng(seed))
    taken = np.zeros((height, width), int)
    for top, left in found:
        taken[top : top + size, left : left + size] += 1
    assert len(found) == most and taken.max() == 1 and taken.sum() == most * size * size


@pytest.mark.parametrize(
    ("keys", "flags", "said"),
    [
        ({"x": None}, "", "raw: has no data set 'x', it holds organ, y; give LYSTO's training.h5"),
        ({"organ": None}, "--organ colon", "has no data set 'organ', it holds x, y"),
        ({"y": np.arange(15)}, "", "y has 15 entries, x has 16; download it again"),
        ({"x": np.zeros((16, 24, 24, 3))}, "", r"x is float64 \(16, 24, 24, 3\), expected uint8"),
        ({}, "--organ lung", "no organ begins with 'lung', there are breast_1, colon_1, prostate_1"),
        (
            {"organ": np.arange(16)},
            "--organ colon",
            "organ is int64, expected names such as colon_2; leave out --organ",
        ),
        ({}, "--crops 10", "--crops 10: 24x24 pixels hold 9 disjoint ones of 8; give fewer"),
        ({}, "--run 16", "1 runs of 16 patches cannot be split"),
    ],
)
def test_mistakes(tmp_path, prepare, keys, flags, said):
    lysto(tmp_path, **keys).rename(tmp_path / "raw")
    with pytest.raises(ValueError, match=said):
        prepare("lysto", "--image_size", 8, *flags.split())


def test_truncated_and_no_file(raw, tmp_path, prepare):
    raw.write_bytes(raw.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"raw: cannot be read .*truncated"):
        prepare("lysto")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"folder: is a folder, expected the file training.h5"):
        prepare("lysto", source="folder")
