"""Power function averages: the closed forms, what the recursion computes, reconstruction."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from ddbm.training import averages
from ddbm.training.averages import NARROWEST, gamma_of, inner_products, power_rate, project, reconstruct, write_snapshot

TRACKED = (0.05, 0.1)
SIGMAS = (NARROWEST, 0.001, 0.03, 0.05, 0.1, 0.15, 0.2, 0.25, 0.28, 0.28867)
HALF = 2.0**-11  # largest relative rounding of float16


def profile(gamma, t):
    return lambda tau: (gamma + 1) * (tau / t) ** gamma / t


def product(t, gamma, u, delta):
    return inner_products(*(np.array([v], np.float64) for v in (t, gamma, u, delta))).item()


@pytest.mark.parametrize("sigma", SIGMAS)
def test_gamma_is_the_largest_root_and_inverts_the_width(sigma):
    gamma = gamma_of(sigma)
    assert np.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2) == pytest.approx(sigma, rel=1e-12)  # Eq. 123
    roots = np.roots([1, 7, 16 - sigma**-2, 12 - sigma**-2]).real  # Eq. 126
    assert gamma == pytest.approx(roots.max(), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("sigma", [0.03, 0.1, 0.25, 0.28])
def test_the_width_is_the_relative_deviation_of_the_profile(sigma):
    t = 7.0
    p = profile(gamma_of(sigma), t)
    total, mean, square = (quad(lambda x, k=k: p(x) * x**k, 0, t, epsabs=0, epsrel=1e-12)[0] for k in range(3))
    assert total == pytest.approx(1, rel=1e-10)
    assert np.sqrt(square - mean**2) / t == pytest.approx(sigma, rel=1e-8)


@pytest.mark.parametrize("value", [0.0, -0.1, 0.2887, 1.0, 1e-300, float("nan"), float("inf")])
def test_what_is_no_width_is_refused(value):
    with pytest.raises(ValueError, match=f"sigma_rel {value} .* below 0.2887") as error:
        gamma_of(value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("a", [(3.0, 0.2), (10.0, 7.0), (10.0, 17.5)])
@pytest.mark.parametrize("b", [(10.0, 7.0), (11.0, 0.0), (500.0, 3.3)])
def test_inner_products_are_the_integrals(a, b):
    (p, q), last = (profile(gamma, t) for t, gamma in (a, b)), min(a[0], b[0])
    integral = quad(lambda x: p(x) * q(x), 0, last, epsabs=0, epsrel=1e-12)[0]
    assert product(*a, *b) == pytest.approx(integral, rel=1e-9) == pytest.approx(product(*b, *a), rel=1e-9)


@pytest.mark.parametrize(("t", "u"), [(10**8 - 1, 10**8), (10**8, 10**8), (99_000_000, 10**8), (1, 10**8)])
@pytest.mark.parametrize(("gamma", "delta"), [(1000, 17), (17, 1000), (10_000, 10_000), (0, 0)])
def test_inner_products_of_large_steps_and_exponents(t, u, gamma, delta):
    """Against exact rational arithmetic."""
    low = min(t, u)
    exact = Fraction((gamma + 1) * (delta + 1), gamma + delta + 1) * Fraction(
        low ** (gamma + delta + 1), t ** (gamma + 1) * u ** (delta + 1)
    )
    assert product(t, gamma, u, delta) == pytest.approx(float(exact), rel=1e-10, abs=1e-300)


def tracked(trajectory, sigma, every=1, stop=None):
    """The average of the rows of a trajectory (row n - 1: the weights after step n), by the recursion, in float64."""
    average = np.zeros_like(trajectory[0])
    for n in range(every, (stop or len(trajectory)) + 1, every):
        beta = power_rate(sigma, n, every)
        average = beta * average + (1 - beta) * trajectory[n - 1]
    return average


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.25])
def test_the_recursion_weighs_every_step_by_the_integral_of_the_profile(sigma, every):
    """The weight of step m is ∫ p over (m - every, m], exactly; so the deviation of the weights tends to sigma_rel."""
    n = 1200
    weights = tracked(np.eye(n), sigma, every)[every - 1 :: every]
    edges = (np.arange(0, n + 1, every) / n) ** (gamma_of(sigma) + 1)
    np.testing.assert_allclose(weights, np.diff(edges), rtol=1e-10, atol=1e-15)
    middles = (np.arange(every, n + 1, every) - every / 2) / n
    deviation = np.sqrt(weights @ middles**2 - (weights @ middles) ** 2)
    assert deviation == pytest.approx(sigma, rel=1e-3)


def test_the_first_update_takes_the_weights_whole():
    assert power_rate(0.1, 1) == 0 and power_rate(0.1, 4, 4) == 0 and power_rate(0.1, 3, 4) == 0
    assert 0 < power_rate(0.1, 5, 4) < power_rate(0.1, 5) < power_rate(0.1, 6) < 1
    assert 1 - power_rate(0.1, 10**8) == pytest.approx((gamma_of(0.1) + 1) * 1e-8, rel=1e-6)


def combination(count, target, tracked_widths=TRACKED, interval=1000.0, last=None):
    """The fit of `count` snapshots at equal intervals to a width: times, exponents, coefficients, residual."""
    t = np.repeat(np.arange(1, count + 1) * interval, len(tracked_widths))
    gammas = np.tile([gamma_of(s) for s in tracked_widths], count)
    return t, gammas, *project(t, gammas, last or count * interval, gamma_of(target))


def test_the_residual_is_the_distance_of_the_profiles():
    """Against quadrature, with a step that has no snapshot."""
    last = 8300.0
    t, gammas, x, residual = combination(8, 0.15, last=last)
    p = profile(gamma_of(0.15), last)
    own = [profile(g, n) for n, g in zip(t, gammas, strict=True)]

    def difference(tau):
        return p(tau) - sum(c * q(tau) for c, q, n in zip(x, own, t, strict=True) if tau <= n)

    edges = [*np.arange(0, 8001, 1000.0), last]
    squared = sum(quad(lambda s: difference(s) ** 2, a, b)[0] for a, b in itertools.pairwise(edges))
    norm = product(last, gamma_of(0.15), last, gamma_of(0.15))
    assert residual == pytest.approx(np.sqrt(squared / norm), rel=1e-6)
    assert x.sum() == pytest.approx(1, abs=1e-12)


def test_no_other_coefficients_are_better():
    """Of distance² + rounding² |x|², the gradient is the same for every coefficient: their sum is fixed."""
    t, gammas, x, _ = combination(16, 0.2)
    own, target = (np.array([v]) for v in (16000.0, gamma_of(0.2)))
    gradient = inner_products(t, gammas, t, gammas) @ x - inner_products(t, gammas, own, target)[:, 0]
    gradient = gradient / inner_products(own, target, own, target).item() + averages.ROUNDING**2 * x
    np.testing.assert_allclose(gradient, gradient.mean(), rtol=1e-6, atol=1e-13)


@pytest.mark.parametrize(
    ("count", "residuals"),
    [  # the table of docs/maths.md
        (8, {0.02: 0.25, 0.03: 0.10, 0.07: 0.013, 0.15: 0.033, 0.2: 0.077, 0.25: 0.18}),
        (32, {0.02: 0.040, 0.03: 0.011, 0.07: 0.0010, 0.15: 0.0023, 0.2: 0.0064, 0.25: 0.034}),
        (128, {0.02: 0.0028, 0.03: 0.00075, 0.07: 0.00006, 0.15: 0.00015, 0.2: 0.00044, 0.25: 0.0063}),
    ],
)
def test_more_snapshots_come_closer(count, residuals):
    for sigma, expected in residuals.items():
        assert combination(count, sigma)[3] == pytest.approx(expected, rel=0.05), sigma


@pytest.mark.parametrize("widths", [(0.05, 0.1), (0.05, 0.0500001), (0.05, 0.1, 0.2)])
@pytest.mark.parametrize("sigma", [0.03, 0.1, 0.2])
def test_almost_equal_profiles_do_not_blow_up_the_rounding(widths, sigma):
    x, residual = combination(400, sigma, widths)[2:]
    assert np.linalg.norm(x) < 10 and residual < 0.02
    assert sigma not in widths or residual < 1e-4


STEPS, INTERVAL = 1200, 75


def trajectories():
    """Weights over the steps, columns: smooth curves and random walks, off zero as weights are; float64."""
    rng = np.random.default_rng(0)
    s = np.arange(1, STEPS + 1)[:, None] / STEPS
    smooth = np.concatenate([np.exp(-3 * s), np.sin(5 * s), np.sqrt(s)], 1)
    walks = rng.standard_normal((STEPS, 29)).cumsum(0) / np.sqrt(STEPS)
    return np.concatenate([smooth, walks], 1) + rng.standard_normal(32)


def tensors(row):
    row = torch.from_numpy(row).float()
    return {"conv.weight": row[:24].reshape(2, 3, 4), "bias": row[24:31], "scale": row[31]}


def flat(weights):
    return np.concatenate([weights[k].reshape(-1).double().numpy() for k in ("conv.weight", "bias", "scale")])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    rows = trajectories()
    averages = {sigma: np.zeros(32) for sigma in TRACKED}
    for n in range(1, STEPS + 1):
        for sigma in TRACKED:
            beta = power_rate(sigma, n)
            averages[sigma] = beta * averages[sigma] + (1 - beta) * rows[n - 1]
        if n % INTERVAL == 0:
            write_snapshot(run, n, {sigma: tensors(average) for sigma, average in averages.items()})
    return run


@pytest.mark.parametrize("sigma", TRACKED)
@pytest.mark.parametrize("step", [INTERVAL, 8 * INTERVAL, STEPS])
def test_a_tracked_width_is_given_back(trained, sigma, step):
    weights, residual, _ = reconstruct(trained, step, sigma)
    expected = tracked(trajectories(), sigma, stop=step)
    assert all(w.dtype == torch.float32 for w in weights.values()) and residual < 1e-6
    assert {k: w.shape for k, w in weights.items()} == {k: w.shape for k, w in tensors(expected).items()}
    np.testing.assert_allclose(flat(weights), expected, rtol=1.01 * HALF, atol=1e-6)


@pytest.mark.parametrize("step", [10 * INTERVAL, STEPS, STEPS - INTERVAL // 2])
@pytest.mark.parametrize("sigma", [0.03, 0.07, 0.15, 0.2, 0.25])
def test_another_width_is_the_average_tracked_with_it(trained, sigma, step):
    """Within residual ‖p‖ ‖θ - c‖ (Cauchy-Schwarz; any c, as the coefficients sum to 1) and rounding."""
    rows = trajectories()[:step]
    weights, reached, steps = reconstruct(trained, step, sigma)
    error = np.abs(flat(weights) - tracked(rows, sigma))
    t = np.repeat(steps, 2).astype(float)
    gamma = gamma_of(sigma)
    x, residual = project(t, np.tile([gamma_of(s) for s in TRACKED], len(t) // 2), step, gamma)
    assert residual == reached and steps == list(range(INTERVAL, step + 1, INTERVAL))
    norm = np.sqrt(product(step, gamma, step, gamma))
    rounding = HALF * np.abs(x).sum() * np.abs(rows).max(0) + 1e-6
    assert (error <= residual * norm * np.linalg.norm(rows - rows.mean(0), axis=0) + rounding).all()
    if step % INTERVAL == 0 and sigma < 0.25:  # and far closer than the nearest average that was tracked
        nearest = min(TRACKED, key=lambda s: abs(s - sigma))
        apart = np.abs(tracked(rows, nearest) - tracked(rows, sigma))
        assert np.linalg.norm(error) < 0.1 * np.linalg.norm(apart)


def test_constant_weights_stay_what_they_are(tmp_path):
    for n in (10, 25, 40):
        write_snapshot(tmp_path, n, {0.08: {"w": torch.full((3,), 0.75)}})
    assert torch.equal(reconstruct(tmp_path, 33, 0.22)[0]["w"], torch.full((3,), 0.75))
