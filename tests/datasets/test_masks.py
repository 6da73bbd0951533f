"""Masks from files and the inscribed circle: where they lie, what they hide, and that they turn with the group."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.draw import disk

from datasets import open_data
from datasets.masks import circle
from datasets.single import read_source
from ddbm.config import DataConfig
from ddbm.symmetry.groups import GROUPS, act
from ddbm.symmetry.pairs import Batch


def mask_of(seed, size=(8, 8)):
    return np.random.default_rng(seed).random(size) < 0.5


def bright(mask, white=255):
    return (mask * white).astype(np.uint8)[..., None]


PLACES = {  # settings, folders of the sides (or names in one folder), and of the masks
    "beside the sources": ({"mask_folder": "mask"}, "train/source/{}", "train/target/{}", "train/mask/{}"),
    "of the part": ({"mask_folder": "seen"}, "source/train/{}", "target/train/{}", "seen/train/{}"),
    "without splits": ({"mask_folder": "mask"}, "A/{}", "B/{}", "mask/{}"),
    "trainA": ({"mask_folder": "mask"}, "trainA/{}", "trainB/{}", "mask/{}"),
    "among the sources": ({"mask_suffix": "_seen"}, "train/A/{}", "train/B/{}", "train/A/{}_seen"),
    "one folder": (
        {"mask_suffix": "_seen", "source_suffix": "_a", "layout": "suffix"}, "train/{}_a", "train/{}", "train/{}_seen",
    ),
    "suffix in a folder": (
        {"mask_folder": "train/m", "mask_suffix": "_m"}, "train/source/{}", "train/target/{}", "train/m/{}_m",
    ),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_a_file_for_each_pair(make, tmp_path, place):
    settings, *names = PLACES[place]
    for i in range(3):
        for name, pixels in zip(names, (make.noise(seed=100 + i), make.noise(seed=i), bright(mask_of(i))), strict=True):
            make.write(tmp_path / f"{name.format(i)}.png", pixels)
    split = "all" if names[0][0] == "A" else "train"
    if place == "suffix in a folder":  # as a path from the folder above the sources
        settings = settings | {"mask_folder": "m"}
    data = open_data("mine", split, data_dir=str(tmp_path), **settings)
    assert len(data) == (3 if split == "all" else 2) and "left out" not in data.notice
    for i in range(len(data)):
        item, inside = data.get(i, None), mask_of(i)
        assert np.array_equal(item.mask[0], inside)
        for image, seed in ((item.source, 100 + i), (item.target, i)):
            expected = make.noise(seed=seed).transpose(2, 0, 1) / 127.5 - 1
            assert np.allclose(image, np.where(inside, expected, 0), atol=1e-6)


def test_side_by_side_and_masks_below_the_same_folder(make, tmp_path):
    for i in range(3):
        make.write(tmp_path / f"train/{i}.png", make.noise(width=16, seed=i))
        make.write(tmp_path / f"train/mask/{i}.png", bright(mask_of(i), 1))  # of 0 and 1
    data = open_data("mine", "train", data_dir=str(tmp_path), mask_folder="mask")
    assert data.names == ["0", "1"] and np.array_equal(data.get(1, None).mask[0], mask_of(1))


def test_with_alpha_and_the_circle_all_must_agree(make, tmp_path):
    pixels = np.concatenate([make.noise(), bright(mask_of(5))], -1)
    for i in range(2):
        make.write(tmp_path / f"source/{i}.png", pixels)
        make.write(tmp_path / f"target/{i}.png", make.noise(seed=1))
        make.write(tmp_path / f"mask/{i}.png", bright(mask_of(6)))
    data = open_data("mine", "all", data_dir=str(tmp_path), mask_folder="mask", mask="circle")
    item = data.get(0, None)
    expected = mask_of(5) & mask_of(6) & circle(8, 8)[0].numpy()
    assert np.array_equal(item.mask[0], expected) and not (item.target * ~item.mask).any()


def test_mistakes_are_named(make, tmp_path):
    root = make.two_folders(tmp_path)
    with pytest.raises(ValueError, match="train/source: no folder of masks mask beside it or in it; add it"):
        open_data("mine", "train", data_dir=root, mask_folder="mask")
    for i in (0, 2):
        make.write(tmp_path / f"train/mask/{i}.png", bright(mask_of(i)))
    with pytest.raises(ValueError, match=r"source/1\.png: no mask named 1\.\* by --mask_folder m.* \(1 such files\)"):
        open_data("mine", "train", data_dir=root, mask_folder="mask")
    make.write(tmp_path / "train/mask/1.png", bright(mask_of(1, (8, 9))))
    data = open_data("mine", "train", data_dir=root, mask_folder="mask")
    with pytest.raises(ValueError, match=r"mask/1\.png: the mask is 8x9 pixels but its pair 8x8; they must"):
        data.get(1, None)
    labels = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    make.write(tmp_path / "train/mask/1.png", labels)  # of which half would be hidden
    with pytest.raises(ValueError, match=r"mask/1\.png: holds numbers from 0 to 63, as labels are, no mask; make it"):
        data.get(1, None)
    for full in (2, 127):
        make.write(tmp_path / "train/mask/1.png", labels % 2 * full)
        assert np.array_equal(data.get(1, None).mask[0], labels[..., 0] % 2)
    make.write(tmp_path / "train/mask/1.png", labels * 2 + 2)  # 128 is grey, as of a soft edge
    assert np.array_equal(data.get(1, None).mask[0], labels[..., 0] > 31)
    with pytest.raises(ValueError, match="mask_suffix _a is that of a side"):
        DataConfig("mine", mask_suffix="_a", source_suffix="_a")


@given(side=st.integers(3, 40), g=st.sampled_from(GROUPS["D4"].elements))
def test_the_circle_turns_with_the_group(side, g):
    assert torch.equal(act(g, circle(side, side)), circle(side, side))


@pytest.mark.parametrize(("height", "width"), [(7, 7), (8, 8), (20, 31), (31, 20)])
def test_the_circle_by_skimage(height, width):
    found, radius = np.zeros((height, width), bool), min(height, width) / 2
    found[disk(((height - 1) / 2, (width - 1) / 2), radius + 1e-9, shape=found.shape)] = True
    assert np.array_equal(circle(height, width)[0], found)


@pytest.mark.parametrize("name", ["histology", "denoising", "retina"])
def test_data_sets_that_come_without_a_folder_have_the_circle_too(name):
    size = "256" if name == "retina" else "32"
    item = open_data(name, "val", image_size=size, mask="circle").get(0, None)
    plain = open_data(name, "val", image_size=size).get(0, None)
    assert torch.equal(item.mask, circle(int(size), int(size)))
    assert torch.equal(item.target, plain.target * item.mask) and torch.equal(item.source, plain.source * item.mask)


def test_an_image_to_translate_is_masked_where_it_is_as_those_of_the_training(make, tmp_path):
    path = make.write(tmp_path / "a.png", make.noise(12, 12))
    options = DataConfig("mine", image_size="12", mask="circle")
    source = read_source(path, options, 3, (1.0, 1.0))
    assert np.array_equal(source.mask, circle(12, 12)) and not (source.image * ~source.mask).any()
    assert read_source(path, options, 3, (2.0, 2.0)).mask is None
    native = DataConfig("mine", mask="circle")  # then the checkpoint knows the size
    assert np.array_equal(read_source(path, native, 3, (1.0, 1.0), trained=(12, 12)).mask, circle(12, 12))
    assert read_source(path, native, 3, (1.0, 1.0), trained=(6, 6)).mask is None


@given(seed=st.integers(0, 99), g=st.sampled_from(GROUPS["D4"].elements))
def test_masking_commutes_with_the_group(seed, g):
    """g (pair within a mask) = (g pair) within the turned mask."""
    from datasets import Item

    rng = np.random.default_rng(seed)
    target, source = (torch.from_numpy(rng.random((c, 6, 6), np.float32)) for c in (3, 1))
    masks = [torch.from_numpy(rng.random((1, 6, 6)) < 0.6) for _ in range(2)]

    def within(turn):
        item = Item(act(turn, target), act(turn, source), act(turn, masks[0]), None).within(act(turn, masks[1]))
        return Batch(item.target[None], item.source[None], torch.tensor([0]), item.mask[None], None)

    for one, other in zip(within((0, 0)).turned(g), within(g), strict=True):
        assert one is other is None or torch.equal(one, other)
