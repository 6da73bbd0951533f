import pytest
import torch

from ddbm.symmetry.averaging import equivariance_error
from ddbm.symmetry.frames import Noise, canonical_frame, seed_of
from ddbm.symmetry.groups import GROUPS, act, inverse, multiply

groups = pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)


def pictures():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(5, 3, 6, 6, generator=generator) * 2 - 1


@groups
def test_the_frame_turns_with_the_image(group):
    """c(g x) = c(x) g^-1, so that the canonical image is the same for all turns."""
    for x in pictures():
        for g in group.elements:
            assert canonical_frame(act(g, x), group) == multiply(canonical_frame(x, group), inverse(g))


@groups
def test_the_frame_survives_saving_with_8_bits(group):
    for x in pictures():
        saved = ((x + 1) * 127.5).round().to(torch.uint8).float() / 127.5 - 1
        assert canonical_frame(saved, group) == canonical_frame(x, group)


def test_images_that_tie_at_8_bits_are_told_apart_at_16():
    x = torch.zeros(1, 4, 4, dtype=torch.float64)
    x[0, 0, 1] = 1e-3
    frames = {canonical_frame(act(g, x), GROUPS["D4"]) for g in GROUPS["D4"].elements}
    assert len(frames) == 8


@groups
def test_a_symmetric_image_takes_the_first_frame_and_keeps_its_canonical_image(group):
    flat = torch.full((3, 4, 4), 0.3)
    assert canonical_frame(flat, group) == (0, 0)
    mirrored = torch.rand(1, 4, 4)
    mirrored = mirrored + mirrored.flip(-1)
    images = [act(canonical_frame(y, group), y) for y in (act(g, mirrored) for g in group.elements)]
    assert all(torch.equal(images[0], image) for image in images)


def noise_for(seed, index, x, group):
    return Noise(seed, index, [inverse(canonical_frame(image, group)) for image in x])


@groups
def test_noise_turns_with_the_source(group):
    x = pictures()
    plain = [noise_for(3, range(5), x, group)(x) for _ in range(2)]
    assert torch.equal(*plain)
    for g in group.elements:
        noise = noise_for(3, range(5), act(g, x), group)
        assert torch.equal(noise(x), act(g, plain[0]))


def test_noise_is_keyed_by_seed_and_index_and_moves_on():
    x, group = pictures(), GROUPS["D4"]
    noise = noise_for(3, range(5), x, group)
    first, second = noise(x), noise(x)
    assert not torch.equal(first, second)
    alone = noise_for(3, [4], x[4:], group)
    assert torch.equal(alone(x[4:]), first[4:]) and torch.equal(alone(x[4:]), second[4:])
    assert len({seed_of(*key) for key in ((0,), (1,), (0, 1), (1, 0), (1, 1), (0, 2))}) == 6
    many = Noise(0, range(2000), [(0, 0)] * 2000)(x[:1].expand(2000, -1, -1, -1))
    assert abs(many.mean()) < 4 / many.numel() ** 0.5 and abs(many.std() - 1) < 0.01


def test_error_of_a_map_that_is_not_equivariant():
    x = torch.zeros(1, 1, 2, 2)
    x[0, 0, 0, 0] = 1
    errors = equivariance_error(lambda z: z * torch.tensor([1.0, 0.0]), x, GROUPS["H"])
    assert errors == {(1, 0): pytest.approx(1.0)}
    assert all(e == 0 for e in equivariance_error(lambda z: z**2, x, GROUPS["D4"]).values())
