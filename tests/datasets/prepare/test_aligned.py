"""Two folders of registered pictures: stains, and photographs with masks."""

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from datasets.prepare.__main__ import command
from datasets.prepare.aligned import Aligned
from datasets.prepare.cutting import joined, places, starts, tissue
from datasets.prepare.engine import recipe_named
from ddbm.config import ImageShape, ModelConfig
from ddbm.networks.unet import check_size, multipliers
from tests.datasets.prepare import raws


def pixels(path):
    with Image.open(path) as stored:
        return np.asarray(stored)


def test_patches_of_both_sides_are_of_one_place(tmp_path, prepare):
    raws.stains(tmp_path).rename(tmp_path / "raw")
    manifest, out, said = prepare("bci", "--image_size", 8, "--group_by", "^(p[0-9])", "--val", 0.5)
    assert manifest["pairs"] == {"train": 8, "val": 8, "test": 16}
    assert "train_ddbm.sh stains i2sb --image_size 32 --layers tied --group D4 --augment D4" in said
    patients = {part: {name.split("/")[-1][:2] for name in names} for part, names in manifest["splits"].items()}
    assert len(patients["train"] | patients["val"]) == 2 and not patients["train"] & patients["val"]
    for path in out.rglob("source/*.png"):
        name, top, left = path.stem.rsplit("_", 2)
        top, left = int(top[1:]), int(left[1:])
        whole = pixels(next((tmp_path / "raw/HE").rglob(f"{name}.png")))
        assert (pixels(path) == whole[top : top + 8, left : left + 8]).all()
        assert (pixels(path.parents[1] / "target" / path.name) == 255 - pixels(path)).all()


def test_patches_without_tissue_are_left_out(tmp_path, prepare):
    for side in ("HE", "IHC"):
        section = np.full((8, 16, 3), 250, np.uint8)
        section[:, : 8 if side == "HE" else 16] = 120
        section[:, 14:] = 5
        for i in range(3):
            other = {"HE": "IHC", "IHC": "HE"}[side]
            raws.saved(tmp_path / f"raw/{other if i == 2 else side}/{i}.png", Image.fromarray(section))
    _, out, _ = prepare("bci", "--image_size", 8, "--val", 0, "--test", 0)
    assert [p.name for p in sorted(out.rglob("source/*.png"))] == [f"{i}_y00000_x00000.png" for i in range(3)]
    _, out, _ = prepare("bci", "--image_size", 0, "--val", 0, "--test", 0, out="whole")
    assert pixels(out / "train/target/0.png").shape == (8, 16, 3)
    with pytest.raises(ValueError, match=r"--tissue must be below 1, found 1.5"):
        prepare("bci", "--tissue", 1.5)
    for path in (tmp_path / "raw").rglob("*.png"):
        raws.saved(path, Image.fromarray(np.full((8, 16, 3), 250, np.uint8)))
    with pytest.raises(ValueError, match=r"no pair is left for train, which would be empty"):
        prepare("bci", "--image_size", 8, "--val", 0, "--test", 0, out="none")


def test_slides_of_several_sizes_whole(tmp_path, prepare):
    """What is printed trains on the smallest of them; a slide without a fit patch is counted."""
    for side in ("HE", "IHC"):
        for n, (height, width) in enumerate([(200, 150), (140, 300), (200, 200)]):
            picture = np.full((height, width, 3), 255 if n == 1 else 90, np.uint8)
            raws.saved(tmp_path / f"raw/{side}/{n}.png", Image.fromarray(picture))
    manifest, _, said = prepare("bci", "--image_size", 0, "--val", 0, "--test", 0)
    assert "stains i2sb --image_size 128 --fit crop" in said and manifest["sizes"] == [[140, 150], [200, 300]]
    manifest, _, said = prepare("bci", "--image_size", 63, "--val", 0, "--test", 0, out="patches")
    assert "stains i2sb --image_size 56 --fit crop" in said and manifest["sizes"] == [[63, 63]]
    assert manifest["left_out"] == ["1: nothing of it was fit for a pair"]
    assert "note: 1 left out (manifest.json has all), such as 1: nothing of it was fit for a pair" in said


@pytest.mark.parametrize(
    ("shape", "size", "printed"),
    [
        ((300, 400), 0, "256 --fit crop"), ((96, 128), 0, "96 --fit crop"), ((512, 512), 512, "512 --fit crop"),
        ((64, 64), 20, "32 --layers"),
    ],
)  # fmt: skip
def test_the_size_that_is_printed_is_square(tmp_path, prepare, shape, size, printed):
    """As a group with quarter turns needs it, that of the patches where it is fit, and none that nothing can be cut
    from."""
    for side in ("HE", "IHC"):
        for n in range(2):
            raws.saved(tmp_path / f"raw/{side}/{n}.png", Image.fromarray(np.full((*shape, 3), 90 + n, np.uint8)))
    _, _, said = prepare("bci", "--image_size", size, "--val", 0, "--test", 0)
    assert f"stains i2sb --image_size {printed}" in said


