"""Samplers as tables of numbers: what a reader of the table computes is what the papers state."""

import numpy as np
import pytest

from ddbm.bridges.bridge import Bridge
from ddbm.bridges.program import program
from ddbm.bridges.samplers import SAMPLERS, plan
from tests.ddbm.bridges import papers
from tests.ddbm.bridges.test_samplers import CASES, EVERY, LITERAL, OWN, X_T, Known, settings_of, unguided
from tests.ddbm.runs import one_line


def followed(table, denoise, x_T, noise):
    """The sample that a table means, and the times at which it evaluates."""
    known = [x_T, *(noise() for _ in range(table.draws))]
    for t, weights in zip(table.times, table.states, strict=True):
        known.append(denoise(np.tensordot(weights, known, 1), t))
    return np.tensordot(table.x_0, known, 1)


@EVERY
@pytest.mark.parametrize(("sampler", "given", "meant", "budgets"), CASES, ids=str)
def test_every_table_is_its_paper(name, sampler, given, meant, budgets):
    settings = settings_of(name)
    s, (own, inside) = papers.Schedule(settings), OWN[sampler]
    for nfe, (spent, points) in budgets.items():
        given = unguided(settings, given)
        table, ours, theirs = program(plan(sampler, Bridge(settings), nfe, **given)), Known(), Known()
        x = followed(table, ours.denoise, X_T, ours.noise)
        ts = LITERAL[s.grid(sampler, own, (given | meant).get("order"))](s, s.T - inside, points)
        wanted = getattr(papers, sampler)(s, theirs.denoise, X_T, theirs.noise, ts, **(given | meant))
        np.testing.assert_allclose(x, wanted, rtol=1e-7, atol=1e-8)
        np.testing.assert_allclose(ours.times, theirs.times, rtol=1e-8)
        assert len(table.times) == spent and ours.rng.random() == theirs.rng.random()


def test_one_evaluation_by_hand():
    """Of dbim under VE: from T to t_min by x = a x_T + b D + c z, a = t²/T², b = 1 - a, c = t sqrt(b)."""
    settings = settings_of("ve")
    t, T = settings.sigma_min, settings.sigma_max
    table = program(plan("dbim", Bridge(settings), 1))
    assert table[:3] == (1, [T], [[1.0, 0.0]])
    a = (t / T) ** 2
    np.testing.assert_allclose(table.x_0, [a, t * (1 - a) ** 0.5, 1 - a], rtol=1e-12)


def test_an_average_over_a_group_is_one_estimate():
    bridge = Bridge(settings_of("vp"))
    assert program(plan("dbim", bridge, 47, price=8)) == program(plan("dbim", bridge, 5))


def test_adaptive_steps_are_refused():
    with one_line("sampler ode", "depend on the image", "try heun, dbim", "ecsi"):
        program(plan("ode", Bridge(settings_of("vp")), 50))
    assert [name for name, sampler in SAMPLERS.items() if sampler.adaptive] == ["ode"]
