"""Sums in place of tensors: every sampler gives what it gives on tensors; noise is that of the position."""

import numpy as np
import pytest
import torch

from ddbm.bridges.bridge import Bridge
from ddbm.bridges.samplers import SAMPLERS, plan
from ddbm.config import BridgeConfig
from ddbm.files import canvas
from ddbm.symmetry.frames import seed_of
from ddbm.symmetry.groups import GROUPS, act, inverse
from ddbm.translation import sums
from ddbm.translation.sums import Field, Sum, strips

OFF = {  # settings off their defaults
    "heun": dict(churn=0.6, guidance=1.3), "dbim": dict(order=3), "dbmsolver": dict(order=1), "ecsi": dict(churn=0.8),
    "euler_maruyama": dict(guidance=0.7),
}  # fmt: skip
RANDOM = np.random.default_rng(2)


def field(key, channels, height, width, above=0, before=0):
    """The noise of an image in its frame: blocks of 64 x 64 pixels, each of a generator of its own, and of its margins:

    `above` the first row and `before` the first column lie the blocks of number -1, counted from 2^32.
    """
    out = torch.empty(channels, 64 * (1 + -(-height // 64)), 64 * (1 + -(-width // 64)))
    for i in range(0, out.shape[1], 64):
        for j in range(0, out.shape[2], 64):
            numbers = (n // 64 - 1 if n else 2**32 - 1 for n in (i, j))
            generator = torch.Generator().manual_seed(seed_of(*key, *numbers))
            out[:, i : i + 64, j : j + 64] = torch.randn(channels, 64, 64, generator=generator)
    return out[:, 64 - above : 64 - above + height, 64 - before : 64 - before + width].numpy()


def drawn(shape, key=(3, 1), frame=(0, 0), mask=None):
    out = np.zeros(shape, np.float32)
    Field([key] * len(out), [frame] * len(out), mask).add(out, 1.0)
    return out


@pytest.mark.parametrize("schedule", ["ve", "vp"])
@pytest.mark.parametrize(
    ("name", "settings"), [*OFF.items(), ("dbim", dict(eta=0.6)), ("dbmsolver", {}), ("heun", dict(churn=0.0))]
)
def test_samplers_give_on_sums_what_they_give_on_tensors(monkeypatch, name, settings, schedule):
    """The denoiser is one that no bridge knows; images are worked on by a few rows, on the disk."""
    monkeypatch.setattr(sums, "STRIP", 50)
    monkeypatch.setattr(canvas, "DISK", 0)
    bridge = Bridge(BridgeConfig(schedule=schedule, sigma_min=0.02, sigma_max=2.5, beta_d=1.4, beta_min=0.3))
    ready = plan(name, bridge, 11, "uniform", **settings)
    x_T = RANDOM.uniform(-1, 1, (2, 1, 5, 7)).astype(np.float32)
    frames, mask = [(0, 1), (1, 0)], RANDOM.random((2, 1, 5, 7)) < 0.8
    asked, fields = [], []

    def D(x, t):
        return torch.tanh(0.8 * x - 0.3) + 0.3 * torch.cos(3 * t)

    def denoise(x, t):
        found = x.settled(x_T.shape, None)
        asked.append(isinstance(found, np.memmap))
        return Sum([(1.0, D(torch.from_numpy(np.array(found)), t).float().numpy())])

    def noise(like):
        fields.append(Field([(7, len(fields), 0), (7, len(fields), 1)], frames, mask))
        return Sum([(1.0, fields[-1])])

    def same_noise(like):
        out = np.zeros(x_T.shape, np.float32)
        next(given).add(out, 1.0)
        return torch.from_numpy(out).double()

    x_0, spent = ready.run(denoise, Sum([(1.0, x_T)]), noise)
    given = iter(fields)
    wanted, nfe = ready.run(D, torch.from_numpy(x_T).double(), same_noise)
    assert spent == nfe > 5 and next(given, None) is None and asked[1:] == [True] * (spent - 1)
    assert len(fields) == {"heun": 4 if settings.get("churn") else 0}.get(name, len(fields))
    np.testing.assert_allclose(x_0.settled(x_T.shape, None), wanted, atol=3e-5, rtol=1e-4)


def test_every_sampler_is_tried():
    assert OFF.keys() == {name for name, sampler in SAMPLERS.items() if not sampler.adaptive}


def test_sums_by_value():
    a, b = (RANDOM.standard_normal((1, 2, 3, 4)).astype(np.float32) for _ in range(2))
    one = Sum([(1.0, a)])
    assert one.settled(a.shape, None) is a
    made = (one * torch.tensor(2.0) - Sum([(0.5, b)])) * 3 + one
    assert len(made.terms) == 2 and one.terms == [(1.0, a)]
    found = made.settled(a.shape, None)
    np.testing.assert_allclose(found, 7 * a - 1.5 * b, rtol=1e-6, atol=1e-6)
    assert made.settled(a.shape, None) is found and len((made + one).terms) == 2
    half = Sum([(0.5, a)]).settled(a.shape, None)
    assert half is not a and np.array_equal(half, a / 2)
    noisy = (Sum([(1.0, a)]) + Sum([(1.0, Field([(1,)], [(0, 0)], None))]) * 2).settled(a.shape, None)
    np.testing.assert_allclose(noisy[0], a[0] + 2 * field((1,), 2, 3, 4), rtol=1e-6, atol=1e-6)
    assert Sum.dtype == torch.float64


def test_strips_cover_all_rows_and_are_small(monkeypatch):
    for limit, height, parts in ((24, 9, 5), (23, 9, 9), (1, 9, 9), (1000, 9, 1), (36, 9, 3)):
        monkeypatch.setattr(sums, "STRIP", limit)
        found = strips((2, 3, height, 2))
        rows = [row for part in found for row in range(height)[part]]
        assert rows == [*range(height)] and len(found) == parts


@pytest.mark.parametrize("size", [(3, 5), (64, 64), (65, 130)])
def test_noise_is_that_of_key_and_position(size):
    """Whatever the size and the other images; it is added to what is there."""
    wanted = field((3, 1, 4), 2, *size)
    out = np.full((2, 2, *size), 0.5, np.float32)
    Field([(8, 8), (3, 1, 4)], [(0, 0)] * 2, None).add(out, -2.0)
    np.testing.assert_allclose(out[1], 0.5 - 2 * wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out[0], 0.5 - 2 * field((8, 8), 2, *size), rtol=1e-5, atol=1e-5)
    assert np.array_equal(drawn((1, 2, 70, 140), (3, 1, 4))[0, :, : size[0], : size[1]], wanted)


@pytest.mark.parametrize("frame", GROUPS["D4"].elements)
def test_noise_turns_with_the_frame_and_keeps_to_the_mask(frame):
    """frame · noise is the noise of the frame's own image, of rectangles too."""
    plain = torch.from_numpy(field((3, 1), 2, *((66, 70) if frame[1] % 2 else (70, 66))))
    mask = RANDOM.random((1, 1, 70, 66)) < 0.5
    found = drawn((1, 2, 70, 66), frame=frame, mask=mask)[0]
    assert np.array_equal(found, act(inverse(frame), plain).numpy() * mask[0])
    assert np.array_equal(drawn((1, 2, 70, 66), frame=frame)[0], act(inverse(frame), plain).numpy())


def test_noise_is_standard_normal_and_white():
    noise = drawn((1, 2, 200, 200))[0]
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    levels = np.sort(noise.ravel())[[noise.size // 100, noise.size // 4, noise.size // 2]]
    np.testing.assert_allclose(levels, [-2.326, -0.674, 0], atol=0.04)
    for moved in (np.roll(noise, n, axis) for n in (1, 64) for axis in (1, 2)):
        assert abs((noise * moved).mean()) < 0.02  # neither neighbours nor blocks are alike
    assert abs((noise[0] * noise[1]).mean()) < 0.03
    assert abs((noise * drawn((1, 2, 200, 200), (3, 2))[0]).mean()) < 0.02
