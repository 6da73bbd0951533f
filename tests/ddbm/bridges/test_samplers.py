"""Samplers against the statements of papers.py, step by step, and against Gaussian pairs, known in closed form."""

import numpy as np
import pytest
import torch

from ddbm.bridges.bridge import Bridge
from ddbm.bridges.exponential import boot
from ddbm.bridges.grids import GRIDS, INSIDE, uniform_log_snr
from ddbm.bridges.paths import PATHS, SCHEDULES
from ddbm.bridges.samplers import SAMPLERS, plan
from ddbm.config import BridgeConfig
from tests.ddbm.bridges import papers
from tests.ddbm.runs import one_line

VARIANTS = {  # of schedules, beside these themselves
    "i2sb_ot": dict(schedule="i2sb", ot=True),
    "linear_soft": dict(schedule="linear", source_noise=0.3),
    "vp_soft": dict(schedule="vp", source_noise=0.6),
    "ot_soft": dict(schedule="i2sb", ot=True, source_noise=0.2),
}
EVERY = pytest.mark.parametrize("name", [*PATHS, *VARIANTS])
X_T = np.array([[0.7, -0.4, 0.1], [-0.9, 0.3, 0.5]]).reshape(2, 1, 1, 3)
LITERAL = {"karras": papers.karras, "uniform": papers.uniform, "log_snr": papers.log_snr, "dbim": papers.published_dbim}
OWN = {  # under VP, and how far inside T it begins; under VE all take karras
    "heun": ("karras", 1e-4), "dbim": ("uniform", 0), "dbmsolver": ("log_snr", 0), "ecsi": ("uniform", 0),
    "euler_maruyama": ("karras", 1e-4), "ode": ("karras", 1e-4),
}  # fmt: skip


def settings_of(name):
    how = dict(schedule=name) if name in SCHEDULES else VARIANTS[name]
    return BridgeConfig(sigma_min=0.02, sigma_max=2.5, beta_d=1.4, beta_min=0.3, beta_max=1.1, gamma_max=0.4, **how)


def unguided(settings, given):
    """Noise on the source goes without guidance."""
    return given | {name: 1.0 for name in given if name == "guidance" and settings.source_noise}


class Known:
    """A denoiser that knows no bridge, and noise; both remember what they were asked."""

    def __init__(self):
        self.rng, self.times = np.random.default_rng(5), []

    def denoise(self, x, t):
        self.times.append(np.max(t))
        return np.tanh(0.8 * x - 0.3) + 0.3 * np.cos(3 * t)

    def noise(self):
        return self.rng.standard_normal(X_T.shape)


# sampler, settings given, settings meant, {budget: (evaluations, times in the grid)}
CASES = [
    ("heun", dict(churn=0.6, guidance=1.7), {}, {2: (2, 1), 4: (2, 1), 13: (11, 4)}),
    ("heun", dict(churn=0.0, guidance=0.4), {}, {1: (1, 1), 8: (7, 4)}),
    ("heun", {}, dict(churn=0.33, guidance=1.0), {119: (119, 40)}),
    ("euler_maruyama", dict(guidance=1.7), {}, {1: (1, 1), 4: (4, 4)}),
    ("euler_maruyama", {}, dict(guidance=1.0), {5: (5, 5)}),
    ("dbim", dict(order=1), dict(eta=0.0), {1: (1, 2), 2: (2, 3), 4: (4, 5)}),
    ("dbim", dict(eta=0.6), dict(order=1), {1: (1, 2), 2: (2, 3), 4: (4, 5)}),
    ("dbim", dict(eta=1, order=1), {}, {4: (4, 5)}),
    ("dbim", {}, dict(order=2, eta=0.0), {3: (3, 4), 6: (6, 7)}),
    ("dbim", dict(order=3), dict(eta=0.0), {2: (2, 3), 7: (7, 8)}),
    ("dbmsolver", dict(order=1), {}, {1: (1, 2), 3: (3, 4)}),
    ("dbmsolver", {}, dict(order=2), {1: (1, 2), 2: (2, 3), 3: (2, 3), 4: (4, 4), 7: (6, 5)}),
    ("ecsi", dict(churn=1), {}, {1: (1, 1), 2: (2, 2), 5: (5, 5)}),
    ("ecsi", dict(churn=0.0), {}, {4: (4, 4)}),
    ("ecsi", {}, dict(churn=0.33), {4: (4, 4)}),
]