def test_tissue_is_a_share():
    section = np.full((10, 10, 3), 250, np.uint8)
    assert tissue(section) == 0
    section[:3] = (180, 90, 200)
    section[3:5] = 10
    assert tissue(section) == 0.3 and tissue(section.astype(np.uint16) * 257) == 0.3


def test_masks_of_vessels(tmp_path, prepare):
    raws.fives(tmp_path).rename(tmp_path / "raw")
    manifest, out, said = prepare("fives", "--image_size", 0, "--val", 0.2)
    assert manifest["pairs"] == {"train": 4, "val": 1, "test": 2} and "train_ddbm.sh fives i2sb\n" in said
    for path in out.rglob("target/*.png"):
        photo = pixels(path.parents[1] / "source" / path.name)
        assert pixels(path).shape == (16, 16) and (pixels(path) == np.where(photo[..., 0] > 127, 255, 0)).all()


def test_mistakes(tmp_path, prepare):
    raw = raws.stains(tmp_path).rename(tmp_path / "raw")
    flags = ("--image_size", 8)
    with pytest.raises(ValueError, match="no images in folders he or IHC; name them by --source_folder"):
        prepare("bci", *flags, "--source_folder", "he")
    with pytest.raises(ValueError, match=r"p0_0_test_1\+.png: 16x16 pixels, smaller than a patch of 32"):
        prepare("bci", "--image_size", 32, out="large")
    with pytest.raises(ValueError, match="--group_by 'q' does not match 'p0_0_t"):
        prepare("bci", *flags, "--group_by", "q")
    path = raw / "IHC/train/p0_0_train_1+.png"
    raws.saved(path, raws.image(16, 15))
    with pytest.raises(ValueError, match=r"HE/.* and .*IHC/.* differ in size"):
        prepare("bci", *flags, out="size")
    path.unlink()
    with pytest.raises(ValueError, match=r"HE/train/p0_0_train_1\+.png: no picture of that name in IHC .1 such files"):
        prepare("bci", *flags, out="alone")
    path.mkdir()
    (path / "deep").symlink_to(raw)
    with pytest.raises(ValueError, match="deep: a link leads back"):
        prepare("bci", *flags, out="loop")


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(0, 9))
def test_cut_and_joined_is_the_picture(height, width, size, seed):
    size = min(size, height, width)
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 2), np.uint8)
    patches = {(t, s): image[t : t + size, s : s + size] for t, s in places(image.shape, size)}
    assert (joined(patches, (height, width)) == image).all()
    assert len(patches) == -(-height // size) * -(-width // size)
    assert all(p.shape == (size, size, 2) for p in patches.values()) and starts(height, size)[-1] == height - size
    if len(patches) > 1:
        patches.popitem()
        with pytest.raises(ValueError, match="no patch covers row"):
            joined(patches, (height, width))


def test_overlaps_are_means():
    found = joined({(0, 0): np.full((1, 2, 1), 1.0), (0, 1): np.full((1, 2, 1), 4.0)}, (1, 3))
    assert found.ravel().tolist() == [1, 2.5, 4]


def test_values_without_a_meaning(tmp_path, prepare):
    raw = raws.fives(tmp_path).rename(tmp_path / "raw")
    path = next(raw.glob("train/Ground truth/*.png"))
    raws.saved(path, Image.fromarray(np.full((16, 16), 1, np.uint8)))
    with pytest.raises(ValueError, match=r"Ground truth/.*png: no value above 1, expected a mask of 0 and 255"):
        prepare("fives", "--image_size", 8)
    tifffile.imwrite(path.with_suffix(".tif"), np.zeros((16, 16), np.float32))
    path.unlink()
    with pytest.raises(ValueError, match=r"Ground truth/.*tif: pixels are float32, expected 8 or 16 bits; convert it"):
        prepare("fives", "--image_size", 8, out="floats")


def test_folders_and_names_that_join_alike(tmp_path, prepare):
    for folder in ("HE", "IHC"):
        for name in ("a/b_c", "a_b/c", "d"):
            raws.saved(tmp_path / f"raw/{folder}/{name}.png", raws.image(8, 8))
    with pytest.raises(ValueError, match=r"a_b/c.png and .*a/b_c.png would become pairs of one name; rename one"):
        prepare("bci", "--val", 0, "--test", 0, "--image_size", 0)


def test_a_folder_that_an_older_version_prepared_still_says_how_to_train():
    said = command(recipe_named("bci"), Aligned(source="raw", out="pairs", image_size=0), [])
    assert "stains i2sb --image_size native --fit crop" in said


@pytest.mark.parametrize(
    ("asked", "printed"), [(200, 192), (136, 128), (280, 256), (400, 384), (63, 56), (512, 512), (96, 96), (33, 32)]
)
def test_networks_can_halve_what_is_printed(asked, printed):
    said = command(recipe_named("bci"), Aligned(source="raw", out="pairs", image_size=asked), [])
    assert f"--image_size {printed} --fit crop" in said
    check_size(printed, printed, len(multipliers(ModelConfig(), ImageShape(3, 3, printed, printed, 0))))
