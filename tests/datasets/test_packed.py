"""A pack is the folder it was made of: splits, names, pixels, masks, batches."""

import numpy as np
import pytest
import torch

from datasets import Augmentation, open_data, train_batches
from datasets.pack import main
from ddbm.symmetry.groups import GROUPS
from tests.datasets.alike import equal


def packed(root, tmp_path, *flags):
    assert main([str(root), str(tmp_path / "pack"), *flags]) == 0
    return str(tmp_path / "pack")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("folders", [("train/", "val/"), ("train/", "test/"), ("train/",), ("",)])
def test_every_split_is_that_of_the_folder(make, tmp_path, folders, dtype):
    root = tmp_path / "pairs"
    for n, part in enumerate(folders):
        make.two_folders(root, 11 - n, sides=(f"{part}source", f"{part}target"), dtype=dtype)
    pack = packed(root, tmp_path)
    for part in ("train", "val", "test"):
        for more in ({}, {"image_size": "6", "fit": "crop", "mask": "circle"}, {"target_white": 99.0}):
            equal(open_data("x", part, data_dir=str(root), **more), open_data("x", part, data_dir=pack, **more))
    assert len(open_data("x", "all", data_dir=pack)) == len(open_data("x", "all", data_dir=str(root)))
    assert open_data("x", "auto", data_dir=pack).split == "test"


def test_masks_classes_groups_and_halves(make, tmp_path):
    root = tmp_path / "pairs"
    for kind in ("a", "b"):
        for n in range(6):
            make.write(root / "train" / kind / f"p{n}.png", make.noise(width=16, seed=n))
            seen = make.noise(channels=1, seed=n) if n % 2 else np.full((8, 8, 1), 255, np.uint8)
            make.write(root / "mask" / "train" / kind / f"p{n}.png", seen)
    how = {"num_classes": 2, "mask_folder": "mask", "group_by": "p[0-9]", "source_half": "right"}
    flags = [word for name, value in how.items() for word in (f"--{name}", str(value))]
    pack = packed(root, tmp_path, *flags)
    for part in ("train", "val"):
        equal(
            open_data("x", part, data_dir=str(root), **how),
            open_data("x", part, data_dir=pack, **how | {"source_half": "left"}),
        )


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_batches_are_the_same(make, tmp_path, workers):
    root = make.two_folders(tmp_path / "pairs", 7)
    pack = packed(root, tmp_path)
    how = {
        "batch_size": 4,
        "seed": 3,
        "augmentation": Augmentation(elements=GROUPS["D4"].elements),
        "workers": workers,
        "start_step": 2,
    }
    one, other = (train_batches(open_data("x", "train", data_dir=place), **how) for place in (root, pack))
    for _ in range(3):
        for a, b in zip(next(one), next(other), strict=True):
            assert a is b is None or torch.equal(a, b)


def test_mistakes(make, tmp_path):
    root = make.two_folders(tmp_path / "pairs", 3)
    pack = packed(root, tmp_path)
    for words, said in (
        ([root, pack], r"pack is there already: name another, or remove it"),
        ([root, ""], "OUT is '', such as of a variable that is not set: name a new folder or file"),
        ([root, tmp_path / "b", "--format", "tar"], "format 'tar'"),
    ):
        with pytest.raises(ValueError, match=said):
            main([str(word) for word in words])
    make.write(tmp_path / "pairs/train/source/1.png", make.noise(9, 8))
    make.write(tmp_path / "pairs/train/target/1.png", make.noise(9, 8))
    with pytest.raises(ValueError, match="1: uint8 of 9x8x3, expected uint8 of 8x8x3 as in 0; make all alike"):
        main([root, str(tmp_path / "b")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pack", "pairs"]
    make.two_folders(tmp_path / "others", 3)
    assert main([str(tmp_path / "others"), str(tmp_path / "new/folder/pack")]) == 0
    assert len(open_data("x", "all", data_dir=str(tmp_path / "new/folder/pack"))) == 3
    (tmp_path / "pack/target.npy").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"target\.npy: cannot be read \(.*\); pack the pairs again"):
        open_data("x", "train", data_dir=pack)
