"""Turns by any angle, scale and shifts: by SciPy, in closed form, and together with the group."""

from itertools import islice
from math import cos, pi, sin

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import affine_transform

from datasets import Item, eval_batches, open_data, train_batches
from datasets.augmentation import Affine, Augmentation, moved
from datasets.degradations import GREY
from datasets.masks import circle
from ddbm.symmetry.groups import GROUPS, act

BOTH = ("bilinear", "bilinear")
ELEMENTS = st.sampled_from(GROUPS["D4"].elements)


def item_of(seed, height=12, width=12, masked=False):
    rng = np.random.default_rng(seed)
    target, source = (torch.from_numpy(rng.uniform(-1, 1, (c, height, width)).astype(np.float32)) for c in (3, 1))
    item = Item(target, source, None, None)
    return item.within(torch.from_numpy(rng.random((1, height, width)) < 0.7)) if masked else item


def turn(angle, factor=1.0):
    """Counter-clockwise as one sees it, of (column, row)."""
    return factor * torch.tensor([[cos(angle), sin(angle)], [-sin(angle), cos(angle)]], dtype=torch.float64)


def of(g):
    """The matrix of an element: mirror first, then quarter turns."""
    mirror = torch.tensor([[-1.0 if g[0] else 1.0, 0], [0, 1]], dtype=torch.float64)
    return turn(g[1] * pi / 2).round() @ mirror


def same(one, other, atol=1e-5):
    assert torch.equal(one.mask, other.mask)
    assert torch.allclose(one.target, other.target, atol=atol) and torch.allclose(one.source, other.source, atol=atol)


@given(g=ELEMENTS, seed=st.integers(0, 9), side=st.integers(5, 12))
def test_elements_of_the_group_are_such_moves(g, seed, side):
    item = item_of(seed, side, side, masked=True)
    turned = item._replace(target=act(g, item.target), source=act(g, item.source), mask=act(g, item.mask))
    same(moved(item, of(g), (0, 0), BOTH), turned)


@given(g=ELEMENTS, seed=st.integers(0, 50), angle=st.floats(-3, 3), factor=st.floats(0.6, 1.7))
def test_moves_commute_with_the_group(g, seed, angle, factor):
    """g A x = (g A g⁻¹) g x."""
    item = item_of(seed, masked=bool(seed % 2))
    matrix = turn(angle, factor)
    turned = item._replace(
        target=act(g, item.target), source=act(g, item.source), mask=None if item.mask is None else act(g, item.mask)
    )
    first = moved(item, matrix, (0, 0), BOTH)
    first = first._replace(target=act(g, first.target), source=act(g, first.source), mask=act(g, first.mask))
    second = moved(turned, of(g) @ matrix @ torch.linalg.inv(of(g)), (0, 0), BOTH)
    both = first.mask & second.mask  # a weight of one half, give or take a rounding
    assert (first.mask != second.mask).sum() <= 4
    same(first.within(both), second.within(both), 1e-4)


@pytest.mark.parametrize(("angle", "factor", "shift"), [(0.3, 1.0, (0, 0)), (-1.1, 1.3, (2, -1)), (0.0, 0.8, (0, 3))])
def test_images_by_scipy(angle, factor, shift):
    item = item_of(1, 15, 11)
    found = moved(item, turn(angle, factor), shift, BOTH)
    swap = np.array([[0, 1], [1, 0]])
    inverse = swap @ np.linalg.inv(turn(angle, factor).numpy()) @ swap  # of (row, column)
    centre = np.array([7.0, 5.0])
    offset = centre - inverse @ (centre + shift[::-1])
    for image, ours in ((item.target, found.target), (item.source, found.source)):
        for channel, other in zip(image.numpy(), ours.numpy(), strict=True):
            expected = affine_transform(channel.astype(float), inverse, offset, order=1, mode="constant")
            seen = affine_transform(np.ones_like(channel, float), inverse, offset, order=1, mode="grid-constant")
            whole = seen > 1 - 1e-6
            assert whole.sum() > 30 and np.abs(other - expected)[whole].max() < 1e-5
            assert np.array_equal(found.mask[0], seen > 0.5)
    assert not (found.target * ~found.mask).any()


