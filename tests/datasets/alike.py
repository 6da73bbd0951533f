"""What two readings of the same pairs must have in common."""

import torch


def equal(one, other):
    assert (one.names, one.size, one.classes, one.split) == (other.names, other.size, other.classes, other.split)
    for index in range(len(one)):
        a, b = one.get(index, None), other.get(index, None)
        masks = [torch.ones(1, *one.size) > 0 if item.mask is None else item.mask for item in (a, b)]
        assert torch.equal(a.target, b.target) and torch.equal(a.source, b.source) and a.label == b.label
        assert torch.equal(*masks)
