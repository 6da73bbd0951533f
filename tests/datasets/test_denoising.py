"""The section under noise: training, validation and test share no pixel, and the noise has the law that is stated."""

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import denoising, open_data


def counted(positions, size):
    """How many patches hold each pixel."""
    counts = np.zeros((512, 512), int)
    for top, left in positions:
        counts[top : top + size, left : left + size] += 1
    return counts


@pytest.mark.parametrize("size", [32, 64, 128])
def test_parts_share_no_pixel(size):
    parts = {split: open_data("denoising", split, image_size=str(size)) for split in ("train", "val", "test", "all")}
    seen = {split: counted(data.positions, size) for split, data in parts.items()}
    assert np.array_equal(sum(seen[split] > 0 for split in ("train", "val", "test")), np.ones((512, 512)))
    assert all(seen[split].max() == 1 for split in ("val", "test", "all")) and seen["all"].min() == 1
    assert [int((seen[split] > 0).sum()) // 128**2 for split in ("train", "val", "test")] == [10, 2, 4]
    lengths = [len(parts[split]) for split in ("train", "val", "test", "all")]
    assert lengths == [blocks * (128 // size) ** 2 for blocks in (10, 2, 4, 16)]


@pytest.mark.parametrize("split", ["train", "val", "test", "all"])
def test_items(split):
    data = open_data("denoising", split, image_size="64")
    assert len(data) == len(data.names) == len(set(data.names))
    for i in (0, len(data) - 1):
        item = data.get(i, None)
        top, left = (int(word.lstrip("rowclumn")) for word in data.names[i].split("_"))
        for image, whole in zip((item.target, item.source), denoising.pictures(), strict=True):
            assert image.shape == (3, 64, 64) and image.dtype == torch.float32
            values = ((image + 1) * 127.5).round().numpy().transpose(1, 2, 0)
            assert np.array_equal(values, whole[top : top + 64, left : left + 64])
        assert item.mask is None and item.label is None


def test_training_draws_patches_anywhere_and_the_others_do_not():
    rng, train, test = np.random.default_rng(0), open_data("denoising", "train"), open_data("denoising", "auto")
    assert len({float(train.get(0, rng).target.sum()) for _ in range(9)}) == 9
    assert len({float(test.get(0, rng).target.sum()) for _ in range(9)}) == 1 and test.split == "test"
    assert train.notice == "" and "elsewhere is not read" in open_data("denoising", "val", data_dir="elsewhere").notice


def lost():
    """Bool [512, 512]: where the noise shows, whether as white, and where it would, the section being neither."""
    target, source = denoising.pictures()
    seen = ~(((target == 0) | (target == 255)).all(-1))
    changed = (source != target).any(-1)
    assert set(np.unique(source[changed])) == {0, 255} and np.ptp(source[changed], axis=-1).max() == 0
    assert seen.mean() > 0.99
    return changed & seen, source[..., 0] == 255, seen


def test_half_of_the_pixels_are_lost_to_black_and_white_alike():
    changed, white, seen = lost()
    assert abs(changed[seen].mean() - denoising.LOST) < 4 * (0.25 / seen.sum()) ** 0.5
    assert abs(white[changed].mean() - 0.5) < 4 * (0.25 / changed.sum()) ** 0.5
    level = denoising.pictures()[0].mean(-1)
    apart = level[changed].mean() - level[seen].mean()
    assert abs(apart) < 4 * level[seen].std() / changed.sum() ** 0.5  # whatever the section shows there


@pytest.mark.parametrize("shift", [(0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0), (5, 3)])
def test_a_pixel_says_nothing_of_its_neighbours(shift):
    """So the law is the same in every direction, and turns with the picture."""
    changed, white, seen = lost()
    for sign in (np.where(changed, 1.0, -1.0) * seen, np.where(changed, np.where(white, 1.0, -1.0), 0.0)):
        assert abs((sign * np.roll(sign, shift, (0, 1))).mean()) < 4 / sign.size**0.5


def test_noise_is_drawn_once():
    first = denoising.pictures()[1]
    denoising.pictures.cache_clear()
    assert np.array_equal(denoising.pictures()[1], first)


def test_whole_is_the_test_part_in_one_piece(tmp_path):
    tested = open_data("denoising", "test", image_size="128")
    (top, left), (bottom, right) = tested.positions.min(0), tested.positions.max(0) + 128
    assert (counted(tested.positions, 128)[top:bottom, left:right] == 1).all() and bottom - top == right - left == 256
    denoising.write_whole(tmp_path / "new")
    for side, image, picture in zip(("target", "source"), denoising.whole(), denoising.pictures(), strict=True):
        assert np.array_equal(image, picture[top:bottom, left:right])
        assert np.array_equal(image, np.asarray(Image.open(tmp_path / "new" / f"{side}.png")))


@pytest.mark.parametrize("options", [{"image_size": "48"}, {"image_size": "32x64"}, {"num_classes": 2}])
def test_refusals(options):
    with pytest.raises(ValueError, match="denoising") as error:
        open_data("denoising", "train", **options)
    assert "\n" not in str(error.value)
