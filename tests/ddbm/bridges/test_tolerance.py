"""The least error over shifts of the target: by brute force, with masks, and what it does to the gradient."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddbm.bridges.preconditioning import squared_error
from ddbm.symmetry.groups import GROUPS, act


def images(seed, count=3, height=7, width=6):
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.normal(size=(count, 2, height, width))) for _ in range(2)]


def by_hand(D, x, inside, tolerance):
    """NumPy, pixel by pixel: of every shift the mean over pixels that lie inside both, if they are a quarter of all."""
    best = []
    for image, target, mask in zip(D.numpy(), x.numpy(), inside.numpy()[:, 0], strict=True):
        errors = []
        for dy, dx in itertools.product(range(-tolerance, tolerance + 1), repeat=2):
            total = [
                (image[:, r, c] - target[:, r + dy, c + dx]) ** 2
                for r, c in np.ndindex(mask.shape)
                if mask[r, c] and 0 <= r + dy < mask.shape[0] and 0 <= c + dx < mask.shape[1] and mask[r + dy, c + dx]
            ]
            errors += [np.mean(total)] if 4 * len(total) >= mask.sum() else []
        best.append(min(errors))
    return best


@pytest.mark.parametrize("tolerance", [0, 1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_by_hand(tolerance, masked):
    D, x = images(0)
    mask = torch.from_numpy(np.random.default_rng(1).random((3, 1, 7, 6)) < 0.6) if masked else None
    inside = torch.ones(3, 1, 7, 6, dtype=torch.bool) if mask is None else mask
    assert squared_error(D, x, mask, tolerance).tolist() == pytest.approx(by_hand(D, x, inside, tolerance))


def test_a_target_that_is_off_by_two_pixels_costs_nothing():
    D, _ = images(2)
    x = D.roll((2, -1), (2, 3))
    inside = torch.zeros(3, 1, 7, 6, dtype=torch.bool)
    inside[..., 2:5, 2:4] = True  # what was rolled around lies outside
    found = [squared_error(D, x, None, p) for p in (0, 1, 2)]
    assert (found[0] > 1).all() and (found[1] > 0.3).all() and (found[2] == 0).all()


def test_the_gradient_is_that_of_the_best_shift():
    D, _ = images(3, count=1)
    x = D.roll(1, 2) + 0.1
    D.requires_grad_()
    (gradient,) = torch.autograd.grad(squared_error(D, x, None, 1).sum(), D)
    expected = torch.full_like(D, -0.2 / (2 * 6 * 6))
    expected[:, :, -1] = 0  # its partner lies outside
    assert torch.allclose(gradient, expected)


@given(seed=st.integers(0, 99), g=st.sampled_from(GROUPS["D4"].elements), tolerance=st.integers(0, 2))
def test_it_is_the_same_for_turned_pairs(seed, g, tolerance):
    D, x = images(seed, height=6)
    assert torch.allclose(squared_error(act(g, D), act(g, x), None, tolerance), squared_error(D, x, None, tolerance))


def test_of_nothing_inside_it_is_nothing():
    D, x = images(4)
    assert squared_error(D, x, torch.zeros(3, 1, 7, 6, dtype=torch.bool), 1).tolist() == [0, 0, 0]


def test_a_few_pixels_that_fit_by_chance_do_not_count():
    D, x = images(5, count=1, height=9, width=9)
    mask = torch.zeros(1, 1, 9, 9, dtype=torch.bool)
    mask[..., 2:5, 2:5] = True
    x[..., 2, 2] = D[..., 4, 4]  # what a shift by two rows and columns leaves
    assert squared_error(D, x, mask, 2) > 0.1
