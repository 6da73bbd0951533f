"""The nearest of the training's targets: as by trying all of them, and what was copied is found, turned or not."""

import numpy as np
import pytest

from ddbm.symmetry.groups import GROUPS, IDENTITY
from evaluations.copies import SIDE, distance, nearest

QUARTERS = [lambda x, k=k: np.rot90(x, k) for k in range(4)]
TURNS = {  # of [H, W, C], without the code of groups
    "none": QUARTERS[:1],
    "H": [lambda x: x, lambda x: x[:, ::-1]],
    "V": [lambda x: x, lambda x: x[::-1]],
    "C2": QUARTERS[::2],
    "C4": QUARTERS,
    "D4": [*QUARTERS, *(lambda x, turn=turn: turn(x[:, ::-1]) for turn in QUARTERS)],
}


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def rms(a, b):
    return np.sqrt(np.mean((a.astype(float) - b) ** 2))


def parts(images, size=7):
    return (images[i : i + size] for i in range(0, len(images), size))


@pytest.mark.parametrize("group", TURNS)
def test_as_by_trying_all(group):
    images, targets = pictures(9, 12, 12, 3), pictures(40, 12, 12, 3, seed=1)
    targets[5:15] = (targets[5:15] // 4 + 96).astype(np.uint8)  # grey, so near to all
    images[:4] = np.clip(targets[20:24].astype(int)[:, ::-1, ::-1] + pictures(4, 12, 12, 3, seed=2) // 9, 0, 255)
    found = nearest(images, parts(targets), GROUPS[group].elements)
    every = [turn(target) for target in targets for turn in TURNS[group]]
    for image, near, far in zip(images, found, distance(images, found), strict=True):
        expected = min(every, key=lambda other: rms(image, other))
        assert np.array_equal(near, expected)
        assert far == pytest.approx(rms(image, expected), rel=1e-12)


def test_a_copy_is_found_under_the_elements_of_the_group_alone():
    targets = pictures(30, 16, 16, 1)
    images = pictures(6, 16, 16, 1, seed=1)
    images[2], images[4] = targets[29], np.rot90(targets[8][:, ::-1])
    images[5] = np.clip(targets[0].astype(int) + 2, 0, 255)
    found = nearest(images, parts(targets, 30), GROUPS["D4"].elements)
    far = distance(images, found)
    assert far[2] == far[4] == 0 and np.array_equal(found[[2, 4]], images[[2, 4]])
    assert 1.9 < far[5] <= 2 and np.array_equal(found[5], targets[0]) and far[[0, 1, 3]].min() > 50
    without = distance(images, nearest(images, parts(targets), (IDENTITY,)))
    assert without[2] == 0 and without[4] > 50
    under_c4 = distance(images, nearest(images, parts(targets), GROUPS["C4"].elements))
    assert under_c4[2] == 0 and under_c4[4] > 50  # it is a mirrored one


@pytest.mark.parametrize("shape, block", [((48, 96), 3), ((2 * SIDE, 2 * SIDE), 2), ((SIDE, SIDE), 1)])
def test_large_images_are_compared_by_the_means_of_blocks(shape, block):
    images, targets = pictures(70, *shape, 2), pictures(12, *shape, 2, seed=3)

    def means(x):
        return x.reshape(len(x), shape[0] // block, block, shape[1] // block, block, 2).mean((2, 4))

    each = np.sqrt(((means(images)[:, None] - means(targets)[None]) ** 2).mean((2, 3, 4)))
    found = nearest(images, parts(targets, 5))
    assert np.array_equal(found, targets[each.argmin(1)])
    assert distance(images, found) == pytest.approx(each.min(1), rel=1e-5)


def test_turned_large_images():
    targets = pictures(5, 70, 70, 3)
    images = np.stack([np.rot90(targets[3], 3), targets[1]])
    found = nearest(images, parts(targets), GROUPS["C4"].elements)
    assert np.array_equal(found, images)