@pytest.mark.parametrize("resize", ["nearest", "bilinear", "bicubic"])
def test_whole_pixels_are_moved_as_they_are(resize):
    item = item_of(2, 9, 10)
    found = moved(item, turn(0), (3, -2), (resize, resize))
    assert torch.equal(found.target[:, :7, 3:], item.target[:, 2:, :7])
    seen = torch.zeros(1, 9, 10, dtype=torch.bool)
    seen[:, :7, 3:] = True
    assert torch.equal(found.mask, seen) and not (found.target * ~seen).any()


def test_labels_stay_labels():
    item = item_of(3)._replace(target=(item_of(3).target > 0).float() * 2 - 1)
    found = moved(item, turn(0.4), (0, 0), ("nearest", "bilinear"))
    assert set(found.target[:, found.mask[0]].unique().tolist()) == {-1, 1}
    assert len(found.source.unique()) > 30


@given(seed=st.integers(0, 2**32), angle=st.floats(0, 180), scale=st.floats(0, 0.9), shift=st.integers(0, 4))
def test_pairs_stay_pairs(seed, angle, scale, shift):
    """What is equal before is equal after; the draw is the seed's alone; what turns stays in its circle."""
    item = item_of(0, masked=True)
    item = item._replace(source=item.target)
    found, again = (Affine(angle, scale, shift)(item, np.random.default_rng(seed)) for _ in range(2))
    assert torch.equal(found.source, found.target) and torch.equal(found.target, again.target)
    assert not (found.target * ~found.mask).any() and found.target.abs().max() <= 1
    assert not angle or not (found.mask & ~circle(12, 12)).any()


def test_moves_lie_within_their_limits():
    """Of a dot near the border: how far it moves, how it turns, and by which factor; all of the range is drawn."""
    item = Item(torch.zeros(1, 65, 65), torch.zeros(1, 65, 65), None, None)
    item.target[0, 30:35, 50:55] = 1  # 20 to the right of the centre
    rng, places = np.random.default_rng(0), []
    rows, columns = np.indices((65, 65)) - 32
    for settings_ in [{"angle": 30.0}, {"scale": 0.25}, {"shift": 5}]:
        found = []
        for _ in range(60):
            image = Affine(**settings_)(item, rng).target[0].numpy()
            found.append(((image * columns).sum() / image.sum(), (image * rows).sum() / image.sum()))
        places.append(np.array(found))
    angles = np.degrees(np.arctan2(*places[0].T[::-1]))
    assert np.abs(angles).max() < 30.5 and angles.min() < -25 and angles.max() > 25
    factors = places[1][:, 0] / 20
    assert 0.79 < factors.min() < 0.83 and 1.2 < factors.max() < 1.26 and 0.95 < np.median(factors) < 1.05
    steps = np.round(places[2] - [20, 0])
    assert {*np.unique(steps)} == {*range(-5, 6)} and np.allclose(steps, places[2] - [20, 0], atol=1e-4)


def test_training_batches_are_moved_and_no_others():
    """By the stream that crops and turns go on with, so that a training that resumes sees the same."""
    data, affine = open_data("histology", "val", image_size="16"), Affine(90, 0.2, 2)
    how = {"batch_size": 3, "seed": 4}
    turns = {"elements": GROUPS["C4"].elements}
    plain, found = (
        list(islice(train_batches(data, **how, augmentation=Augmentation(**more)), 3))
        for more in (turns, turns | {"affine": affine})
    )
    later = next(train_batches(data, **how, augmentation=Augmentation(affine=affine, **turns), start_step=2))
    assert torch.equal(found[2].target, later.target) and torch.equal(found[2].mask, later.mask)
    for step, (before, after) in enumerate(zip(plain, found, strict=True)):
        for j in range(3):
            rng = np.random.default_rng((4, 1, 3 * step + j))
            rng.integers(4)  # the element
            expected = affine(Item(before.target[j], before.source[j], None, None), rng)
            assert torch.equal(after.target[j], expected.target) and torch.equal(after.source[j], expected.source)
    batch = next(eval_batches(data, batch_size=2))
    assert batch.mask is None and torch.equal(batch.target[1], data.get(1, None).target)


