"""Large images through a codec, tile by tile."""

from types import SimpleNamespace

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


def of(codec, channels=3):
    """What tiles ask of a model with this codec."""
    shape = SimpleNamespace(target_channels=channels)
    return SimpleNamespace(
        codec=codec, encode=codec.encode, decode=lambda z: codec.decode(z, channels), images=shape,
        parameters=codec.parameters,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def sizes(monkeypatch):
    """Sets the side of tiles and what they have in common."""

    def change(side, overlap=0.25):
        monkeypatch.setattr(tiles, "SIDE", side)
        monkeypatch.setattr(tiles, "OVERLAP", overlap)

    return change


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
def test_what_sees_no_neighbours_is_the_same_in_tiles(sizes, height, width):
    sizes(5, 0.3)
    codec, x = Cells(), images(height, width)
    with torch.no_grad():
        z = codec.encode(x)
        found = tiles.encoded(of(codec), x.numpy())
        np.testing.assert_allclose(found, z, atol=1e-5)
        for channels in (1, 3):
            decoded = tiles.decoded(of(codec, channels), z.numpy())
            np.testing.assert_allclose(decoded, codec.decode(z, channels), atol=1e-5)
    assert found.dtype == decoded.dtype == np.float32


def test_no_more_than_a_tile_is_ever_seen(sizes):
    sizes(8)
    codec, x, seen = Cells(), images(40, 60), []
    run, back = codec.posterior, codec.decoded
    codec.posterior = lambda x: seen.append(x.shape) or run(x)
    codec.decoded = lambda z: seen.append((*z.shape[:2], 2 * z.shape[2], 2 * z.shape[3])) or back(z)
    tiles.decoded(of(codec), tiles.encoded(of(codec), x.numpy()))
    assert {shape[2:] for shape in seen} == {(16, 16)} and {shape[0] for shape in seen} == {1}
    assert len(seen) == 2 * 2 * 3 * 5  # images, and tiles of 8 x 8 on 20 x 30 with a quarter in common


@pytest.mark.parametrize("layers", ["tied", "regular"])
def test_tiles_commute_with_the_group(sizes, layers):
    sizes(4)
    codec = Symmetric(autoencoder(layers))
    x = images(24, 40).numpy()
    z = tiles.encoded(of(codec), x)
    y = tiles.decoded(of(codec), z)
    assert z.shape == (2, 4, 6, 10) and y.shape == x.shape
    for g in GROUPS["D4"].elements[1::4]:
        turned = [act(g, torch.from_numpy(v)).numpy() for v in (x, z, y)]
        found = tiles.encoded(of(codec), turned[0])
        assert np.linalg.norm(found - turned[1]) < 1e-5 * np.linalg.norm(z)
        found = tiles.decoded(of(codec), turned[1])
        assert np.linalg.norm(found - turned[2]) < 1e-5 * np.linalg.norm(y)


def borders_to_elsewhere(y, whole, places):
    """How much larger tiling makes the steps between neighbours at some places than at others."""
    steps = [np.abs(np.diff(v[..., ::2], axis=3)).mean((0, 1, 2)) for v in (y, whole)]
    share, there = steps[0] / steps[1], [place - 1 for place in places]
    return share[there].mean() / np.delete(share, there).mean()


def test_no_seams(sizes, monkeypatch):
    """Of a decoder that sees a mean: steps across borders are as elsewhere, but not where tiles are cut off hard."""
    sizes(16)
    codec = Cells()
    back, borders = codec.decoded, [8, 12, 16, 20, 24]
    codec.decoded = lambda z: back(z - z.mean((2, 3), keepdim=True)) / 10
    torch.manual_seed(1)
    z = torch.nn.functional.interpolate(torch.randn(1, 4, 3, 4), size=(24, 32), mode="bicubic")
    with torch.no_grad():
        whole = codec.decode(z, 3).numpy()
    starts, shares = axis(32, 16, 0.25).starts, windows.shares
    assert starts == [0, 8, 16]
    assert borders_to_elsewhere(tiles.decoded(of(codec), z.numpy()), whole, borders) < 1.4

    def hard(starts, side):
        own, all_of = shares(starts, side), np.zeros((len(starts), starts[-1] + side))
        for i, start in enumerate(starts):
            all_of[i, start : start + side] = own[i]
        largest = all_of.argmax(0)
        return np.stack([largest[start : start + side] == i for i, start in enumerate(starts)]).astype(np.float32)

    monkeypatch.setattr(windows, "shares", hard)
    assert borders_to_elsewhere(tiles.decoded(of(codec), z.numpy()), whole, borders) > 1.5


def test_pixels_stay_where_they_are():
    x = images(8, 8).numpy()
    assert tiles.encoded(of(Pixels()), x) is x and tiles.decoded(of(Pixels()), x) is x


def test_averaged_tiles_commute_whatever_the_codec_is(sizes):
    sizes(4)
    model, x, group = of(Symmetric(autoencoder("plain", "none"))), images(16, 16).numpy(), GROUPS["D4"]
    z, plain = tiles.encoded(model, x, group), tiles.encoded(model, x)
    for g in group.elements[1::3]:
        turned = act(g, torch.from_numpy(x)).numpy()
        for found, like, error in (
            (tiles.encoded(model, turned, group), z, 1e-5),
            (tiles.encoded(model, turned), plain, 1),
        ):
            far = np.linalg.norm(found - act(g, torch.from_numpy(like)).numpy()) / np.linalg.norm(like)
            assert far < error if error < 1 else far > 1e-2
        found = tiles.decoded(model, act(g, torch.from_numpy(z)).numpy(), group)
        wanted = act(g, torch.from_numpy(tiles.decoded(model, z, group))).numpy()
        assert np.linalg.norm(found - wanted) < 1e-5 * np.linalg.norm(wanted)


def test_our_own_codec_in_tiles_is_that_of_the_whole_but_for_their_edges(sizes):
    """It sees no more than some latent pixels around, which the middle of a tile has, and shares favour the middle."""
    sizes(16)
    codec = Symmetric(autoencoder("regular"))
    torch.manual_seed(1)
    z = torch.randn(1, 4, 32, 32)
    with torch.no_grad():
        whole = codec.decode(z, 3).numpy()
    found = tiles.decoded(of(codec), z.numpy())
    assert np.linalg.norm(found - whole) < 0.1 * np.linalg.norm(whole)
