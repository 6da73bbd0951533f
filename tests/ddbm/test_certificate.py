"""The certificate against its definitions, in NumPy."""

from dataclasses import astuple

import numpy as np
import pytest
import torch

from ddbm.certificate import TIMES, compare, pointwise
from ddbm.networks.backbones import BACKBONES
from ddbm.symmetry.frames import seed_of
from ddbm.symmetry.groups import GROUPS
from ddbm.symmetry.pairs import Batch
from tests.ddbm.bridges import papers
from tests.ddbm.bridges.test_bridge import scalings
from tests.ddbm.test_model import formula, model


def turn(g, x):
    return np.rot90(x[..., ::-1] if g[0] else x, g[1], (-2, -1)).copy()


def rows_by_hand(name, outputs, image):
    """‖S(g x) - g S(x)‖ / ‖S(x)‖ an image; mean |difference| / 2; share of 8-bit values that differ."""
    found = []
    for g in list(outputs)[1:]:
        got, wanted = outputs[g], turn(g, outputs[0, 0])
        errors = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(got, wanted, strict=True)]
        bytes_of = [np.round((np.clip(x, -1, 1) + 1) * 127.5) for x in (got, wanted)]
        rest = (np.abs(got - wanted).mean() / 2, (bytes_of[0] != bytes_of[1]).mean()) if image else (None, None)
        found.append((name, "fp32", g, np.mean(errors), np.max(errors), *rest))
    return found


def test_errors_of_network_and_denoiser_by_value():
    """States of the bridge at five shares of [t_min, T], each of all pairs, which turn with noise of their own."""
    net, source, _, label = formula("ve")
    s, target = papers.Schedule(net.config.bridge), torch.rand(2, 3, 8, 8, dtype=torch.float64) * 2 - 1
    assert TIMES == (0.02, 0.25, 0.5, 0.75, 0.98)
    t = np.repeat([s.t_min + share * (s.T - s.t_min) for share in TIMES], 2).reshape(-1, 1, 1, 1)
    noise = torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(seed_of(6))).double().numpy()
    y, x_0, labels = np.tile(source, (5, 1, 1, 1)), np.tile(target, (5, 1, 1, 1)), label.repeat(5)
    x = s.a(t) * y.mean(1, keepdims=True) + s.b(t) * x_0 + s.c(t) * noise
    skip, out, scale_in, c_noise, _ = scalings(net.config.bridge, s.a(t), s.b(t), s.c2(t), t)
    networks, denoisers = {}, {}
    for g in GROUPS["D4"].elements:
        state, times = turn(g, x), torch.from_numpy(c_noise).float().flatten()
        inputs = torch.from_numpy(scale_in * state), times, torch.from_numpy(turn(g, y)), labels
        networks[g] = net.network(*inputs).detach().numpy()
        denoisers[g] = skip * state + out * networks[g]
    wanted = rows_by_hand("network", networks, False) + rows_by_hand("denoiser", denoisers, True)
    found = pointwise(net, Batch(target, source, torch.arange(2), None, label), GROUPS["D4"], seed=6)
    for row, values in zip(found, wanted, strict=True):
        known = 7 if row.map == "denoiser" else 5  # the network's output is no image
        assert astuple(row)[:3] == values[:3] and (row.absolute, row.changed)[known - 5 :] == (None, None)[known - 5 :]
        assert astuple(row)[3:known] == pytest.approx(values[3:known], rel=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(("layers", "group"), [("tied", "D4"), ("regular", "C4"), ("plain", "C4")])
def test_networks_that_are_symmetric_and_one_that_is_not(backbone, layers, group):
    net, (target, source) = model(group, layers, backbone=backbone), torch.rand(2, 2, 3, 8, 8) * 2 - 1
    rows = pointwise(net, Batch(target, source, torch.arange(2), None, None), GROUPS[group])
    assert len(rows) == 2 * (len(GROUPS[group]) - 1) and all(
        (row.largest < 1e-5) == (layers != "plain") for row in rows
    )


def test_a_map_that_answers_little_or_nothing():
    """0.3 in one of four pixels for the first image, nothing for the second, and nothing when they are turned."""
    straight = torch.zeros(2, 1, 2, 2)
    straight[0, 0, 0, 0] = 0.3
    (row,) = compare("m", "bf16", {(0, 0): straight, (1, 0): torch.zeros(2, 1, 2, 2)}, True)
    assert row.precision == "bf16" and astuple(row)[3:] == pytest.approx((0.5, 1, 0.3 / 8 / 2, 1 / 8))