@EVERY
@pytest.mark.parametrize("grid", ["", "log_snr"])
@pytest.mark.parametrize(("sampler", "given", "meant", "budgets"), CASES, ids=str)
def test_every_sampler_is_its_paper(name, grid, sampler, given, meant, budgets):
    """Values, the times of the evaluations and the number of draws, with settings away from their defaults."""
    settings = settings_of(name)
    s, (own, inside) = papers.Schedule(settings), OWN[sampler]
    for nfe, (spent, points) in budgets.items():
        ours, theirs = Known(), Known()
        given = unguided(settings, given)
        x, found = plan(sampler, Bridge(settings), nfe, grid, **given).run(
            lambda x, t, k=ours: torch.from_numpy(k.denoise(x.numpy(), t.numpy())),
            torch.from_numpy(X_T), lambda like, k=ours: torch.from_numpy(k.noise()),
        )  # fmt: skip
        ts = LITERAL[grid or s.grid(sampler, own, (given | meant).get("order"))](s, s.T - inside, points)
        wanted = getattr(papers, sampler)(s, theirs.denoise, X_T, theirs.noise, ts, **(given | meant))
        np.testing.assert_allclose(x.numpy(), wanted, rtol=1e-7, atol=1e-8)
        np.testing.assert_allclose(ours.times, theirs.times, rtol=1e-8)
        assert found == spent == len(ours.times) and ours.rng.random() == theirs.rng.random()


