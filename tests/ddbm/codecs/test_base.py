"""What all codecs share, pixels, and latents of a given mean and size."""

import math

import pytest
import torch

from ddbm.codecs import Pixels, Standardised, Stored, measure
from ddbm.codecs.base import digest_of
from ddbm.config import ImageShape
from ddbm.symmetry.pairs import Batch
from tests.ddbm.codecs.small import Cells
from tests.ddbm.runs import one_line


def test_pixels_cost_nothing():
    codec, shape = Pixels(), ImageShape(3, 5, 7, 9, 2)
    x, mask = torch.rand(2, 5, 7, 9), torch.rand(2, 1, 7, 9) > 0.5
    assert codec.encode(x, torch.randn_like) is x and codec.decode(x, 3) is x and codec.mask(mask) is mask
    assert codec.shape(shape) is shape and not list(codec.parameters())
    assert (codec.factor, codec.clip, codec.digest) == (1, (-1, 1), "")


def test_shape_of_latents_and_what_does_not_fit():
    codec = Cells()
    assert codec.shape(ImageShape(3, 1, 8, 12, 5)) == ImageShape(4, 4, 4, 6, 5)
    for shape, words in (
        (ImageShape(3, 2, 8, 8, 0), "takes images of 3 channels, or of 1, which it repeats, and the sources have 2"),
        (ImageShape(4, 3, 8, 8, 0), "and the targets have 4: use another --codec, or pixels"),
        (ImageShape(3, 3, 8, 7, 0), "8x7 cannot be cut into latent pixels of 2x2: use --image_size 8x8"),
        (ImageShape(3, 3, 1, 8, 0), "1x8 cannot be cut into latent pixels of 2x2: use --image_size 2x8"),
    ):
        with one_line(words):
            codec.shape(shape)
    with one_line("the images have 2"):
        codec.encode(torch.rand(1, 2, 4, 4))
    with one_line("the images have 4"):
        codec.decode(torch.rand(1, 4, 4, 4), 4)


def test_grey_images_are_repeated_and_come_back_as_the_mean():
    codec, grey = Cells(), torch.rand(2, 1, 4, 6) * 2 - 1
    z = codec.encode(grey)
    assert torch.equal(z, codec.encode(torch.cat([grey, grey, grey], 1)))
    colours, found = codec.decode(z, 3), codec.decode(z, 1)
    assert found.shape == (2, 1, 4, 6) and 0.2 < (colours.abs() == 1).float().mean() < 0.9  # some was clamped before
    torch.testing.assert_close(found[:, 0], (colours[:, 0] + colours[:, 1] + colours[:, 2]) / 3)


