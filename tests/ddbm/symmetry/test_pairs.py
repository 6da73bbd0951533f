"""A batch moves, is cut and turns as one."""

import torch

from ddbm.symmetry.groups import act
from ddbm.symmetry.pairs import Batch


def test_all_that_lies_in_a_picture_turns_and_nothing_else():
    target, source = torch.randn(3, 2, 4, 4), torch.randn(3, 1, 4, 4)
    batch = Batch(target, source, torch.arange(3), torch.rand(3, 1, 4, 4) > 0.5, torch.tensor([2, 0, 1]))
    turned = batch.turned((1, 1))
    for side in ("target", "source", "mask"):
        assert torch.equal(getattr(turned, side), act((1, 1), getattr(batch, side)))
    assert torch.equal(turned.index, batch.index) and torch.equal(turned.label, batch.label)
    part = batch.rows(slice(1, 3))
    assert all(torch.equal(own, whole[1:]) for own, whole in zip(part, batch, strict=True))
    bare = Batch(target, source, torch.arange(3), None, None)
    assert bare.turned((0, 2))[3:] == bare.rows(slice(2))[3:] == bare.to("cpu")[3:] == (None, None)
