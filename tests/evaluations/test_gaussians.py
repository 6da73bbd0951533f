"""The Fréchet distance has its closed form; means and covariances in one pass are numpy's."""

import numpy as np
import pytest
import torch

from evaluations.gaussians import HELD, Gaussian, Moments, frechet_distance, gaussian_of, merged


def test_frechet_distance_of_commuting_gaussians() -> None:
    random = np.random.default_rng(0)
    basis = np.linalg.qr(random.normal(size=(30, 30)))[0]
    mu1, mu2 = random.normal(size=(2, 30))
    v1, v2 = random.uniform(0.1, 9, size=(2, 30))
    v1[:10], v2[5:15] = 0, 0  # singular
    one, two = Gaussian(mu1, basis * v1 @ basis.T), Gaussian(mu2, basis * v2 @ basis.T)
    expected = np.sum((mu1 - mu2) ** 2) + np.sum((np.sqrt(v1) - np.sqrt(v2)) ** 2)
    assert frechet_distance(one, two) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-10)
    point = Gaussian(mu1, 0 * one.sigma)
    assert frechet_distance(point, two) == pytest.approx(np.sum((mu1 - mu2) ** 2) + v2.sum(), rel=1e-10)
    with pytest.raises(ValueError, match="by one network"):
        frechet_distance(one, Gaussian(mu2[:3], two.sigma[:3, :3]))


def test_frechet_distance_of_rank_one() -> None:
    """Σ = u uᵀ, v vᵀ do not commute: tr (Σ1 Σ2)^½ = |u·v|."""
    u, v = np.random.default_rng(1).normal(size=(2, 50))
    expected = u @ u + v @ v - 2 * abs(u @ v)
    zero = np.zeros(50)
    found = frechet_distance(Gaussian(zero, np.outer(u, u)), Gaussian(zero, np.outer(v, v)))
    assert found == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_equals_torch_fidelity() -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    features = torch.from_numpy(np.random.default_rng(2).normal(size=(2, 200, 40)))
    parts = (features[0], features[1].cumsum(1))
    one, two = (fid_features_to_statistics(part) for part in parts)
    ours = frechet_distance(*(gaussian_of(part.numpy()) for part in parts))
    expected = fid_statistics_to_metric(one, two, verbose=False)
    assert ours == pytest.approx(expected["frechet_inception_distance"], rel=1e-10)


@pytest.mark.parametrize("count", [2, 7, HELD, 2 * HELD + 3])
def test_one_pass_gives_mean_and_covariance(count: int) -> None:
    """Also where the mean is far from 0, where sums of squares would cancel."""
    rows = np.random.default_rng(count).normal(1000, 1, (count, 6)).astype(np.float32)
    found = gaussian_of(rows)
    assert found.n == count
    np.testing.assert_allclose(found.mu, rows.astype(np.float64).mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.sigma, np.cov(rows.astype(np.float64), rowvar=False), rtol=1e-9, atol=1e-12)
    moments = Moments()
    for row in rows:
        moments.add(row[None])
    np.testing.assert_allclose(moments.gaussian().sigma, found.sigma, rtol=1e-9, atol=1e-12)


def test_merged_is_the_gaussian_of_all_rows() -> None:
    random = np.random.default_rng(3)
    parts = [random.normal(n, n + 1, (5 + n, 4)) for n in range(3)]
    found, whole = merged([gaussian_of(part) for part in parts]), gaussian_of(np.concatenate(parts))
    assert found.n == whole.n == 18
    np.testing.assert_allclose(found.mu, whole.mu, rtol=1e-13)
    np.testing.assert_allclose(found.sigma, whole.sigma, rtol=1e-12)