def test_a_sample_is_mean_plus_noise():
    codec, x, noise = Cells(0.25), torch.rand(1, 3, 4, 4), torch.randn(1, 4, 2, 2)
    asked = []
    z = codec.encode(x, lambda like: asked.append(like) or noise)
    torch.testing.assert_close(z, codec.encode(x) + noise / 4)
    assert torch.equal(asked[0], codec.encode(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert codec.encode(x).dtype == codec.decode(z, 3).dtype == torch.float32


@pytest.mark.parametrize("wrapped", [lambda codec: codec, lambda codec: Standardised(codec, (1.0,) * 4, (2.0,) * 4)])
def test_what_was_stored_stands_for_the_codec(wrapped):
    codec, stored, x, noise = wrapped(Cells(0.25)), wrapped(Stored(4)), torch.rand(2, 3, 4, 6), torch.randn(2, 4, 2, 3)
    mean, std = Cells(0.25).distribution(x)
    both = torch.cat([mean, std], 1)
    torch.testing.assert_close(stored.encode(both, lambda like: noise), codec.encode(x, lambda like: noise))
    for kept in (both, mean):
        torch.testing.assert_close(stored.encode(kept), codec.encode(x))
    mask = torch.rand(2, 1, 2, 3) > 0.5
    assert torch.equal(stored.mask(mask), mask)


def test_a_latent_pixel_counts_where_its_cell_is_inside():
    mask = torch.rand(3, 1, 6, 10) > 0.15
    found = Cells().mask(mask)
    assert found.shape == (3, 1, 3, 5) and found.dtype == torch.bool and 0.2 < found.float().mean() < 0.8
    for image in range(3):
        for row in range(3):
            for column in range(5):
                cell = [mask[image, 0, 2 * row + i, 2 * column + j].item() for i in (0, 1) for j in (0, 1)]
                assert found[image, 0, row, column].item() == (cell == [True] * 4)


def test_digest_of_weights():
    weights = {"b": torch.randn(3, 2, 4, 4), "a": torch.randn(5).bfloat16(), "count": torch.tensor(3)}
    own = digest_of(weights, [1])
    assert len(own) == 64
    last = {name: weights[name] for name in reversed(weights)}
    last["b"] = torch.nn.Parameter(last["b"].contiguous(memory_format=torch.channels_last))
    assert digest_of(last, [1]) == own
    changed = weights["b"].clone()
    changed[2, 1, 3, 3] = math.nextafter(float(changed[2, 1, 3, 3]), 9.0) + 1e-6
    others = [
        digest_of(weights, [2]),
        digest_of(weights | {"b": changed}, [1]),
        digest_of(weights | {"b": weights["b"].view(2, 3, 4, 4)}, [1]),
        digest_of(weights | {"a": weights["a"].view(torch.float16)}, [1]),
        digest_of({"c" if name == "b" else name: value for name, value in weights.items()}, [1]),
    ]
    assert len({own, *others}) == 6


def batch(seed, size=3, mask=False):
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.rand(2, size, 3, 8, 6, generator=generator) * 1.5 - torch.tensor([1, 0.7, 0.5])[:, None, None]
    inside = torch.rand(size, 1, 8, 6, generator=generator) > 0.1 if mask else None
    return Batch(*pairs.clamp(-1, 1), torch.arange(size), inside, None)


@pytest.mark.parametrize("mask", [False, True])
def test_measured_latents_have_mean_0_and_the_size_asked_for(mask):
    batches, codec = [batch(seed, mask=mask) for seed in range(4)], Cells()
    shift, scale = measure(codec, batches, 0.7)
    standard = Standardised(codec, shift, scale)
    values = []
    for b in batches:
        for images in (b.target, b.source):
            z = standard.encode(images).movedim(1, -1)
            values += [z[codec.mask(b.mask)[:, 0]] if mask else z.flatten(0, 2)]
    values = torch.cat(values).double()
    torch.testing.assert_close(values.mean(0), torch.zeros(4).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(values.std(0, correction=0), torch.full((4,), 0.7).double(), rtol=0, atol=1e-6)
    assert (torch.tensor(shift).abs() > 0.02).all()


def test_measuring_does_not_depend_on_the_cut():
    whole = batch(0, 6, mask=True)
    whole = whole._replace(target=whole.target.double(), source=whole.source.double())
    halves = [whole.rows(slice(0, 1)), whole.rows(slice(1, 6))]
    once, twice = measure(Cells(), [whole]), measure(Cells(), halves)
    assert once[1] == pytest.approx(twice[1], rel=1e-12) and once[0] == pytest.approx(twice[0], rel=1e-12)
    assert once == measure(Cells(), iter([whole]), 0.5)


def test_channels_that_are_constant_and_images_of_nothing():
    codec, b = Cells(), batch(0)
    with torch.no_grad():
        codec.there[1] = 0
    still = b._replace(target=torch.full_like(b.target, 0.3), source=torch.full_like(b.source, 0.3))
    assert measure(codec, [b])[1][1] == 1 and measure(codec, [b])[1][0] != 1
    shift, scale = measure(codec, [still, still])
    assert scale == (1, 1, 1, 1) and shift[0] == pytest.approx(0.3 * codec.there[0].sum().item(), rel=1e-6)
    exact = codec.posterior
    codec.posterior = lambda x: (exact(x)[0] + 3 + 1e-6 * torch.rand(4, 1, 1), torch.zeros(1))
    assert measure(codec, [b, b])[1][1] == 1  # but for rounding
    codec.posterior = exact
    nothing = b._replace(mask=torch.zeros(3, 1, 8, 6, dtype=torch.bool))
    assert measure(codec, [nothing, b]) == measure(codec, [b])
    with one_line("no image has a latent pixel inside its mask"):
        measure(codec, [nothing])


def test_standardised_is_a_codec_with_an_exact_inverse():
    codec = Cells(0.25)
    standard = Standardised(codec, (0.1, -0.2, 0.3, 4.0), (2.0, 0.5, 1.0, 3.0)).double()
    x, z = torch.rand(2, 3, 4, 4).double(), torch.randn(2, 4, 2, 2).double()
    raw = codec.encode(x)
    torch.testing.assert_close(standard.encode(x)[:, 3], (raw[:, 3] - 4) * 3)
    torch.testing.assert_close(standard.encode(x)[:, 1], (raw[:, 1] + 0.2) / 2, rtol=0, atol=1e-7)
    torch.testing.assert_close(standard.decode(standard.encode(x), 3), codec.decode(raw, 3), rtol=0, atol=1e-14)
    latents = torch.stack([z[:, 0] / 2 + 0.1, z[:, 1] * 2 - 0.2, z[:, 2] + 0.3, z[:, 3] / 3 + 4], 1)
    torch.testing.assert_close(standard.decoded(z), codec.decoded(latents), rtol=0, atol=1e-6)
    spread = standard.encode(x, torch.ones_like) - standard.encode(x)
    torch.testing.assert_close(spread[0, :, 0, 0], torch.tensor([0.5, 0.125, 0.25, 0.75]).double())
    assert standard.shape(ImageShape(3, 1, 8, 8, 0)) == codec.shape(ImageShape(3, 1, 8, 8, 0))
    assert (standard.digest, standard.clip, standard.factor) == ("cells", None, 2)
    assert standard.state_dict().keys() == {"codec.there", "codec.back"}
    for shift, scale in (((0.0,) * 3, (1.0,) * 4), ((0.0,) * 4, (1.0, 1.0, 0.0, 1.0)), ((math.nan,) * 4, (1.0,) * 4)):
        with one_line("latents have 4 channels, expected as many shifts and positive scales"):
            Standardised(codec, shift, scale)
