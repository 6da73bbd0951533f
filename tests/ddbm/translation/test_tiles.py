"""Large images through a codec, tile by tile."""

import numpy as np
import pytest
import torch

from ddbm.codecs import Pixels
from ddbm.codecs.symmetric import Symmetric
from ddbm.symmetry.groups import GROUPS, act
from ddbm.translation import tiles, windows
from ddbm.translation.windows import axis
from tests.ddbm.codecs.small import Cells, autoencoder


def images(height, width, channels=3, seed=0):
    return torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_windows_of_finer_pixels():
    """The same places and, at the middle of a pixel that is cut into an odd number, the same shares."""
    coarse = axis(23, 9, 0.4)
    fine = coarse.finer(3)
    assert fine.starts == [3 * start for start in coarse.starts] and fine.shares.shape == (len(coarse.starts), 27)
    np.testing.assert_allclose(fine.shares[:, 1::3], coarse.shares, atol=1e-6)
    total = np.zeros(69)
    for start, share in zip(fine.starts, fine.shares, strict=True):
        total[start : start + 27] += share
    np.testing.assert_allclose(total, 1, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(20, 34), (6, 50), (10, 10)])
def test_what_sees_no_neighbours_is_the_same_in_tiles(height, width):
    codec, x = Cells(), images(height, width)
    with torch.no_grad():
        z = codec.encode(x)
        found = tiles.encoded(codec, x.numpy(), 5, 0.3)
        np.testing.assert_allclose(found, z, atol=1e-5)
        for channels in (1, 3):
            decoded = tiles.decoded(codec, z.numpy(), channels, 5, 0.3)
            np.testing.assert_allclose(decoded, codec.decode(z, channels), atol=1e-5)
    assert found.dtype == decoded.dtype == np.float32


def test_no_more_than_a_tile_is_ever_seen():
    codec, x, seen = Cells(), images(40, 60), []
    run, back = codec.posterior, codec.decoded
    codec.posterior = lambda x: seen.append(x.shape) or run(x)
    codec.decoded = lambda z: seen.append((*z.shape[:2], 2 * z.shape[2], 2 * z.shape[3])) or back(z)
    tiles.decoded(codec, tiles.encoded(codec, x.numpy(), 8), 3, 8)
    assert {shape[2:] for shape in seen} == {(16, 16)} and {shape[0] for shape in seen} == {1}
    assert len(seen) == 2 * 2 * 3 * 5  # images, and tiles of 8 x 8 on 20 x 30 with a quarter in common


@pytest.mark.parametrize("layers", ["tied", "regular"])
def test_tiles_commute_with_the_group(layers):
    codec = Symmetric(autoencoder(layers))
    x = images(24, 40).numpy()
    z = tiles.encoded(codec, x, 4)
    y = tiles.decoded(codec, z, 3, 4)
    assert z.shape == (2, 4, 6, 10) and y.shape == x.shape
    for g in GROUPS["D4"].elements[1::4]:
        turned = [act(g, torch.from_numpy(v)).numpy() for v in (x, z, y)]
        found = tiles.encoded(codec, turned[0], 4)
        assert np.linalg.norm(found - turned[1]) < 1e-5 * np.linalg.norm(z)
        found = tiles.decoded(codec, turned[1], 3, 4)
        assert np.linalg.norm(found - turned[2]) < 1e-5 * np.linalg.norm(y)


def borders_to_elsewhere(y, whole, places):
    """How much larger tiling makes the steps between neighbours at some places than at others."""
    steps = [np.abs(np.diff(v, axis=3)).mean((0, 1, 2)) for v in (y, whole)]
    share, there = steps[0] / steps[1], [place - 1 for place in places]
    return share[there].mean() / np.delete(share, there).mean()


def test_no_seams(monkeypatch):
    """Steps across the borders of tiles are as those elsewhere; they are not where tiles are cut off hard."""
    codec = Symmetric(autoencoder("tied", model_channels=16))
    torch.manual_seed(1)
    z = torch.nn.functional.interpolate(torch.randn(1, 4, 3, 4), size=(24, 32), mode="bicubic")
    with torch.no_grad():
        whole = codec.decode(z, 3).numpy()
    starts, shares = axis(32, 16, 0.25).starts, windows.shares
    assert starts == [0, 8, 16]
    assert borders_to_elsewhere(tiles.decoded(codec, z.numpy(), 3, 16), whole, [32, 48, 64, 80, 96]) < 1.4

    def hard(starts, side):
        own, all_of = shares(starts, side), np.zeros((len(starts), starts[-1] + side))
        for i, start in enumerate(starts):
            all_of[i, start : start + side] = own[i]
        largest = all_of.argmax(0)
        return np.stack([largest[start : start + side] == i for i, start in enumerate(starts)]).astype(np.float32)

    monkeypatch.setattr(windows, "shares", hard)
    assert borders_to_elsewhere(tiles.decoded(codec, z.numpy(), 3, 16), whole, [32, 48, 64, 80, 96]) > 1.5


def test_pixels_stay_where_they_are():
    x = images(8, 8).numpy()
    assert tiles.encoded(Pixels(), x) is x and tiles.decoded(Pixels(), x, 3) is x
