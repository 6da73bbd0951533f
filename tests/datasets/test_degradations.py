"""Every way of making a picture worse, against a closed form or another library."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from datasets.degradations import DEGRADATIONS, GREY, degraded, parsed


def picture(height=16, width=16, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def one(name, image, value, seed=0):
    return degraded(image, [(name, value)], np.random.default_rng(seed))


def test_noise_is_gaussian_and_clipped_at_both_ends():
    flat = np.full((200, 200, 1), 128, np.uint8)
    found = one("noise", flat, 20).astype(float) - 128
    assert abs(found.mean()) < 0.3 and found.std() == pytest.approx(np.hypot(20, 1 / np.sqrt(12)), rel=0.01)
    assert abs((np.abs(found) > 20.5).mean() - 0.305) < 0.01  # P(|z| > 1.025)
    low = one("noise", np.zeros((200, 200, 1), np.uint8), 20).astype(float)
    assert low.min() == 0 and low.mean() == pytest.approx(
        20 / np.sqrt(2 * np.pi), rel=0.02
    )  # of max(z, 0), not wrapped
    high = one("noise", np.full((200, 200, 1), 255, np.uint8), 20)
    assert high.max() == 255 and high.mean() == pytest.approx(255 - 20 / np.sqrt(2 * np.pi), rel=0.001)


def test_blur_spreads_a_point_as_a_gaussian():
    point = np.zeros((33, 33, 1), np.uint8)
    point[16, 16] = 255
    found = one("blur", point, 1)[..., 0]
    y, x = np.mgrid[-16:17, -16:17]
    weights = np.exp(-(x**2 + y**2) / 2)
    assert np.abs(found - 255 * weights / weights.sum()).max() <= 0.6
    assert (one("blur", np.full((9, 9, 3), 77, np.uint8), 3) == 77).all()  # also at the edges


def test_downsample_is_means_enlarged_bicubic():
    image = picture(8, 12)
    means = np.stack([[image[i : i + 4, j : j + 4].mean((0, 1)) for j in (0, 4, 8)] for i in (0, 4)])
    import torch

    small = torch.tensor(means).permute(2, 0, 1)[None]
    large = torch.nn.functional.interpolate(small, (8, 12), mode="bicubic", antialias=True)  # Pillow's kernel, a = -0.5
    assert np.abs(one("downsample", image, 4) - large[0].permute(1, 2, 0).numpy().clip(0, 255)).max() <= 0.51
    with pytest.raises(ValueError, match="downsample:5 does not divide 8x12 pixels"):
        one("downsample", image, 5)
    for size in ((10, 12), (12, 10)):
        with pytest.raises(ValueError, match="does not divide"):
            one("downsample", picture(*size), 4)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillows(channels):
    image = picture(channels=channels)
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, "jpeg", quality=20)
    assert (one("jpeg", image, 20).squeeze() == np.asarray(Image.open(file))).all()
    assert (
        np.abs(one("jpeg", image, 20).astype(int) - image).mean()
        > np.abs(one("jpeg", image, 95).astype(int) - image).mean()
    )
    with pytest.raises(ValueError, match="takes 1 or 3 channels, found 2"):
        one("jpeg", picture(channels=2), 20)


def lost(found, image):
    gone = (found == GREY).all(-1)
    assert (found[~gone] == image[~gone]).all()
    return gone


def test_masks():
    image = picture(64, 64) // 2  # never GREY
    assert GREY == 128
    centre = lost(one("mask_center", image, 0.5), image)
    assert centre[16:48, 16:48].all() and centre.sum() == 32 * 32
    assert lost(one("mask_random", image, 0.3), image).mean() == pytest.approx(0.3, abs=0.02)
    assert lost(one("mask_random", image, 1), image).all()
    strokes = [lost(one("mask_brush", image, n), image).mean() for n in (0, 1, 4)]
    assert strokes[0] == 0 < strokes[1] < strokes[2] < 0.9
    for size in (5, 7, 8, 9):
        small = picture(size, size) // 2
        assert not lost(one("mask_center", small, 0), small).any() and lost(one("mask_center", small, 1), small).all()


@pytest.mark.parametrize("steps", [[("blur", 3.0)], [("downsample", 4.0)], [("jpeg", 30.0)], [("l0", 0.05)]])
def test_hidden_colours_do_not_bleed(steps):
    """Beside pure red that is hidden, one colour stays nearly what it is."""
    image, mask = np.full((16, 16, 3), (90, 160, 200), np.uint8), np.ones((16, 16), bool)
    mask[:, 9:], image[:, 9:] = False, (255, 0, 0)
    found = degraded(image, steps, np.random.default_rng(0), mask)
    assert np.abs(found[mask].astype(int) - (90, 160, 200)).max() <= 2
    bleeding = degraded(image, steps, np.random.default_rng(0))[:, 8].astype(int)
    assert steps[0][0] == "l0" or np.abs(bleeding - (90, 160, 200)).max() > 9
    assert degraded(image, [("noise", 0.0)], np.random.default_rng(0), ~mask)[0, 12].tolist() == [255, 0, 0]


@pytest.mark.parametrize("name", ["mask_center", "mask_brush", "mask_random"])
@pytest.mark.parametrize("size", [(16, 16), (15, 16), (12, 20)])
def test_what_is_lost_lies_alike_on_both_sides(name, size):
    """Exactly for the box of any share, in the mean for what is drawn."""
    image, count = np.zeros((*size, 1), np.uint8), 1500
    for value in (0.3, 0.4, 0.55, 0.9) if name == "mask_center" else (1,) if name == "mask_brush" else (0.4,):
        seeds = range(1 if name == "mask_center" else count)
        share = np.mean([one(name, image, value, seed)[..., 0] == GREY for seed in seeds], 0)
        for axis in (0, 1):
            profile = share.mean(1 - axis)
            off = np.abs(profile - profile[::-1]).max()
            assert off == 0 if name == "mask_center" else off < 0.012, (value, profile)


def test_a_stroke_is_a_capsule():
    """The area of one stroke, away from the edges, is that of a rectangle and a circle."""
    image = np.zeros((400, 600, 1), np.uint8)  # a stroke is as wide as the shorter side by 8
    for seed in range(40):
        ends = np.random.default_rng(seed).random((2, 2)) * (400, 600)
        if ends.min() > 30 and (ends.max(0) < (370, 570)).all():
            break
    area = lost(one("mask_brush", image, 1, seed), image).sum()
    length, width = np.hypot(*(ends[0] - ends[1])), 400 / 8
    assert area == pytest.approx(length * width + np.pi * width**2 / 4, rel=0.02)


def test_stain_keeps_one_of_three():
    from skimage.color import rgb2hed

    image = picture() // 8 + 200
    for n in range(3):
        stains = rgb2hed(image)
        kept = rgb2hed(one("stain", image, n))
        assert np.abs(kept[..., n] - np.maximum(stains[..., n], 0)).max() < 0.05
    with pytest.raises(ValueError, match="stain takes RGB and 0, 1 or 2, found 3 channels and 3"):
        one("stain", image, 3)


def test_the_stain_is_that_of_histology():
    from datasets.histology import pictures as own

    target, source = ((p[:, :32, :32].permute(1, 2, 0).numpy() + 1) * 127.5 for p in own())
    assert (one("stain", np.rint(target).astype(np.uint8), 0) == np.rint(source)).all()


def l0_by_matrices(image, weight):
    """The same algorithm with dense linear systems instead of Fourier transforms."""
    height, width, channels = image.shape
    n = height * width
    index = np.arange(n).reshape(height, width)
    steps = []
    for axis in (0, 1):
        step = -np.eye(n)
        step[index.ravel(), np.roll(index, -1, axis).ravel()] += 1
        steps.append(step)
    start = image.reshape(n, channels) / 255
    found, beta = start, 2 * weight
    while beta < 1e5:
        gradients = [step @ found for step in steps]
        kept = sum((g**2).sum(1) for g in gradients) >= weight / beta
        right = start + beta * sum(step.T @ (g * kept[:, None]) for step, g in zip(steps, gradients, strict=True))
        found = np.linalg.solve(np.eye(n) + beta * sum(step.T @ step for step in steps), right)
        beta *= 2
    return np.rint(found.reshape(image.shape) * 255).clip(0, 255)


def test_l0_solves_what_the_paper_says():
    image = (picture(7, 9) // 8 + np.where(np.arange(9) > 4, 150, 30)[None, :, None]).astype(np.uint8)
    found = one("l0", image, 0.02)
    assert np.abs(found - l0_by_matrices(image, 0.02)).max() <= 1
    across = np.abs(np.diff(found.astype(int), axis=1)).max(-1)
    assert across[:, 4].min() > 80 and np.delete(across, 4, 1).max() <= 10  # the edge stays, the rest is flat
    assert (one("l0", image, 0) == image).all()


@given(st.sampled_from(["noise", "blur", "downsample", "mask_center", "mask_random"]), st.integers(0, 99))
def test_laws_turn_with_the_picture(name, seed):
    """Without the draws: turning first or last is the same."""

    class Still:
        def normal(self, *a):
            return 3.0

        def random(self, shape):
            return np.zeros(shape)

    image, value = picture(8, 8, seed=seed), {"downsample": 4, "mask_center": 0.5, "mask_random": 0.5}.get(name, 2)
    for turn in (np.rot90, np.fliplr):
        first = DEGRADATIONS[name](np.ascontiguousarray(turn(image)), value, Still()).astype(int)
        last = turn(DEGRADATIONS[name](image, value, Still())).astype(int)
        assert np.abs(first - last).max() <= 1  # bicubic sums round


@given(st.lists(st.tuples(st.sampled_from(sorted(DEGRADATIONS)), st.just(1)), min_size=1, max_size=4))
def test_parsed_keeps_the_order(steps):
    assert parsed(",".join(f"{name}:{value}" for name, value in steps)) == steps


def test_order_counts():
    image = picture()
    rng = np.random.default_rng
    one_way, other = (
        degraded(image, parsed(text), rng(0)) for text in ("mask_center:0.5,blur:2", "blur:2,mask_center:0.5")
    )
    assert (other[4:12, 4:12] == GREY).all() and not (one_way[4:12, 4:12] == GREY).all()
    assert (one_way[8, 8] != image[8, 8]).any()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names nothing: give NAME:NUMBER"), ("noise", "noise: expected noise:NUMBER"),
        ("blur:x", "blur:x: expected"), ("noise:-1", "of 0 or more"), ("blur:inf", "blur:inf: expected"),
        ("mask_random:50", "mask_random:50: expected 1 at most"), ("jpeg:200", "expected 100 at most, as a quality"),
        ("jpeg:1.5", "jpeg:1.5: expected a whole number of 1 or more"), ("jpeg:0", "a whole number of 1 or more"),
        ("downsample:0", "whole number of 1 or more"), ("mask_brush:0.5", "whole number of 0 or more"),
        ("stain:0.5", "whole number of 0 or more"), ("nose:1", "unknown degradation 'nose'.*did you mean noise"),
    ],
)  # fmt: skip
def test_mistakes(text, said):
    with pytest.raises(ValueError, match=said):
        parsed(text)
