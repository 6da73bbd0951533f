"""Averages over a group, the regulariser and the error that is left, against their formulas."""

import pytest
import torch

from ddbm.symmetry.averaging import Averaged, disagreement, equivariance_error
from ddbm.symmetry.groups import GROUPS, act, inverse


def toy(most=99, error=None):
    """A denoiser that depends on every argument and commutes with nothing; it takes at most so many images."""

    def make(source, label):
        def denoise(x, t):
            if len(x) > most:
                raise error or torch.OutOfMemoryError("no room")
            parts = source.cumsum(-1), label[:, None, None, None], t.reshape(-1, 1, 1, 1)
            return x.roll(1, -2) * parts[2] + parts[0] * parts[1]

        return denoise

    return make


@pytest.mark.parametrize("t", [torch.tensor(1.3), torch.tensor([0.2, 1.7, 5.0])], ids=["one time", "a time an image"])
def test_the_average_is_the_formula_and_the_same_in_parts(t):
    """mean over g of g^-1 D(g x, t, g x_T), also where the memory holds 4 elements of 3 images, or one, or none."""
    x, source = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64)
    label, group = torch.tensor([2, 0, 1]), GROUPS["D4"]
    wanted = sum(act(inverse(g), toy()(act(g, source), label)(act(g, x), t)) for g in group.elements) / 8
    for most, at_once in ((99, 8), (14, 4), (3, 1)):
        averaged = Averaged(toy(most), source, label, group)
        torch.testing.assert_close(averaged(x, t), wanted)
        assert averaged.at_once == at_once
    for most, error in ((2, None), (3, RuntimeError("another"))):
        with pytest.raises(RuntimeError, match="no room" if error is None else "another"):
            Averaged(toy(most, error), source, label, group)(x, t)


def test_the_disagreement_is_the_formula():
    output, x = torch.randn(2, 2, 1, 3, 3)
    weight = torch.randn(3, requires_grad=True)
    found = disagreement(output, lambda z, c: z.cumsum(-1) * weight * c, x, torch.tensor(0.5), (1, 1))
    wanted = (output - act((1, 1), (act((1, 1), x).cumsum(-1) * weight / 2))) ** 2  # a mirror is its own inverse
    torch.testing.assert_close(found, wanted.detach())
    quarter = disagreement(output, lambda z, c: z.cumsum(-1), x, torch.tensor(0.5), (0, 1))
    torch.testing.assert_close(quarter, (output - act((0, 3), act((0, 1), x).cumsum(-1))) ** 2)
    assert not found.requires_grad


def test_error_of_a_map_that_is_not_equivariant():
    """g f(x) is (0, 0.3; 0, 0), f(g x) is 0, f(x) has norm 0.3 for the first image, and is 0 for the second."""
    x = torch.zeros(2, 1, 2, 2)
    x[0, 0, 0, 0] = 0.3
    errors = equivariance_error(lambda z: z * torch.tensor([1.0, 0.0]), x, GROUPS["H"])
    assert list(errors) == [(1, 0)] and errors[1, 0].tolist() == [1, 0]
    assert all((e == 0).all() for e in equivariance_error(lambda z: z**2, x, GROUPS["D4"]).values())
