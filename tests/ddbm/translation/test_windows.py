"""Windows lie symmetrically, cover all and add up to 1; the denoiser of the whole is blended from theirs."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from ddbm.files import canvas
from ddbm.symmetry.groups import GROUPS, act, inverse
from ddbm.translation.windows import Windowed, axis
from tests.ddbm.test_model import model

RANDOM = np.random.default_rng(4)


class Local(nn.Module):
    """A network of two levels that depends on all it is given; slope: on the place in the window, too."""

    levels = 2

    def __init__(self, slope=0.0):
        super().__init__()
        self.slope, self.weight, self.sizes = slope, nn.Parameter(torch.zeros(1)), []

    def forward(self, x, c_noise, source, label=None):
        self.sizes.append(tuple(x.shape))
        down, across = (torch.linspace(0, 1, n) for n in x.shape[2:])
        where = self.slope * (across - 2 * down[:, None] ** 2)
        numbers = c_noise / 300 + (0 if label is None else 0.3 * label)
        return 0.7 * torch.sin(2 * x) + source[:, :1] - 0.5 * source[:, -1:] + where + numbers[:, None, None, None]


def local(slope=0.0, channels=(3, 2), classes=0, schedule=None, **shape):
    """A model of it."""
    made = model("none", "plain", schedule, channels=channels, classes=classes, **shape)
    made.network = Local(slope)
    return made


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("side", [1, 2, 7, 8])
@pytest.mark.parametrize("more", [0, 1, 2, 3, 7, 12, 25, 40])
def test_windows_cover_the_axis_symmetrically(side, more, overlap):
    length = side + more
    starts, shares = axis(length, side, overlap)
    assert starts[0] == 0 and starts[-1] == more and starts == sorted(starts)
    assert starts == [more - start for start in reversed(starts)]
    common = [side - (b - a) for a, b in pairwise(starts)]
    assert all(n >= min(side - 1, overlap * side - 1e-9) for n in common)
    total, bell = np.zeros(length), np.sin((np.arange(side) + 0.5) / side * np.pi) ** 2
    for start, share in zip(starts, shares, strict=True):
        total[start : start + side] += share
        assert share.min() > 0
    np.testing.assert_allclose(total, 1, rtol=1e-6)
    np.testing.assert_allclose(shares, shares[::-1, ::-1], rtol=1e-6)
    first = bell / sum(np.pad(bell, (start, side))[:side] for start in starts if start < side)
    np.testing.assert_allclose(shares[0], first, rtol=1e-5)


@pytest.mark.parametrize(
    ("length", "side", "overlap", "starts"),
    [
        (8, 8, 0.5, [0]),
        (9, 8, 0.5, [0, 1]),
        (10, 8, 0.5, [0, 2]),
        (16, 8, 0.5, [0, 4, 8]),
        (20, 8, 0.5, [0, 4, 8, 12]),
        (21, 8, 0.5, [0, 2, 5, 8, 11, 13]),  # none can lie in the middle
        (20, 8, 0.25, [0, 6, 12]),
        (24, 8, 0.0, [0, 8, 16]),
        (10, 8, 0.99, [0, 1, 2]),
    ],
)
def test_no_more_windows_than_it_takes(length, side, overlap, starts):
    assert axis(length, side, overlap).starts == starts


def made(net, source, mask=None, label=None, group=None, batch_size=5, folder=None, shares=None):
    axes = axis(source.shape[2], 8, 0.5), axis(source.shape[3], 8, 0.3)
    return axes, Windowed(
        net, source, mask, label, axes, group, batch_size, folder, (lambda n: None) if shares is None else shares.append
    )


@pytest.mark.parametrize("group", ["", "D4"])
def test_the_whole_is_blended_from_the_windows(group, monkeypatch):
    """Clipped, masked, weighted by sin² in both directions; labels and sources are those of each image."""
    net, t = local(1.0, classes=3), torch.tensor(0.4, dtype=torch.float64)
    source, x = (RANDOM.uniform(-1, 1, (2, n, 13, 18)).astype(np.float32) for n in (2, 3))
    mask, label = RANDOM.random((2, 1, 13, 18)) < 0.7, torch.tensor([2, 0])
    total, weights = np.zeros((2, 1, 13, 18)), np.sin((np.arange(8) + 0.5) / 8 * np.pi) ** 2
    wanted = np.zeros((2, 3, 13, 18))
    elements = GROUPS[group or "none"].elements
    for top in (0, 1, 4, 5):
        for left in (0, 5, 10):
            part = (..., slice(top, top + 8), slice(left, left + 8))
            ours, theirs = torch.from_numpy(source[part].copy()), torch.from_numpy(x[part].copy())
            D = sum(act(inverse(g), net.denoiser(act(g, ours), label)(act(g, theirs), t)) for g in elements)
            D = (D / len(elements)).clamp(-1, 1).detach().numpy() * mask[part]
            wanted[part] += D * weights * weights[:, None]
            total[part] += weights * weights[:, None]
    assert axis(18, 8, 0.3).starts == [0, 5, 10] and (np.abs(wanted / total) == 1).any()
    for disk in (canvas.DISK, 0):
        monkeypatch.setattr(canvas, "DISK", disk)
        shares = []
        _, windowed = made(net, source, mask, label, GROUPS[group] if group else None, shares=shares)
        with torch.inference_mode():
            np.testing.assert_allclose(windowed(x, t), wanted / total, rtol=1e-5, atol=1e-5)
        assert sum(shares) == pytest.approx(1) and len(shares) == (24 if group else 5)  # windows, |G| images each


def test_windows_at_once(monkeypatch):
    net = local()
    source = RANDOM.uniform(-1, 1, (2, 2, 13, 18)).astype(np.float32)
    x = RANDOM.uniform(-1, 1, (2, 3, 13, 18)).astype(np.float32)
    t = torch.tensor(0.4, dtype=torch.float64)
    found = []
    for size, batches in ((24, [24]), (7, [7, 7, 7, 3]), (1, [1] * 24)):
        net.network.sizes.clear()
        _, windowed = made(net, source, batch_size=size)
        with torch.inference_mode():
            found.append(windowed(x, t))
        assert net.network.sizes == [(n, 3, 8, 8) for n in batches]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-5, atol=1e-6)


def test_windows_that_do_not_fit_the_memory_are_halved(monkeypatch):
    net, most = local(), 3
    source = RANDOM.uniform(-1, 1, (2, 2, 13, 18)).astype(np.float32)
    x = RANDOM.uniform(-1, 1, (2, 3, 13, 18)).astype(np.float32)
    t = torch.tensor(0.4, dtype=torch.float64)
    with torch.inference_mode():
        whole = made(net, source)[1](x, t)
    forward = net.network.forward

    def small(x, *others):
        if len(x) > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return forward(x, *others)

    monkeypatch.setattr(net.network, "forward", small)
    net.network.sizes.clear()
    shares = []
    _, windowed = made(net, source, batch_size=11, shares=shares)
    with torch.inference_mode():
        np.testing.assert_allclose(windowed(x, t), whole, rtol=1e-5, atol=1e-6)
    assert [size[0] for size in net.network.sizes] == [2, *[3] * 7, 1] and sum(shares) == pytest.approx(1)
    most = 0
    with pytest.raises(RuntimeError, match="memory"), torch.inference_mode():
        windowed(x, t)
    monkeypatch.setattr(net.network, "forward", lambda *given: 1 / torch.zeros(2, 3).reshape(5))
    with pytest.raises(RuntimeError, match="shape"), torch.inference_mode():
        windowed(x, t)
