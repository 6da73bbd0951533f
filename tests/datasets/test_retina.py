"""The fundus photograph: training, validation and test share no pixel, blur and noise have the law that is stated."""

import numpy as np
import pytest
import torch

from datasets import open_data, retina


@pytest.mark.parametrize("size", [64, 256])
def test_parts_share_no_pixel_and_leave_the_corners_out(size):
    parts = {split: open_data("retina", split, image_size=str(size)) for split in ("train", "val", "test", "all")}
    seen = dict.fromkeys(parts, np.zeros((1280, 1280), int))
    for split, data in parts.items():
        seen[split] = np.zeros((1280, 1280), int)
        for top, left in data.positions[:: 97 if split == "train" else 1]:
            seen[split][top : top + size, left : left + size] += 1
    assert (sum(seen[split] > 0 for split in ("train", "val", "test")).max()) == 1
    assert all(seen[split].max() == 1 for split in ("val", "test", "all"))
    blocks = (seen["all"] > 0).reshape(5, 256, 5, 256).mean((1, 3))
    corners = np.zeros((5, 5))
    corners[::4, ::4] = 1
    assert np.array_equal(blocks, 1 - corners)
    assert [len(parts[split]) * size**2 // 256**2 for split in ("train", "val", "test", "all")] == [15, 2, 4, 21]


def test_items_are_patches_of_the_middle():
    from skimage.data import retina as photograph

    data = open_data("retina", "test")
    middle, source = photograph()[65:1345, 65:1345], retina.pictures()[1]
    top, left = data.positions[1]
    item = data.get(1, None)
    for image, whole in ((item.target, middle), (item.source, source)):
        assert image.shape == (3, 256, 256) and image.dtype == torch.float32
        values = ((image + 1) * 127.5).round().numpy().transpose(1, 2, 0)
        assert np.array_equal(values, whole[top : top + 256, left : left + 256])


def test_the_source_is_blurred_and_noisy():
    """Against the Gaussian written out; the noise is white, of all pixels and channels alike."""
    target, source = retina.pictures()
    part, bells = slice(500, 800), np.exp(-((np.arange(-12, 13) / 3.0) ** 2) / 2)
    blurred = target[part, part].astype(float)
    for axis in (0, 1):
        blurred = np.apply_along_axis(np.convolve, axis, blurred, bells / bells.sum(), "valid")
    green_blue = np.s_[..., 1:]  # red is nearly white here
    whole, blurred = source[part, part][12:-12, 12:-12][green_blue] - blurred[green_blue], blurred[green_blue]
    seen = (blurred > 60).all(-1) & (blurred < 195).all(-1)  # where hardly anything is clipped
    assert seen.mean() > 0.2
    noise = whole[seen]
    assert abs(noise.mean()) < 4 * 20 / noise.size**0.5 and noise.std() == pytest.approx(20, rel=0.02)
    assert np.abs(np.corrcoef(noise.T) - np.eye(2)).max() < 4 / len(noise) ** 0.5
    green = np.where(seen, whole[..., 0], 0)
    for shift in ((0, 1), (1, 0), (1, 1)):
        assert abs((green * np.roll(green, shift, (0, 1))).sum() / (green**2).sum()) < 4 / seen.sum() ** 0.5


def test_sizes():
    with pytest.raises(ValueError, match=r"must be one number that divides 256, e\.g\. 256 or 128"):
        open_data("retina", "train", image_size="48")
