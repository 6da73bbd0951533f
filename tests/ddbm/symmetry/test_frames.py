"""Canonical frames and the noise that turns with them."""

import pytest
import torch

from ddbm.symmetry.frames import Noise, canonical_frame, seed_of
from ddbm.symmetry.groups import GROUPS, act, inverse, multiply

groups = pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)


@groups
def test_the_frame_and_the_noise_turn_with_the_image(group):
    """c(g x) = c(x) g^-1, so that the canonical image is the same for all turns; 8 bits do not change it."""
    x = torch.rand(5, 3, 6, 6) * 2 - 1
    frames = [canonical_frame(image, group) for image in x]
    plain = Noise(3, range(5), [inverse(c) for c in frames])(x)
    saved = ((x + 1) * 127.5).round().to(torch.uint8).float() / 127.5 - 1
    assert [canonical_frame(image, group) for image in saved] == frames
    for g in group.elements:
        turned = [canonical_frame(act(g, image), group) for image in x]
        assert turned == [multiply(c, inverse(g)) for c in frames]
        assert torch.equal(Noise(3, range(5), [inverse(c) for c in turned])(x), act(g, plain))


def at(levels):
    """A row of pixels by their 8-bit grey levels."""
    return torch.tensor(levels, dtype=torch.float64).view(1, 1, -1) / 127.5 - 1


@pytest.mark.parametrize(
    ("row", "mask", "frame"),
    [  # the mirrored row is compared with the row from the left
        (at([7, 9, 9, 8]), None, (0, 0)),
        (at([8, 9, 9, 7]), None, (1, 0)),
        (at([7, 9.1, 8.8, 7]), None, (1, 0)),  # a tie at 8 bits
        (at([7.2, 9, 8, 7]), None, (1, 0)),  # 8 bits, of all pixels, before 16
        (at([7, 10, 9.9, 7]), None, (1, 0)),  # 0x0a0a and 0x09f0
        (at([7, 9.1, 9, 7 + 1e-4]), None, (1, 0)),  # 16 bits before exact values
        (at([7 + 1e-4, 9, 9, 7]), None, (1, 0)),  # of negative numbers
        (at([7, 9, 9, 7]), None, (0, 0)),
        (at([7, 255.1, 255, 7]), None, (1, 0)),  # a little beyond white is white
        (at([7, 0, -0.1, 7]), None, (1, 0)),
        (at([7, 9, 9, 7]), [0, 1, 1, 0], (0, 0)),
        (at([7, 9, 9, 7]), [1, 0, 1, 0], (1, 0)),
        (at([7, 9, 9, 8]), [1, 0, 1, 0], (0, 0)),
    ],
)
def test_what_decides_a_tie(row, mask, frame):
    mask = None if mask is None else torch.tensor(mask).bool().view(1, 1, -1)
    assert canonical_frame(row, GROUPS["H"], mask) == frame
    assert canonical_frame(row, GROUPS["none"], mask) == (0, 0)


def test_noise_is_that_of_seed_and_index_and_moves_on():
    """Unfinished samplings go on with it, so the very numbers are kept."""
    assert [seed_of(0), seed_of(0, 0), seed_of(3, 4, 5)] == [
        3717377837946358015, 5064105440874769477, 6788576067624976080,
    ]  # fmt: skip
    streams = [torch.Generator().manual_seed(seed_of(3, i)) for i in (2, 7)]
    noise = Noise(3, [2, 7], [(0, 0), (1, 1)])
    for _ in range(2):
        drawn = noise(torch.empty(2, 1, 4, 4, dtype=torch.float64))
        wanted = [torch.randn(1, 4, 4, generator=stream).double() for stream in streams]
        assert torch.equal(drawn, torch.stack([wanted[0], act((1, 1), wanted[1])]))