@pytest.mark.parametrize(("size", "mask", "alpha"), [("native", "none", 0), ("4", "circle", 1), ("6x10", "none", 1)])
def test_sources_are_made_anew_from_their_targets(tmp_path, make, size, mask, alpha):
    """As if files were degraded step by step, at their own size, and then read; by the stream that turns go on with."""
    how = {"image_size": size, "mask": mask, "fit": "stretch"}
    for n in range(4):
        pixels = make.noise(12, 12, 3 + alpha, seed=n)
        pixels[:3, 1:, 3:] = 0
        for part in ("train", "val"):
            for side in ("source", "target"):
                make.write(tmp_path / "pairs" / part / side / f"{n}.png", pixels)
    data, held_out, files = (
        open_data("mine", part, data_dir=str(tmp_path / "pairs"), degrade=steps, **how)
        for part, steps in (("train", "mask_random:0.4,noise:9"), ("val", "noise:9"), ("val", ""))
    )
    elements = GROUPS["H"].elements
    batches = train_batches(data, batch_size=2, seed=5, augmentation=Augmentation(elements))
    found, sources = list(islice(batches, 4)), {n: [] for n in range(4)}  # two epochs
    for n in range(8):
        batch, j = found[n // 2], n % 2
        rng, index = np.random.default_rng((5, 1, n)), int(batch.index[j])
        pixels = make.noise(12, 12, 3 + alpha, seed=index)
        if alpha:  # what is hidden is the mean of what is seen
            hidden = pixels[..., 3] == 0
            pixels[hidden, :3] = np.rint(pixels[~hidden, :3].mean(0))
        levels = np.where(rng.random((12, 12, 1)) < 0.4, GREY, pixels[..., :3])
        pixels[..., :3] = np.rint(levels + rng.normal(0, 9.0, (12, 12, 3))).clip(0, 255)
        pixels[:3, 1:, 3:] = 0
        for side in ("source", "target"):
            make.write(tmp_path / f"{n}" / side / "0.png", pixels)
            make.write(tmp_path / f"{n}" / side / "1.png", pixels)
        expected = open_data("mine", "all", data_dir=str(tmp_path / f"{n}"), **how).get(0, None)
        g = elements[rng.integers(2)]
        assert torch.equal(batch.source[j], act(g, expected.source))
        assert torch.equal(batch.target[j], act(g, data.get(index, None).target))
        assert batch.mask is None or torch.equal(batch.mask[j], act(g, expected.mask))
        sources[index].append(expected.source)
    assert all(not torch.equal(*both) for both in sources.values())
    assert torch.equal(next(eval_batches(held_out, batch_size=2)).source[1], files.get(1, None).source)


def test_sources_that_cannot_be_made_anew(tmp_path, make):
    rng = np.random.default_rng(0)
    for name, kinds in (("a", (1, 3)), ("b", (3, 3)), ("c", (3, 3))):
        for side, channels in zip(("source", "target"), kinds, strict=True):
            pixels = make.noise(10, 10, channels, dtype=np.uint16 if name == "c" else np.uint8)
            for n in range(2):
                make.write(tmp_path / name / side / f"{n}.png", pixels)
    for name, steps, said in (
        ("a", "noise:3", "--degrade makes 3 channels, the sources have 1"),
        ("b", "downsample:3", "downsample:3 does not divide 10x10 pixels"),
        ("c", "noise:3", "uint16 pixels, --degrade takes 8 bits"),
    ):
        data = open_data("mine", "all", data_dir=str(tmp_path / name), degrade=steps)
        assert data.get(0, None).source.isfinite().all()
        with pytest.raises(ValueError, match=rf"target.0\.png: {said}.*leave --degrade out, or change it"):
            data.get(0, rng)
    for levels in ({"target_white": 1}, {"source_white": 4095}, {"source_black": 10, "source_white": 255}):
        with pytest.raises(ValueError, match=r"--degrade takes 0 for black and 255 for white: leave --\w+_white and"):
            open_data("mine", "all", data_dir=str(tmp_path / "b"), degrade="noise:3", **levels)
    assert open_data("mine", "all", data_dir=str(tmp_path / "b"), degrade="noise:3", target_white=255).get(0, rng)
    with pytest.raises(ValueError, match="histology has sources of its own: leave --degrade noise:3 out"):
        open_data("histology", "train", degrade="noise:3")
