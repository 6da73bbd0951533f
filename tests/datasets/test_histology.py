"""The built-in picture: training and validation share no pixel."""

import numpy as np
import pytest
import torch

from datasets import histology, open_data


@pytest.mark.parametrize("size", [32, 64, 128])
def test_no_training_patch_touches_a_validation_pixel(size):
    held = histology.validation_pixels()
    positions = histology.training_positions(size)
    windows = np.lib.stride_tricks.sliding_window_view(held, (size, size))
    free = ~windows.any(axis=(2, 3))
    assert free.sum() == len(positions) > 0
    assert free[tuple(positions.T)].all()


def test_validation_tiles_one_block_of_each_row_and_column():
    held = histology.validation_pixels()
    blocks = held.reshape(4, 128, 4, 128).transpose(0, 2, 1, 3)
    per_block = blocks.reshape(4, 4, -1).mean(-1)
    assert (per_block.sum(0) == 1).all() and (per_block.sum(1) == 1).all()
    assert not np.array_equal(per_block, np.eye(4))
    for split, covered in (("val", held), ("all", np.ones_like(held))):
        seen = np.zeros(held.shape, int)
        for top, left in open_data("histology", split).positions:
            seen[top : top + 32, left : left + 32] += 1
        assert np.array_equal(seen, covered)


@pytest.mark.parametrize(
    ("split", "size", "length"), [("train", "native", 192), ("val", "32", 64), ("test", "64", 16), ("all", "128", 16)]
)
def test_items(split, size, length):
    data = open_data("histology", split, image_size=size)
    assert len(data) == len(data.names) == len(set(data.names)) == length
    for i in (0, length - 1):
        item = data.get(i, None)
        top, left = (int(word.lstrip("rowclumn")) for word in data.names[i].split("_"))
        for image, whole in zip((item.target, item.source), histology.pictures(), strict=True):
            assert image.shape == (3, *data.size) and image.dtype == torch.float32 and image.abs().max() <= 1
            assert torch.equal(image, whole[:, top : top + data.size[0], left : left + data.size[1]])
        assert item.mask is None and item.label is None and not torch.equal(item.target, item.source)


def test_val_and_test_are_the_same_and_say_so():
    val, test = open_data("histology", "val"), open_data("histology", "test", data_dir="elsewhere")
    assert val.names == test.names and "same" in val.notice and "elsewhere is not read" in test.notice
    rng, train = np.random.default_rng(0), open_data("histology", "train")
    drawn = {float(train.get(0, rng).target.sum()) for _ in range(9)}  # anywhere, with random numbers
    assert len(drawn) == 9 and len({float(val.get(0, rng).target.sum()) for _ in range(9)}) == 1
    assert open_data("histology", "train").notice == ""


def test_source_is_hematoxylin_alone_in_whole_8_bit_values():
    from skimage.color import rgb2hed

    _, source = histology.pictures()
    bytes_ = ((source + 1) / 2 * 255).numpy()
    assert np.abs(bytes_ - bytes_.round()).max() < 1e-3
    stains = rgb2hed(bytes_.round().astype(np.uint8).transpose(1, 2, 0))
    assert stains[..., 1:].mean() < 0.05 * stains[..., 0].mean()


@pytest.mark.parametrize("options", [{"image_size": "48"}, {"image_size": "32x64"}, {"num_classes": 2}])
def test_refusals(options):
    with pytest.raises(ValueError, match="histology") as error:
        open_data("histology", "train", **options)
    assert "\n" not in str(error.value)
