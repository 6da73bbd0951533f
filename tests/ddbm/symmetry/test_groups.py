import itertools

import pytest
import torch

from datasets.loader import act as act_of_data
from ddbm.symmetry.groups import GROUPS, act, inverse, multiply

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


@groups
def test_identity_first_and_no_element_twice(group):
    assert group.elements[0] == (0, 0)
    x = torch.arange(9.0).reshape(3, 3)
    assert len({tuple(act(g, x).flatten().tolist()) for g in group.elements}) == len(group)


def test_h_mirrors_the_width_and_v_the_height():
    x = torch.arange(12.0).reshape(3, 4)
    assert torch.equal(act(GROUPS["H"].elements[1], x), x.flip(1))
    assert torch.equal(act(GROUPS["V"].elements[1], x), x.flip(0))
    assert torch.equal(act(GROUPS["C4"].elements[1], x), torch.rot90(x, 1, (0, 1)))


@groups
def test_augmentation_means_the_same(group):
    x = torch.randn(3, 6, 6)
    for g in group.elements:
        assert torch.equal(act(g, x), act_of_data(g, x))


@groups
def test_only_groups_with_quarter_turns_refuse_rectangles(group):
    group.check_size(8, 8)
    if any(act(g, torch.zeros(2, 4)).shape != (2, 4) for g in group.elements):
        with pytest.raises(ValueError, match="square"):
            group.check_size(8, 16)
    else:
        group.check_size(8, 16)
