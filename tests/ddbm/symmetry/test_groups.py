"""Groups against what they do to pixels; a batch moves, is cut and turns as one."""

import itertools

import numpy as np
import pytest
import torch

from ddbm.symmetry.groups import GROUPS, act, inverse, multiply
from ddbm.symmetry.pairs import Batch

groups = pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)


@groups
def test_tables_agree_with_the_action_on_pixels(group):
    x = torch.arange(2 * 5 * 5.0).reshape(2, 5, 5)
    for (i, g), (j, h) in itertools.product(enumerate(group.elements), repeat=2):
        gh = group.elements[group.products[i][j]]
        assert gh == multiply(g, h)
        assert torch.equal(act(gh, x), act(g, act(h, x)))
    for i, g in enumerate(group.elements):
        assert group.elements[group.inverses[i]] == inverse(g)
        assert torch.equal(act(inverse(g), act(g, x)), x)
    assert group.elements[0] == (0, 0) and len({str(act(g, x)) for g in group.elements}) == len(group)


def test_groups_are_made_of_what_their_names_say():
    x = np.arange(9).reshape(3, 3)
    mirrors, half = {"H": np.fliplr(x), "V": np.flipud(x)}, np.rot90(x, 2)
    turns, diagonals = [np.rot90(x, k) for k in range(4)], [x.T, half.T]
    made = {
        "none": [x], **{name: [x, y] for name, y in mirrors.items()}, "C2": [x, half], "C4": turns,
        "D2": [x, half, *mirrors.values()], "D4": [*turns, *mirrors.values(), *diagonals],
    }  # fmt: skip
    assert made.keys() == GROUPS.keys()
    for name, group in GROUPS.items():
        assert group.name == name
        found = [act(g, torch.from_numpy(x)).tolist() for g in group.elements]
        assert sorted(found) == sorted(y.tolist() for y in made[name])
        group.check_size(8, 8)
        if name in ("C4", "D4"):
            with pytest.raises(ValueError, match=f"group {name} .* square ones, not 8x16"):
                group.check_size(8, 16)
        else:
            group.check_size(8, 16)
    assert np.array_equal(act((1, 1), torch.from_numpy(x)), np.rot90(np.fliplr(x)))  # mirrored first, then turned left


def test_all_that_lies_in_a_picture_turns_and_nothing_else():
    target, source = torch.randn(3, 2, 4, 4), torch.randn(3, 1, 4, 4)
    batch = Batch(target, source, torch.arange(3), torch.rand(3, 1, 4, 4) > 0.5, torch.tensor([2, 0, 1]))
    turned = batch.turned((1, 1))
    for side in ("target", "source", "mask"):
        assert torch.equal(getattr(turned, side), act((1, 1), getattr(batch, side)))
    assert torch.equal(turned.index, batch.index) and torch.equal(turned.label, batch.label)
    part = batch.rows(slice(1, 3))
    assert all(torch.equal(own, whole[1:]) for own, whole in zip(part, batch, strict=True))
    assert all(x.device.type == "meta" for x in batch.to("meta"))
    bare = Batch(target, source, torch.arange(3), None, None)
    assert bare.turned((0, 2))[3:] == bare.rows(slice(2))[3:] == bare.to("cpu")[3:] == (None, None)
