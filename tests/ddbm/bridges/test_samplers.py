import itertools

import pytest
import torch

from ddbm.bridges.exponential import boot, exponential_step, first_moment, multistep
from ddbm.bridges.grids import GRIDS, INSIDE, karras, uniform, uniform_log_snr
from ddbm.bridges.preconditioning import scale
from ddbm.bridges.samplers import SAMPLERS, dbim, dbmsolver, ecsi, heun, heun_step, ode, plan
from tests.ddbm.bridges.gaussian import pair

BOTH = pytest.mark.parametrize("name", ["ve", "vp"])
PATH = 0.9  # a noise


def source(n=1):
    return torch.full((n, 1, 1, 1), 0.7, dtype=torch.float64)


def no_noise(like):
    raise AssertionError("a deterministic sampler drew noise")


def fixed(like):
    return torch.full_like(like, PATH)


def normal(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda like: torch.randn(like.shape, dtype=like.dtype, generator=generator)


def order(errors):
    """Empirical order of convergence from errors at step counts that double."""
    return [torch.log2(torch.tensor(coarse / fine)).item() for coarse, fine in itertools.pairwise(errors)]


def flow(p, x, x_T, t, u):
    """The exact flow from t to u, which keeps (x - mean) / deviation."""
    (mean, deviation), (mean_u, deviation_u) = p.marginal(t, x_T), p.marginal(u, x_T)
    return mean_u + (x - mean) / deviation * deviation_u


@BOTH
@pytest.mark.parametrize(
    ("run", "settings", "least"),
    [
        (dbim, dict(order=1), 0.9),
        (dbim, dict(order=2), 1.8),
        (dbim, dict(order=3), 1.8),
        (dbmsolver, dict(order=1), 0.9),
        (dbmsolver, dict(order=2), 1.8),
    ],
)
def test_order_of_convergence_after_the_booting_step(name, run, settings, least):
    """The first step is held fixed, the rest of the grid refined, against the exact flow from the booted state."""
    p, x_T = pair(name), source()
    s = p.bridge.path
    u = s.time_of(s.log_snr(p.bridge.time(p.bridge.T - INSIDE)) + 1)
    booted, _ = boot(p.bridge, lambda z, t: p.denoise(z, t, x_T), x_T, fixed, u)
    errors = []
    for points in (20, 40, 80, 160):
        times = torch.cat([p.bridge.time(p.bridge.T)[None], uniform_log_snr(s, u.item(), points)])
        x = run(p.bridge, lambda z, t: p.denoise(z, t, x_T), x_T, fixed, times, **settings)
        errors.append((x - flow(p, booted, x_T, u, times[-1])).abs().item())
    assert min(order(errors)) >= least, errors


@BOTH
@pytest.mark.parametrize(("run", "least"), [(heun, 1.8), (ecsi, 0.9)])
def test_order_of_convergence_without_churn(name, run, least):
    """From T - 1e-4 to t_min on a grid uniform in λ, as the drift grows like (T - t)^-1/2; then Euler's step to 0."""
    p, x_T = pair(name), source()
    errors = []
    for points in (160, 320, 640):
        times = uniform_log_snr(p.bridge.path, p.bridge.T - INSIDE, points)
        x = run(p.bridge, lambda z, t: p.denoise(z, t, x_T), x_T, no_noise, times, churn=0.0)
        exact = flow(p, x_T, x_T, times[0], times[-1])
        D = p.denoise(exact, times[-1], x_T)
        exact = exact + scale(-times[-1], p.bridge.drift(exact, times[-1], x_T, D))
        errors.append((x - exact).abs().item())
    assert min(order(errors)) >= least, errors


@BOTH
def test_heun_converges_with_order_two_on_its_own_grid(name):
    """Inside (t_min, T), from a state that is not on the mean."""
    p, x_T = pair(name), source()
    begin = 0.8 * p.bridge.T
    errors = []
    for points in (41, 81, 161, 321):
        times = karras(p.bridge.path, begin, points)
        mean, deviation = p.marginal(times[0], x_T)
        exact = flow(p, mean + 1.3 * deviation, x_T, times[0], times[-1])
        y = mean + 1.3 * deviation
        for t, u in itertools.pairwise(times):
            y = heun_step(p.bridge, lambda z, s: p.denoise(z, s, x_T), y, x_T, t, u)
        errors.append((y - exact).abs().item())
    assert order(errors)[-1] >= 1.8, errors


@BOTH
@pytest.mark.parametrize(("count", "least"), [(1, 1.6), (2, 2.6), (3, 3.6)])
def test_local_order_of_a_multistep_with_exact_history(name, count, least):
    """One step over h in λ from exact estimates at λ, λ - h, λ - 2h: the error falls like h^(order + 1)."""
    p, x_T = pair(name), source()
    s, errors = p.bridge.path, []
    for h in (0.2, 0.1, 0.05, 0.025):
        now = s.log_snr(p.bridge.time(0.5 * p.bridge.T))
        times = [s.time_of(now - k * h) for k in range(-1, 3)]  # the end, then the history
        begin = p.marginal(times[-1], x_T)
        states = [flow(p, begin[0] + 1.3 * begin[1], x_T, times[-1], t) for t in times]
        history = [(s.log_snr(t), p.denoise(x, t, x_T)) for t, x in zip(times, states, strict=True)][1 : count + 1]
        step = exponential_step(p.bridge, states[1], x_T, times[1], times[0], multistep(history, now + h))
        errors.append((step - states[0]).abs().item())
    assert min(order(errors)) >= least, errors


@BOTH
def test_a_step_of_uneven_history_is_exact_for_a_parabola(name):
    """∫ D de^λ in units of e^λ at the end, for D = 1 - 2 λ + 3 λ², against e^λ (p - p' + p'')."""
    x, lam = source(), torch.tensor([0.1, -0.3, -1.0], dtype=torch.float64)

    def antiderivative(v):
        return 1 - 2 * v + 3 * v**2 - (-2 + 6 * v) + 6

    end = torch.tensor(0.45, dtype=torch.float64)
    history = [(v, (1 - 2 * v + 3 * v**2) * torch.ones_like(x)) for v in lam]
    found = sum(scale(weight, D) for weight, D in multistep(history, end))
    exact = antiderivative(end) - torch.exp(lam[0] - end) * antiderivative(lam[0])
    torch.testing.assert_close(found, exact * torch.ones_like(x), rtol=1e-12, atol=0)


@BOTH
def test_first_moment_is_the_integral(name):
    """∫ (μ - μ_t) de^λ / e^λ_u by a fine trapezoidal sum."""
    b = pair(name).bridge
    t, u = b.time(0.7 * b.T), b.time(0.2 * b.T)
    times = torch.linspace(t.item(), u.item(), 200_001, dtype=torch.float64)
    mu, power = -torch.log(b.path.rho2(times)) / 2, torch.exp(b.path.log_snr(times))
    values = mu - mu[0]
    integral = ((values[1:] + values[:-1]) / 2 * power.diff()).sum() / power[-1]
    torch.testing.assert_close(first_moment(b, t, u), integral, rtol=1e-8, atol=0)


@BOTH
def test_the_adaptive_flow_reaches_its_tolerance(name):
    """Two images with noises of their own in a batch, each as alone; the error falls with rtol."""
    p = pair(name)
    x_T = torch.cat([source(), -0.2 * source()])
    times = uniform(p.bridge.path, p.bridge.T - INSIDE, 2)
    noise = torch.tensor([0.9, -2.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    for rtol in (1e-4, 1e-6, 1e-8):
        x = ode(p.bridge, lambda z, t: p.denoise(z, t, x_T), x_T, lambda z: noise, times, rtol=rtol)
        booted, _ = boot(p.bridge, lambda z, t: p.denoise(z, t, x_T), x_T, lambda z: noise, times[0])
        error = (x - flow(p, booted, x_T, times[0], times[-1])).abs().max()
        assert error < 3 * rtol
        alone = ode(p.bridge, lambda z, t: p.denoise(z, t, x_T[:1]), x_T[:1], lambda z: noise[:1], times, rtol=rtol)
        torch.testing.assert_close(alone, x[:1], rtol=0, atol=1e-12)


STOCHASTIC = [
    ("heun", dict(nfe=1200, churn=0.9)),
    ("dbim", dict(nfe=1000, eta=0.0, order=1)),
    ("dbim", dict(nfe=1000, eta=0.5)),
    ("dbim", dict(nfe=1000, eta=1.0)),
    ("dbim", dict(nfe=300, order=2)),
    ("dbim", dict(nfe=300, order=3)),
    ("dbmsolver", dict(nfe=300)),
    ("ecsi", dict(nfe=800, churn=1.0)),
    ("euler_maruyama", dict(nfe=800)),
]


@BOTH
@pytest.mark.parametrize(("sampler", "settings"), STOCHASTIC, ids=str)
def test_samples_have_the_law_of_the_pair(name, sampler, settings):
    """Mean, variance and covariance with the source of 1e5 samples within 3 standard errors of the closed form.

    With little churn a path that starts in x_T itself has less variance (docs/maths.md), so here there is much.
    """
    p, n = pair(name), 100_000
    _, x_T = p.draw(n, torch.Generator().manual_seed(7))
    ready = plan(sampler, p.bridge, grid="log_snr", **settings)
    x_0, _ = ready.run(lambda z, t: p.denoise(z, t, x_T), x_T, normal(3))
    residual, variance = x_0 - p.mean(x_T), p.residual_variance
    assert abs(residual.mean()) < 3 * (variance / n) ** 0.5
    assert abs(residual.var() - variance) < 3 * variance * (2 / n) ** 0.5
    covariance = ((x_0 - x_0.mean()) * (x_T - x_T.mean())).mean() - p.covariance / p.variance * x_T.var()
    assert abs(covariance) < 3 * (variance * p.variance / n) ** 0.5


SPENT = {"heun": [2, 5, 20, 119], "dbmsolver": [2, 4, 20, 118]}  # of budgets 3, 5, 20, 119; the others spend all


@BOTH
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("sampler", [name for name, own in SAMPLERS.items() if not own.adaptive])
def test_the_budget_is_kept_on_every_grid(name, sampler, grid):
    p, x_T = pair(name), source()
    for i, nfe in enumerate((3, 5, 20, 119)):
        calls = []

        def denoise(z, t, calls=calls):
            calls.append(t)
            return p.denoise(z, t, x_T)

        x, spent = plan(sampler, p.bridge, nfe, grid).run(denoise, x_T, normal(0))
        assert spent == len(calls) == SPENT.get(sampler, [3, 5, 20, 119])[i] and torch.isfinite(x).all()
        assert all(0 < t <= p.bridge.T for t in calls) and calls == sorted(calls, reverse=True)


def test_the_paper_takes_40_steps_with_119_evaluations():
    p, x_T = pair("ve"), source()
    times = []
    plan("heun", p.bridge, 119).run(lambda z, s: (times.append(s.item()), p.denoise(z, s, x_T))[1], x_T, normal(0))
    assert len(times) == 119
    assert times[0] == pytest.approx(p.bridge.T - 1e-4) and min(times) <= p.bridge.t_min + 1e-9
    torch.testing.assert_close(
        torch.tensor(sorted(set(times[::3]), reverse=True), dtype=torch.float64),
        karras(p.bridge.path, p.bridge.T - 1e-4, 40),
    )


@BOTH
def test_without_churn_heun_draws_nothing_and_dbim_draws_once(name):
    p, x_T = pair(name), source()
    plan("heun", p.bridge, 10, churn=0.0).run(lambda z, s: p.denoise(z, s, x_T), x_T, no_noise)
    for sampler, settings in (("dbim", {}), ("dbim", dict(order=3)), ("dbmsolver", {}), ("ode", {})):
        draws = []
        noise = lambda z, draws=draws: draws.append(1) or torch.ones_like(z)  # noqa: E731
        plan(sampler, p.bridge, 400, **settings).run(lambda z, s: p.denoise(z, s, x_T), x_T, noise)
        assert len(draws) == 1


@BOTH
def test_ecsi_with_full_churn_is_the_reverse_sde(name):
    """ε = c c' - b'/b c², the interpolant's formula, is g²/2."""
    b = pair(name).bridge
    t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64) * b.T
    h = 1e-6
    (_, b0, c0), (_, b1, c1), (_, b2, c2) = (b.coefficients(v) for v in (t - h, t, t + h))
    epsilon = c1 * (c2 - c0) / (2 * h) - (b2 - b0) / (2 * h) / b1 * c1**2
    torch.testing.assert_close(epsilon, b.path.diffusion2(t) / 2, rtol=1e-6, atol=0)


def test_grids():
    for name in ("ve", "vp"):
        s = pair(name).bridge.path
        for build in GRIDS.values():
            for start in (s.T, s.T - INSIDE):
                grid = build(s, start, 18)
                assert grid.dtype == torch.float64 and grid.shape == (18,) and (grid.diff() < 0).all()
                assert grid[0] == start and grid[-1] == pytest.approx(s.t_min)
        inner = torch.linspace(s.t_min, s.T - 1e-3, 50, dtype=torch.float64)
        torch.testing.assert_close(s.time_of(s.log_snr(inner)), inner, rtol=1e-9, atol=0)
        gaps = s.log_snr(uniform_log_snr(s, s.T, 18)[1:]).diff()
        torch.testing.assert_close(gaps, gaps[0].expand(16), rtol=1e-6, atol=0)
        _, b, c = pair(name).bridge.coefficients(inner)
        torch.testing.assert_close(s.log_snr(inner), torch.log(b / c), rtol=1e-9, atol=1e-12)
    assert [plan("dbim", pair(name).bridge, 9).times[1] for name in ("ve", "vp")] == [
        pytest.approx(t) for t in ((3 ** (1 / 7) + (0.002 ** (1 / 7) - 3 ** (1 / 7)) / 9) ** 7, 1 - (1 - 1e-4) / 9)
    ]  # VE's own grid for all samplers, the sampler's own under VP
    grid = karras(pair("ve").bridge.path, 3.0, 18)
    assert grid[1] == pytest.approx((3 ** (1 / 7) + (0.002 ** (1 / 7) - 3 ** (1 / 7)) / 17) ** 7)


@pytest.mark.parametrize(
    ("sampler", "settings", "words"),
    [
        ("heun", dict(nfe=20, churn=1.0), ["--churn", "[0, 1)", "1.0"]),
        ("heun", dict(nfe=20, churn=-0.1), ["--churn", "-0.1"]),
        ("heun", dict(nfe=1, churn=0.33), ["--nfe 2 or more", "found 1"]),
        ("dbim", dict(nfe=20, eta=1.5), ["--eta", "[0, 1]"]),
        ("dbim", dict(nfe=20, eta=0.5, order=2), ["--eta 0.5", "--order 1"]),
        ("dbim", dict(nfe=20, order=4), ["--order", "1 or 2 or 3", "found 4"]),
        ("dbmsolver", dict(nfe=20, order=3), ["--order", "1 or 2", "found 3"]),
        ("ecsi", dict(nfe=20, churn=1.1), ["--churn", "[0, 1]"]),
        ("ode", dict(nfe=7), ["--nfe 8 or more"]),
        ("ode", dict(nfe=20), ["more than --nfe 20", "--rtol"]),
        ("ode", dict(nfe=200, rtol=0.0), ["--rtol", "above 0"]),
        ("dbim", dict(nfe=20, grid="cosine"), ["grid 'cosine'", "karras, uniform, log_snr"]),
        ("dbin", dict(nfe=20), ["sampler 'dbin'", "did you mean dbim"]),
        ("dbim", dict(nfe=20, churn=0.3), ["no setting --churn", "order, eta"]),
        ("heun", dict(nfe=15, price=8), ["--nfe 16 or more", "2 averages of 8 evaluations", "found 15"]),
    ],
    ids=str,
)
def test_settings_out_of_range(sampler, settings, words):
    with pytest.raises(ValueError) as error:
        plan(sampler, pair("ve").bridge, **settings).check()
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_names_its_source(sampler):
    assert " et al. " in (SAMPLERS[sampler].run.__doc__ or "")
    assert plan(sampler, pair("vp").bridge, 20).times[-1] == pytest.approx(1e-4)
