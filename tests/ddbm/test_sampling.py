import inspect
import itertools

import pytest
import torch

from ddbm.sampling import SAMPLERS, dbim, heun, heun_step, karras_grid, uniform_grid
from tests.ddbm.gaussian import pair

BOTH = pytest.mark.parametrize("name", ["ve", "vp"])


def source(n=1):
    return torch.full((n, 1, 1, 1), 0.7, dtype=torch.float64)


def no_noise(like):
    raise AssertionError("a deterministic sampler drew noise")


def normal(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda like: torch.randn(like.shape, dtype=like.dtype, generator=generator)


def order(errors):
    """Empirical order of convergence from errors at step counts that double."""
    return [torch.log2(torch.tensor(coarse / fine)).item() for coarse, fine in itertools.pairwise(errors)]


@BOTH
def test_heun_converges_with_order_two(name):
    """Against the exact path of the probability flow, which keeps (x - mean_t) / deviation_t.

    The path starts inside (t_min, T): at T the drift grows like (T - t)^-1/2, and no solver keeps its order there.
    """
    p, x_T = pair(name), source()
    begin, end = p.bridge.time(0.8 * p.bridge.T), p.bridge.time(p.bridge.t_min)
    (mean, deviation), (mean_end, deviation_end) = p.marginal(begin, x_T), p.marginal(end, x_T)
    errors = []
    for steps in (40, 80, 160, 320):
        y = mean + 1.3 * deviation
        for t, u in itertools.pairwise(karras_grid(begin.item(), end.item(), steps + 1)):
            y = heun_step(p.bridge, lambda z, s: p.denoise(z, s, x_T), y, x_T, t, u, 1.0)
        errors.append((y - mean_end - 1.3 * deviation_end).abs().item())
    assert order(errors)[-1] >= 1.8, errors


@BOTH
@pytest.mark.parametrize(
    "settings",
    [dict(nfe=3000, churn=0.5), dict(nfe=1500, eta=0.0), dict(nfe=1500, eta=0.5), dict(nfe=1500, eta=1.0)],
    ids=str,
)
def test_sampled_mean_and_variance(name, settings):
    """Stochastic sampling from one source gives the law of x_0 given x_T."""
    p, n = pair(name), 20_000
    x_T = source(n)
    run = heun if "churn" in settings else dbim
    x = run(p.bridge, lambda z, s: p.denoise(z, s, x_T), x_T, normal(3), **settings)
    variance = p.residual_variance
    assert abs(x.mean() - p.mean(x_T)[0]) < 3 * (variance / n) ** 0.5
    assert abs(x.var() - variance) < 3 * variance * (2 / n) ** 0.5


@BOTH
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_budget_is_kept(name, sampler):
    p, x_T = pair(name), source()
    for nfe in (3, 5, 20, 119):
        calls = []

        def denoise(z, s, calls=calls):
            calls.append(s)
            return p.denoise(z, s, x_T)

        x = SAMPLERS[sampler](p.bridge, denoise, x_T, normal(0), nfe=nfe)
        assert nfe - 3 < len(calls) <= nfe and torch.isfinite(x).all()
        assert all(0 < s <= p.bridge.T for s in calls)


def test_the_paper_takes_40_steps_with_119_evaluations():
    p, x_T = pair("ve"), source()
    times = []
    heun(p.bridge, lambda z, s: (times.append(s.item()), p.denoise(z, s, x_T))[1], x_T, normal(0), nfe=119, churn=0.33)
    assert len(times) == 119
    assert times[0] == pytest.approx(p.bridge.T - 1e-4) and min(times) <= p.bridge.t_min + 1e-9
    torch.testing.assert_close(
        torch.tensor(sorted(set(times[::3]), reverse=True), dtype=torch.float64),
        karras_grid(p.bridge.T - 1e-4, p.bridge.t_min, 40),
    )


@BOTH
def test_without_churn_heun_draws_nothing_and_dbim_draws_once(name):
    p, x_T = pair(name), source()
    heun(p.bridge, lambda z, s: p.denoise(z, s, x_T), x_T, no_noise, nfe=10, churn=0.0)
    draws = []
    dbim(p.bridge, lambda z, s: p.denoise(z, s, x_T), x_T, lambda z: draws.append(1) or torch.ones_like(z), nfe=10)
    assert len(draws) == 1


@BOTH
def test_dbim_first_order_converges_to_the_flow(name):
    """With the booting noise fixed, dbim at eta 0 is a first order solver of the probability flow."""
    p, x_T = pair(name), source()
    booted = 0.9
    results = [
        dbim(p.bridge, lambda z, s: p.denoise(z, s, x_T), x_T, lambda z: torch.full_like(z, booted), nfe=n)
        for n in (50, 100, 200, 400)
    ]
    mean, deviation = p.marginal(p.bridge.time(p.bridge.t_min), x_T)
    errors = [(x - mean - booted * deviation).abs().item() for x in results]
    assert order(errors)[-1] >= 0.9, errors


def test_grids():
    grid = karras_grid(80, 0.002, 18)
    assert grid[0] == pytest.approx(80) and grid[-1] == pytest.approx(0.002) and (grid.diff() < 0).all()
    assert grid[1] == pytest.approx((80 ** (1 / 7) + (0.002 ** (1 / 7) - 80 ** (1 / 7)) / 17) ** 7)
    assert torch.equal(uniform_grid(1, 0, 3), torch.tensor([1, 0.5, 0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("sampler", "settings", "word"),
    [
        ("heun", dict(nfe=20, churn=1.0), "churn"),
        ("heun", dict(nfe=20, churn=-0.1), "churn"),
        ("heun", dict(nfe=1, churn=0.33), "nfe"),
        ("dbim", dict(nfe=20, eta=1.5), "eta"),
    ],
)
def test_settings_out_of_range(sampler, settings, word):
    p, x_T = pair("ve"), source()
    with pytest.raises(ValueError, match=word):
        SAMPLERS[sampler](p.bridge, lambda z, s: z, x_T, normal(0), **settings)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_is_documented_and_takes_a_budget(sampler):
    function = SAMPLERS[sampler]
    assert function.__doc__ and " et al. " in function.__doc__
    assert "nfe" in inspect.signature(function).parameters