@pytest.mark.parametrize(("name", "eta"), [("i2sb", 1), ("linear", 1), ("i2sb_ot", 0), ("i2sb_ot", 0.7)])
def test_the_sampler_of_i2sb_is_dbim_at_eta_1_and_without_noise_at_any(name, eta):
    settings, ours, theirs = settings_of(name), Known(), Known()
    x, _ = plan("dbim", Bridge(settings), 5, "uniform", order=1, eta=eta).run(
        lambda x, t: torch.from_numpy(ours.denoise(x.numpy(), t.numpy())),
        torch.from_numpy(X_T), lambda like: torch.from_numpy(ours.noise()),
    )  # fmt: skip
    s = papers.Schedule(settings)
    wanted = papers.i2sb(s, theirs.denoise, X_T, theirs.noise, papers.uniform(s, 1.0, 6))
    np.testing.assert_allclose(x, wanted, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(ours.times, theirs.times, rtol=1e-8)


@pytest.mark.parametrize(
    ("name", "given"), [*((name, {}) for name in (*PATHS, *VARIANTS)), ("vp", {"rtol": 1e-2}), ("i2sb", {"rtol": 3e-6})]
)
def test_the_adaptive_flow_is_its_statement(name, given):
    """Every image of a batch by steps of its own; the batch takes as many as the image that takes most."""
    settings, ours, noises = settings_of(name), Known(), Known().noise()
    s, counts = papers.Schedule(settings), []
    x, found = plan("ode", Bridge(settings), 2000, **given).run(
        lambda x, t: torch.from_numpy(ours.denoise(x.numpy(), np.reshape(t.numpy(), (-1, 1, 1, 1)))),
        torch.from_numpy(X_T), lambda like: torch.from_numpy(noises),
    )  # fmt: skip
    for i, (image, noise) in enumerate(zip(X_T, noises, strict=True)):
        known, ts = Known(), [s.T - 1e-4, s.t_min]
        wanted = papers.ode(s, known.denoise, image, lambda noise=noise: noise, ts, **({"rtol": 1e-4} | given))
        np.testing.assert_allclose(x[i].numpy(), wanted, rtol=1e-7, atol=1e-8)
        counts.append(len(known.times))
    assert found == max(counts) > min(counts) or len({*counts}) == 1


@EVERY
@pytest.mark.parametrize("points", [1, 2, 3, 8])
@pytest.mark.parametrize("grid", GRIDS)
def test_grids_by_value(name, grid, points):
    settings = settings_of(name)
    path, s = Bridge(settings).path, papers.Schedule(settings)
    for start in (s.T, s.T - 1e-4):
        found = GRIDS[grid](path, start, points)
        assert found.dtype == torch.float64 and found[0] == start and (points == 1 or found[-1] == s.t_min)
        np.testing.assert_allclose(found, LITERAL[grid](s, start, points), rtol=1e-8)
    short = Bridge(
        BridgeConfig(schedule="ve", sigma_min=0.002, sigma_max=0.0022)
    ).path  # less than a first step of dbim
    assert (GRIDS[grid](short, 0.0022, 5).diff() < 0).all()


class Gaussian:
    """x_0 and x_T of zero mean, standard deviation 0.5 and covariance 0.15, whose bridge is known in closed form."""

    def __init__(self, name, x_T, **more):
        how = (dict(schedule=name) if name in SCHEDULES else VARIANTS[name]) | more
        self.bridge, self.x_T = Bridge(BridgeConfig(sigma_max=3, sigma_data=0.5, cov_xy=0.15, **how)), x_T

    def marginal(self, t):
        """Mean and standard deviation of x_t given x_T; of x_0 they are 0.6 x_T and 0.4."""
        a, b, c = self.bridge.coefficients(t)
        return (a + 0.6 * b) * self.x_T, torch.sqrt(0.16 * b**2 + c**2)

    def denoise(self, x, t):
        """E[x_0 | x_t, x_T]; at T, where x_t tells nothing new, E[x_0 | x_T]."""
        u = t.reshape(-1, 1, 1, 1)
        mean, deviation = self.marginal(u)
        slope = torch.where(deviation > 0, 0.16 * self.bridge.coefficients(u)[1] / deviation**2, 0.0)
        return 0.6 * self.x_T + slope * (x - mean)

    def flow(self, x, t, u):
        """The exact flow from t to u, which keeps (x - mean) / deviation."""
        (mean, deviation), (mean_u, deviation_u) = self.marginal(t), self.marginal(u)
        return mean_u + (x - mean) / deviation * deviation_u


class Unseen(Gaussian):
    """The same for a network that does not see x_T."""

    def variance(self, t):
        a, b, c = self.bridge.coefficients(t)
        return 0.25 * a**2 + 0.25 * b**2 + 0.3 * a * b + c**2

    def denoise(self, x, t):
        """E[x_0 | x_t]."""
        a, b, _ = self.bridge.coefficients(t.reshape(-1, 1, 1, 1))
        return (0.15 * a + 0.25 * b) / self.variance(t.reshape(-1, 1, 1, 1)) * x

    def flow(self, x, t, u):
        """Of the path without noise."""
        return x * torch.sqrt(self.variance(u) / self.variance(t))


ORDERS = [("dbim", dict(order=n), min(n, 2)) for n in (1, 2, 3)] + [("dbmsolver", dict(order=n), n) for n in (1, 2)]
ORDERS += [("heun", dict(churn=0.0), 2), ("ecsi", dict(churn=0.0), 1)]


def alone(name):
    """One pair."""
    return (Unseen if name == "i2sb_ot" else Gaussian)(name, torch.full((1, 1, 1, 1), 0.7, dtype=torch.float64))


@EVERY
@pytest.mark.parametrize(("sampler", "settings", "order"), ORDERS)
def test_order_of_convergence(name, sampler, settings, order):
    """The first step is held fixed, the rest of a grid uniform in λ refined, against the exact flow from there on.

    The order is that over all halvings, as an error may change its sign between. Those that do not boot
    begin in x_T inside T, and end by Euler's step to 0.
    """
    p, errors, boots = alone(name), [], "churn" not in settings
    b, s, (coarse, halvings) = p.bridge, p.bridge.path, (20, 3) if boots else (160, 1)
    u = s.time_of(s.log_snr(b.time(b.T - INSIDE)) + boots)
    begin = boot(b, p.denoise, p.x_T, torch.ones_like, u)[0] if boots else b.begin(p.x_T, torch.ones_like)
    for points in (coarse, coarse << halvings):
        times = uniform_log_snr(s, u.item(), points)
        exact, end = p.flow(begin, u, times[-1]), times[-1]
        if not boots:
            exact = exact - end * b.drift(exact, end, p.x_T, p.denoise(exact, end), 1.0, 0.0)
        times = torch.cat([b.time(b.T)[None], times]) if boots else times
        found = SAMPLERS[sampler].run(b, p.denoise, p.x_T, torch.ones_like, times, **settings)
        errors.append((found - exact).abs().item())
    assert np.log2(errors[0] / errors[1]) / halvings >= order - 0.2, errors


@EVERY
def test_the_adaptive_flow_is_exact_to_its_tolerance(name):
    p = alone(name)
    ready = plan("ode", p.bridge, 2000, rtol=1e-7)
    found, _ = ready.run(p.denoise, p.x_T, torch.ones_like)
    begin = boot(p.bridge, p.denoise, p.x_T, torch.ones_like, ready.times[0])[0]
    assert (found - p.flow(begin, ready.times[0], ready.times[-1])).abs() < 1e-6


LAWS = [("dbim", dict(nfe=500, eta=0.5)), ("dbim", dict(nfe=100, order=3)), ("ecsi", dict(nfe=500, churn=1.0))]
MARKOV = [("dbim", dict(nfe=500, eta=1.0)), ("ecsi", dict(nfe=500, churn=1.0)), ("euler_maruyama", dict(nfe=500))]


@pytest.mark.parametrize("name", [*PATHS, "linear_soft", "vp_soft"])
@pytest.mark.parametrize(("sampler", "settings"), [*LAWS, MARKOV[-1]], ids=str)
def test_samples_have_the_law_of_the_pair(name, sampler, settings):
    """Mean, variance and covariance with the source of samples within 3 standard errors of the closed form.

    With little churn a path that starts in x_T itself has less variance (docs/maths.md), so here there is much.
    """
    n, rng = 10_000, np.random.default_rng(7)
    p = Gaussian(name, torch.from_numpy(0.5 * rng.standard_normal((1, 1, 1, n))))
    ready = plan(sampler, p.bridge, grid="log_snr", **settings)
    x_0, _ = ready.run(p.denoise, p.x_T, lambda like: torch.from_numpy(rng.standard_normal(like.shape)))
    left = x_0 - 0.6 * p.x_T
    assert abs(left.mean()) < 3 * 0.4 / n**0.5 and abs(left.var() - 0.16) < 3 * 0.16 * (2 / n) ** 0.5
    assert abs((left * p.x_T).mean()) < 3 * 0.4 * 0.5 / n**0.5


@pytest.mark.parametrize("name", ["linear", "i2sb", "i2sb_ot", "ot_soft"])
@pytest.mark.parametrize(("sampler", "settings"), MARKOV, ids=str)
def test_a_network_that_does_not_see_the_source_has_the_marginal_law(name, sampler, settings):
    """By the samplers whose steps need D(x_t) alone, not x_T, or on the path without noise (by any)."""
    n, rng = 10_000, np.random.default_rng(7)
    p = Unseen(name, torch.from_numpy(0.5 * rng.standard_normal((1, 1, 1, n))))
    settings = settings | dict(eta=0.0) if "ot" in name and sampler == "dbim" else settings
    ready = plan(sampler, p.bridge, grid="log_snr", **settings)
    x_0, _ = ready.run(p.denoise, p.x_T, lambda like: torch.from_numpy(rng.standard_normal(like.shape)))
    assert abs(x_0.mean()) < 3 * 0.5 / n**0.5 and abs(x_0.var() - 0.25) < 3 * 0.25 * (2 / n) ** 0.5


@pytest.mark.parametrize(
    ("sampler", "settings", "words"),
    [
        ("heun", dict(nfe=20, churn=1.0), ["--churn", "[0, 1)", "1.0"]),
        ("heun", dict(nfe=20, churn=-0.1), ["--churn", "-0.1"]),
        ("heun", dict(nfe=1, churn=0.33), ["--nfe 2 or more", "found 1"]),
        ("heun", dict(nfe=20, guidance=float("inf")), ["--guidance", "finite", "inf"]),
        ("euler_maruyama", dict(nfe=20, guidance="2"), ["--guidance", "'2'"]),
        ("dbim", dict(nfe=20, eta=1.5), ["--eta", "[0, 1]"]),
        ("dbim", dict(nfe=20, eta=0.5, order=2), ["--eta 0.5", "--order 1"]),
        ("dbim", dict(nfe=20, order=4), ["--order", "1 or 2 or 3", "found 4"]),
        ("dbim", dict(nfe=20, order=-1), ["--order", "found -1"]),
        ("dbim", dict(nfe=20.0), ["--nfe", "whole number", "20.0"]),
        ("dbim", dict(nfe=0), ["dbim needs --nfe 1 or more, found 0"]),
        ("dbmsolver", dict(nfe=20, order=3), ["--order", "1 or 2", "found 3"]),
        ("ecsi", dict(nfe=20, churn=1.1), ["--churn", "[0, 1]"]),
        ("ode", dict(nfe=7), ["--nfe 8 or more"]),
        ("ode", dict(nfe=20), ["ode needs more than --nfe 20", "--rtol"]),
        ("ode", dict(nfe=200, rtol=0.0), ["--rtol", "above 0"]),
        ("dbim", dict(nfe=20, grid="cosine"), ["grid 'cosine'", "karras, uniform, log_snr, dbim"]),
        ("dbin", dict(nfe=20), ["sampler 'dbin'", "did you mean dbim"]),
        ("dbim", dict(nfe=20, churn=0.3), ["no setting --churn", "order, eta"]),
        ("heun", dict(nfe=15, price=8), ["--nfe 16 or more", "2 averages of 8 evaluations", "found 15"]),
    ],
    ids=str,
)
def test_settings_out_of_range(sampler, settings, words):
    with one_line(*words):
        plan(sampler, Bridge(BridgeConfig()), **settings).check()


def test_limits_that_are_still_within():
    ready = plan("dbim", Bridge(BridgeConfig()), 17, price=8)
    assert ready.run(lambda x, t: x, torch.ones(1, 1, 1, 1), torch.zeros_like)[1] == 16 and len(ready.times) == 3
    tiny = Bridge(BridgeConfig(schedule="ve", sigma_min=0.00215, sigma_max=0.0022))
    assert plan("dbim", tiny, 2).times[0] == 0.0022
    with pytest.raises(ValueError, match="raise --sigma_max"):
        plan("heun", tiny, 2)
