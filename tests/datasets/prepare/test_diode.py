"""DIODE: arrays and pictures of normals and depth, in the owners' names."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import open_data
from tests.datasets.prepare.raws import DIODE, diode, unit

REAL = Path(__file__).resolve().parents[3] / "../shared/data/diode"


@pytest.fixture
def raw(tmp_path):
    return diode(tmp_path).rename(tmp_path / "raw")


def find(root, name):
    return next(root.rglob(name))


def opened(path):
    return np.asarray(Image.open(path))


def test_normals(raw, prepare):
    manifest, out, said = prepare("diode")
    assert manifest["pairs"] == {"train": 6, "val": 2} and said.endswith("train_ddbm.sh diode i2sb\n")
    name = DIODE.format(scene=1, view=10)
    source = np.asarray(Image.open(out / f"train/{name}_normal.png"))
    vectors = unit(6, 8, 1)
    assert source.shape == (6, 8, 4)
    assert np.abs(source[1:, :, :3] / 255 * 2 - 1 - vectors[1:]).max() <= 1.01 / 255
    assert (source[0, :, 3] == 0).all() and (source[1:, :, 3] == 255).all() and (source[0, :, :3] == 128).all()
    photo = np.asarray(Image.open(find(raw, f"{name}.png")))
    assert (np.asarray(Image.open(out / f"train/{name}.png")) == photo).all()
    data = open_data("diode", "val", data_dir=str(out), layout="suffix", source_suffix="_normal")
    assert [n.split("_")[0] for n in data.names] == ["00003", "00003"]  # the owners' val
    item = data.get(0, None)
    assert not item.mask[0, 0].any() and item.mask[0, 1:].all()
    assert (
        len(manifest["sources"]) == 16
        and f"val/outdoor/scene_00003/scan_00193/{DIODE.format(scene=3, view=0)}.png" in manifest["sources"]
    )


def test_depth(raw, prepare):
    import imagecodecs

    _, out, said = prepare("diode", "--input", "depth", "--depth_max", 150, "--scenes", "all")
    assert "--source_suffix _depth" in said
    name = DIODE.format(scene=0, view=0)
    found = imagecodecs.png_decode((out / f"train/{name}_depth.png").read_bytes())
    metres = np.random.default_rng(0).uniform(1, 300, (6, 8)).astype(np.float32)
    known = metres < 200
    assert found.dtype == np.uint16 and found.shape == (6, 8, 2) and ((found[..., 1] > 0) == known).all()
    assert np.abs(found[..., 0] / 65535 * 150 - np.minimum(metres, 150))[known].max() < 0.01


def test_the_middle_square(raw, prepare):
    _, out, _ = prepare("diode", "--image_size", 3)
    name = DIODE.format(scene=0, view=0)
    assert opened(out / f"train/{name}.png").shape == (3, 3, 3)
    stored = np.asarray(Image.open(out / f"train/{name}_normal.png"))[..., :3]
    whole = np.rint((unit(6, 8, 0) + 1) / 2 * 255)
    assert {tuple(v) for v in stored.reshape(-1, 3)} <= {
        tuple(v) for v in whole.reshape(-1, 3)
    }  # normals are not mixed


@pytest.mark.skipif(not REAL.is_dir(), reason="no real DIODE beside the repository")
def test_real_triples(tmp_path, prepare):
    shutil.copytree(REAL, tmp_path / "real")
    manifest, out, _ = prepare("diode", "--val", 0, "--test", 0, source="real")
    assert manifest["pairs"] == {"train": 10}
    for path in REAL.glob("*_normal.png"):
        whole, photo = path, path.with_name(path.name.replace("_normal", ""))
        before, after = (np.asarray(Image.open(p)) for p in (whole, out / "train" / whole.name))
        alpha = before[..., 3] > 0
        after = after if after.shape[2] == 4 else np.dstack([after, np.full(after.shape[:2], 255)])
        assert (before[alpha][:, :3] == after[alpha][:, :3]).all() and ((after[..., 3] > 0) == alpha).all()
        assert (
            np.asarray(Image.open(photo).convert("RGB")) == np.asarray(Image.open(out / "train" / photo.name))
        ).all()


def test_split_by_scene_where_the_owners_say_nothing(raw, tmp_path, prepare):
    for path in list(raw.rglob("*.*")):
        (tmp_path / "flat").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "flat")
    manifest, _, _ = prepare("diode", "--val", 0.25, "--test", 0.25, source="flat")
    scenes = {part: {name[:5] for name in names} for part, names in manifest["splits"].items()}
    assert {part: len(found) for part, found in scenes.items()} == {"train": 2, "val": 1, "test": 1}
    assert len(set.union(*scenes.values())) == 4


def test_mistakes(raw, prepare):
    name = DIODE.format(scene=0, view=0)
    with pytest.raises(ValueError, match="no photographs of indoors scenes"):
        prepare("diode", "--scenes", "indoors")
    np.save(find(raw, f"{name}_normal.npy"), np.zeros((6, 8)))
    with pytest.raises(ValueError, match=rf"{name}_normal.npy: cannot be read .has shape .6, 8, 1., expected .* and 3"):
        prepare("diode", out="shape")
    np.save(find(raw, f"{name}_normal.npy"), unit(5, 8, 0))
    with pytest.raises(ValueError, match="differ in size"):
        prepare("diode", out="size")
    path = find(raw, f"{name}_normal.npy")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=rf"{name}_normal.npy: cannot be read"):
        prepare("diode", out="damaged")
    path.unlink()
    with pytest.raises(ValueError, match=rf"{name}_normal.npy or .png is missing; extract its archive"):
        prepare("diode")
    find(raw, f"{name}_depth_mask.npy").unlink()
    with pytest.raises(ValueError, match=rf"{name}_depth_mask.npy is missing"):
        prepare("diode", "--input", "depth", out="depth")
    (raw / "b").mkdir()
    shutil.copy(find(raw, f"{name}.png"), raw / "b")
    with pytest.raises(ValueError, match=r"has the name of .*remove one"):
        prepare("diode", out="twice")
    (raw.parent / "diode.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"diode.tar.gz: is a file, expected the folder"):
        prepare("diode", source="diode.tar.gz", out="archive")
