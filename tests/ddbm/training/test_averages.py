"""Power function averages: the closed forms, what the recursion computes, reconstruction, snapshots on disk."""

import copy
import itertools
import json
import os
from fractions import Fraction

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from scipy.integrate import quad

from ddbm.training import averages
from ddbm.training.averages import NARROWEST, gamma_of, inner_products, power_rate, project, reconstruct, write_snapshot
from tests.ddbm.runs import one_line

TRACKED, FIRST = (0.05, 0.1), "step_00000010.safetensors"
HALF = 2.0**-11  # largest relative rounding of float16


def profile(gamma, t):
    return lambda tau: (gamma + 1) * (tau / t) ** gamma / t


def product(t, gamma, u, delta):
    return inner_products(*(np.array([v], np.float64) for v in (t, gamma, u, delta))).item()


@pytest.mark.parametrize("sigma", [NARROWEST, 0.001, 0.03, 0.1, 0.2, 0.25, 0.28, 0.28867])
def test_gamma_is_the_largest_root_and_inverts_the_width(sigma):
    gamma = gamma_of(sigma)
    assert np.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2) == pytest.approx(sigma, rel=1e-12)  # Eq. 123
    roots = np.roots([1, 7, 16 - sigma**-2, 12 - sigma**-2]).real  # Eq. 126
    assert gamma == pytest.approx(roots.max(), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("value", [0.0, -0.1, 0.2887, 1.0, 1e-300, float("nan"), float("inf")])
def test_what_is_no_width_is_refused(value):
    with one_line(f"sigma_rel {value} ", "below 0.2887"):
        gamma_of(value)


@pytest.mark.parametrize(("t", "u"), [(3, 500), (500, 3), (10**8 - 1, 10**8), (10**8, 10**8), (1, 10**8)])
@pytest.mark.parametrize(("gamma", "delta"), [(2, 7), (1000, 17), (17, 1000), (10_000, 10_000), (0, 0)])
def test_inner_products_are_the_integrals(t, u, gamma, delta):
    """Against exact rational arithmetic, also of large steps and exponents."""
    low = min(t, u)
    exact = Fraction((gamma + 1) * (delta + 1), gamma + delta + 1) * Fraction(
        low ** (gamma + delta + 1), t ** (gamma + 1) * u ** (delta + 1)
    )
    assert product(t, gamma, u, delta) == pytest.approx(float(exact), rel=1e-10, abs=1e-300)


def tracked(trajectory, sigma, every=1):
    """The average of the rows of a trajectory (row n - 1: the weights after step n), by the recursion, in float64."""
    average = np.zeros_like(trajectory[0])
    for n in range(every, len(trajectory) + 1, every):
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
    assert power_rate(sigma, 3, 4) == 0


def test_a_combination_is_the_closest_and_its_residual_the_distance():
    """By quadrature, with a step that has no snapshot; of distance² + rounding² |x|² the gradient is the same for
    every coefficient, as their sum is fixed."""
    last, width = 8300.0, gamma_of(0.15)
    t, gammas = np.repeat(np.arange(1, 9) * 1000.0, 2), np.tile([gamma_of(s) for s in TRACKED], 8)
    x, residual = project(t, gammas, last, width)
    p, own = profile(width, last), [profile(g, n) for n, g in zip(t, gammas, strict=True)]

    def difference(tau):
        return p(tau) - sum(c * q(tau) for c, q, n in zip(x, own, t, strict=True) if tau <= n)

    edges = [*np.arange(0, 8001, 1000.0), last]
    squared = sum(quad(lambda s: difference(s) ** 2, a, b)[0] for a, b in itertools.pairwise(edges))
    norm = product(last, width, last, width)
    assert residual == pytest.approx(np.sqrt(squared / norm), rel=1e-6)
    assert x.sum() == pytest.approx(1, abs=1e-12)
    gradient = inner_products(t, gammas, t, gammas) @ x - inner_products(t, gammas, *np.array([[last], [width]]))[:, 0]
    gradient = gradient / norm + averages.ROUNDING**2 * x
    np.testing.assert_allclose(gradient, gradient.mean(), rtol=1e-6, atol=1e-13)
    assert pytest.approx(HALF / 3**0.5) == averages.ROUNDING


STEPS, INTERVAL = 1200, 75


def split(row):
    row = torch.from_numpy(row).float()
    return {"conv.weight": row[:24].reshape(2, 3, 4), "scale": row[24]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with its snapshots, and its weights over the steps: smooth curves and random walks, off zero; float64."""
    run, rng = tmp_path_factory.mktemp("run"), np.random.default_rng(0)
    s = np.arange(1, STEPS + 1)[:, None] / STEPS
    walks = rng.standard_normal((STEPS, 22)).cumsum(0) / np.sqrt(STEPS)
    rows = np.concatenate([np.exp(-3 * s), np.sin(5 * s), np.sqrt(s), walks], 1) + rng.standard_normal(25)
    for n in range(INTERVAL, STEPS + 1, INTERVAL):
        write_snapshot(run, n, {sigma: split(tracked(rows[:n], sigma)) for sigma in TRACKED})
    return run, rows


@pytest.mark.parametrize("step", [INTERVAL, 10 * INTERVAL, STEPS, STEPS - INTERVAL // 2])
@pytest.mark.parametrize("sigma", [0.03, 0.05, 0.07, 0.1, 0.15, 0.25])
def test_any_width_is_the_average_tracked_with_it(trained, sigma, step):
    """Within residual ‖p‖ ‖θ - c‖ (Cauchy-Schwarz; any c, as the coefficients sum to 1) and rounding."""
    run, rows = trained[0], trained[1][:step]
    weights, reached, steps = reconstruct(run, step, sigma)
    found = np.concatenate([weights[k].reshape(-1).double().numpy() for k in ("conv.weight", "scale")])
    kept = [safetensors.torch.load_file(path) for n, path in averages.snapshots(run) if n <= step]
    kept = [[own[f"{s}/{k}"].double().flatten() for k in ("conv.weight", "scale")] for own in kept for s in TRACKED]
    assert {k: (w.dtype, w.shape) for k, w in weights.items()} == {
        k: (w.dtype, w.shape) for k, w in split(rows[0]).items()
    }
    error = np.abs(found - tracked(rows, sigma))
    t, gamma = np.repeat(steps, 2).astype(float), gamma_of(sigma)
    x, residual = project(t, np.tile([gamma_of(s) for s in TRACKED], len(t) // 2), step, gamma)
    assert residual == reached and steps == list(range(INTERVAL, step + 1, INTERVAL))
    np.testing.assert_allclose(found, x @ np.stack([np.concatenate(own) for own in kept]), rtol=1e-7, atol=1e-15)
    norm = np.sqrt(product(step, gamma, step, gamma))
    rounding = HALF * np.abs(x).sum() * np.abs(rows).max(0) + 1e-6
    assert (error <= residual * norm * np.linalg.norm(rows - rows.mean(0), axis=0) + rounding).all()
    if step % INTERVAL == 0 and sigma in TRACKED:
        assert residual < 1e-6
    elif 10 * INTERVAL <= step != STEPS - INTERVAL // 2 and sigma < 0.25:  # far closer than the nearest tracked one
        nearest = min(TRACKED, key=lambda s: abs(s - sigma))
        assert np.linalg.norm(error) < 0.1 * np.linalg.norm(tracked(rows, nearest) - tracked(rows, sigma))


def test_a_snapshot_is_float16_unless_it_overflows_and_says_what_it_is(tmp_path):
    weights = {"usual": torch.randn(2, 500), "large": torch.tensor([1.0, 7e4]), "small": torch.tensor([3e-6])}
    path = write_snapshot(tmp_path, 300, {0.05: copy.deepcopy(weights), 0.1: weights})
    assert path == tmp_path / "ema" / "step_00000300.safetensors" and averages.snapshots(tmp_path) == [(300, path)]
    kept = safetensors.torch.load_file(path)
    assert [kept[f"0.1/{k}"].dtype for k in weights] == [torch.float16, torch.float32, torch.float16]
    torch.testing.assert_close(kept["0.05/usual"].float(), weights["usual"], rtol=HALF, atol=2**-25)
    assert kept["0.1/small"].item() == pytest.approx(3e-6, abs=2**-25)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    assert (header["format"], header["step"], json.loads(header["sigma_rels"])) == ("ddbm-ema-1", "300", [0.05, 0.1])
    with pytest.raises(ValueError, match="average of w is no longer finite"):
        write_snapshot(tmp_path, 1, {0.1: {"w": torch.tensor([float("nan")])}})


def test_a_run_resumed_earlier_forgets_what_came_after():
    names = [f"ema/step_000000{n}.safetensors" for n in (10, 20, 30)]
    others = ["log.jsonl", "samples/ema/step_00000030.safetensors", "checkpoints/step_00000030/ema.safetensors"]
    assert averages.outdated([*names, *others], 20) == names[2:] and averages.outdated(names, 0) == names
    assert averages.outdated([left := "ema/.step_00000010.safetensors.new"], 20) == [left]


def stored(run, step=20, **sizes):
    for n in (10, step):
        weights = {k: torch.ones(size) for k, size in (sizes or {"w": 9, "v": 2}).items()}
        path = write_snapshot(run, n, {sigma: copy.deepcopy(weights) for sigma in TRACKED})
    return path


def header(path, **change):
    """Another header, of the same tensors."""
    with safe_open(path, "pt") as file:
        old, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    safetensors.torch.save_file(tensors, path, old | change)


def directory(path):
    path.unlink()
    path.mkdir()


HARM = {
    "cut": (lambda path: os.truncate(path, path.stat().st_size - 3), "damaged"),
    "empty": (lambda path: os.truncate(path, 0), "damaged"),
    "petabyte": (lambda path: path.write_bytes((2**50).to_bytes(8, "little") + path.read_bytes()[8:]), "damaged"),
    "changed": (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), "contents have changed"),
    "directory": (directory, "damaged"),
    "swapped": (lambda path: path.write_bytes(path.with_name(FIRST).read_bytes()), "found ('ddbm-ema-1', '10')"),
    "foreign": (lambda path: safetensors.torch.save_file({"w": torch.ones(2)}, path), "no snapshot"),
    "deep": (lambda path: header(path, sigma_rels="[" * 10**5), "damaged"),
    "widths": (lambda path: header(path, sigma_rels="[0.05]"), "damaged"),
    "another": (lambda path: stored(path.parents[1] / "x", w=8, v=2).replace(path), "another run"),
    "fewer": (lambda path: stored(path.parents[1] / "x", w=9).replace(path), "another run"),
}  # fmt: skip


@pytest.mark.parametrize("how", HARM)
def test_what_is_wrong_with_a_snapshot_is_one_line_that_names_it(tmp_path, how):
    for run in (tmp_path / "none", tmp_path):
        with pytest.raises(ValueError, match=r"no snapshots.*--ema_snapshots"):
            reconstruct(run, 10, 0.1)
    path, (harm, words) = stored(tmp_path), HARM[how]
    for step in (9, 21):
        with pytest.raises(ValueError, match=rf"step {step} is outside .* 10 to 20"):
            reconstruct(tmp_path, step, 0.1)
    harm(path)
    with one_line(path, words):
        reconstruct(tmp_path, 20, 0.07)
    assert reconstruct(tmp_path, 15, 0.07)[2] == [10]
