"""What `datasets.check` measures: shifts, hashes, orientations, and the group that suits them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from datasets.check import measures
from datasets.prepare.rotated_mnist import IMAGES, LABELS, idx
from ddbm.symmetry.groups import GROUPS, view

SIDE = 64
MNIST = Path(__file__).resolve().parents[2] / "../shared/data/mnist"


def texture(seed, side=SIDE):
    """uint8 [H, W]: smooth blobs with sharp borders, the same in every direction."""
    smooth = gaussian_filter(np.random.default_rng(seed).normal(size=(side, side)), 3, mode="wrap")
    return np.clip(128 + 70 * smooth / smooth.std() + 40 * (smooth > 0), 0, 255).astype(np.uint8)


@given(seed=st.integers(0, 30), rows=st.integers(-6, 6), columns=st.integers(-6, 6))
def test_a_shift_is_measured(seed, rows, columns):
    """A crop of the same picture, elsewhere."""
    whole = texture(seed, 96).astype(np.float32)[..., None]
    source = measures.grey(whole[16:80, 16:80], None)
    target = measures.grey(whole[16 - rows : 80 - rows, 16 - columns : 80 - columns], None)
    found = measures.shift_between(source, target)
    assert found == (rows, columns) or (found == (0, 0) and max(abs(rows), abs(columns)) < 2)


@pytest.mark.parametrize(("rows", "columns"), [(20, 0), (0, -20)])
def test_what_lies_far_off_is_no_shift(rows, columns):
    whole = texture(0, 128).astype(np.float32)[..., None]
    source = measures.grey(whole[32:96, 32:96], None)
    target = measures.grey(whole[32 - rows : 96 - rows, 32 - columns : 96 - columns], None)
    assert measures.shift_between(source, target) == (0, 0)


@given(seed=st.integers(0, 30), g=st.sampled_from(GROUPS["D4"].elements))
def test_orientations_turn_with_the_image(seed, g):
    image = measures.grey(texture(seed)[..., None] + np.linspace(0, 90, SIDE)[:, None], None)
    found = measures.orientation(np.ascontiguousarray(view(g, image)))
    assert found == pytest.approx(measures.turned(measures.orientation(image), g), abs=1e-5)


def test_where_it_is_bright_and_which_way_edges_run():
    columns, rows = np.meshgrid(np.arange(64.0), np.arange(64.0))
    half = 0.5**0.5
    for image, expected in (
        (columns, (1, 0, 0, 0, 1, 0, 1, 0, 1, 0)), (-rows, (0, -1, 0, 0, 0, -1, -1, 0, 1, 0)),
        (columns + rows, (half, half, 0, 0, half, half, 0, 1, -1, 0)),
        (columns - rows, (half, -half, 0, 0, half, -half, 0, -1, -1, 0)),
    ):  # fmt: skip
        assert measures.orientation(measures.grey(image[..., None], None)) == pytest.approx(expected, abs=0.03)
    dots = np.zeros((64, 64))
    dots[[29, 30, 31, 30], [20, 20, 20, 28]] = 1  # columns 2, 2, 2 left of their mean and 6 right: 192 of 240
    assert measures.orientation(measures.grey(dots[..., None], None))[2:4] == pytest.approx((0.8, 0), abs=1e-4)
    teeth = columns % 8  # slopes 1 six times and -3 twice a period, but 1 at both borders, squared with their signs
    found = measures.orientation(measures.grey(teeth[..., None], None))
    assert found[4:6] == pytest.approx(((8 * (6 - 2 * 9) + 2 * 9 + 2) / (8 * (6 + 2 * 9) - 2 * 9 + 2), 0), abs=1e-4)


@pytest.mark.skipif(not MNIST.is_dir(), reason="no MNIST beside the project")
def test_digits_are_not_alike_under_a_half_turn_but_ones_are():
    digits, labels = idx(MNIST / "t10k-images-idx3-ubyte.gz", IMAGES), idx(MNIST / "t10k-labels-idx1-ubyte.gz", LABELS)
    for which, alike in (([1], True), ([7], False), (range(10), False)):
        chosen = digits[np.isin(labels, which)][:200]
        found = np.stack([measures.orientation(measures.grey(digit[..., None], None)) for digit in chosen])
        assert (measures.suited(found)[1]["C2"] <= 1) == alike, which


@pytest.mark.parametrize(
    ("name", "image"),
    {
        "none": lambda x, y, noise: noise + 3 * x + 5 * y + 4 * np.sin(9 * (x + 0.4 * y)),
        "H": lambda x, y, noise: noise + 3 * y,
        "V": lambda x, y, noise: noise + 3 * x,
        "D2": lambda x, y, noise: noise + 3 * np.cos(15 * x + 6 * noise.mean()),
        "D4": lambda x, y, noise: 3 * noise,
    }.items(),
)
def test_the_group_that_suits(name, image):
    found = []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        noise = gaussian_filter(rng.normal(size=(32, 32)), 2)
        y, x = np.meshgrid(*[np.linspace(-1, 1, 32)] * 2, indexing="ij")
        found.append(measures.orientation((image(x, y, noise / noise.std() / 3)).astype(np.float32)))
    suits, off = measures.suited(np.stack(found))
    assert suits == name and off["none"] == 0
    held = measures.suited(np.stack(found), turns=False)[0]
    assert held == (name if name != "D4" else "D2")  # of a training that is not square
    assert all(off[other] <= 1 for other, group in GROUPS.items() if {*group.elements} <= {*GROUPS[name].elements})


def test_how_far_small_images_lie_apart_where_they_do_most():
    image = texture(0).astype(float)
    image = (image - image.mean()) / image.std()
    other = image.copy()
    other[8:16, 24:32] += 0.5  # one of 64 parts: the whole gets a mean of 0.5 / 64, and another deviation
    rest = other - other.mean()
    expected = ((image - rest / rest.std()) ** 2)[8:16, 24:32].mean()
    assert 0.2 < expected < 0.3 and measures.apart(3 * image + 7, 20 * other) == pytest.approx(expected)
    assert measures.apart(image, 5 * image - 2) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("side", [2, 4])
def test_small_images_are_means_of_areas(side):
    checks = (np.indices((8 * side, 8 * side)).sum(0) % 2).astype(np.float32)
    assert measures.shrunk(checks, side)[1:-1, 1:-1] == pytest.approx(0.5, abs=0.01)


def test_fits_of_many_are_those_of_each_two():
    sides = [[measures.grey(texture(n + k, 64)[..., None], None) for n in range(3)] for k in (0, 1)]
    expected = [[measures.likenesses(source, target)[0] for target in sides[1]] for source in sides[0]]
    assert measures.fits(*sides) == pytest.approx(np.array(expected), rel=1e-3, abs=1e-4)


def test_hashes_are_those_of_the_same_image_and_no_other():
    """Noise and another size leave a hash as it is; other images and turned ones have half of the bits."""
    smalls = [measures.shrunk(measures.grey(texture(n, 96)[..., None], None), measures.SMALL) for n in range(12)]
    hashes = np.stack([measures.hash_of(small) for small in smalls])
    noisy = measures.hash_of(smalls[0] + np.random.default_rng(0).normal(0, 0.05, smalls[0].shape))
    assert (noisy != hashes[0]).sum() <= measures.NEAR
    apart = (hashes[:, None] != hashes).sum(-1) + 64 * np.eye(12, dtype=int)
    assert apart.min() > 2 * measures.NEAR
    assert (measures.hash_of(np.ascontiguousarray(view((0, 1), smalls[0]))) != hashes[0]).sum() > 2 * measures.NEAR
