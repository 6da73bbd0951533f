"""Distances equal torch-fidelity's, closed forms and definitions; intervals cover what they say."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from evaluations import distances, sets
from evaluations.distances import Gaussian, Moments, frechet_distance, gaussian_of, merged


def features(seed: int, count: int, shift: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(count, 8)) + shift).astype(np.float32)


def test_kernel_distance_equals_torch_fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_fidelity.metric_kid import kid_features_to_metric

    monkeypatch.setattr(distances, "SUBSET_SIZE", 20)
    reference, sample = features(0, 90), features(1, 70, 0.5)
    ours = distances.kernel_distance(reference, sample)
    theirs = kid_features_to_metric(
        torch.from_numpy(sample), torch.from_numpy(reference), kid_subset_size=20, verbose=False
    )
    assert ours.mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-12)
    assert ours.std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-12)
    assert not ours.note


def test_kernel_distance_of_few_images() -> None:
    """Of all of them; the interval from halves, and none where halves are single images."""
    few = distances.kernel_distance(features(0, 12), features(1, 9, 0.5))
    assert few.note == "subsets of all 9 images instead of 1000"
    assert few.interval is not None and few.interval[0] < few.mean < few.interval[1]
    assert distances.kernel_distance(features(0, 3), features(1, 3)).interval is None
    assert few.std and distances.kernel_distance(features(0, 9), features(1, 9)).std is None  # but for the order


def test_kernel_interval_covers_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """95 % in theory: of 40 draws, 34 or more with probability 0.986; and it is not far wider than it must be."""
    monkeypatch.setattr(distances, "SUBSET_SIZE", 25)
    truth = distances.kernel_distance(features(100, 4000), features(101, 4000, 0.4)).mean
    found = [distances.kernel_distance(features(n, 100), features(1000 + n, 100, 0.4)) for n in range(40)]
    inside = sum(low < truth < high for low, high in (kernel.interval for kernel in found if kernel.interval))
    assert inside >= 34
    spread = np.std([kernel.mean for kernel in found])
    width = np.mean([(kernel.interval[1] - kernel.interval[0]) / 2 for kernel in found if kernel.interval])
    assert 1.2 * spread < width < 3.2 * spread  # 1.96 for a normal distribution


def test_interval_of_a_mean() -> None:
    """That of a normal distribution for many values; none for one."""
    values = np.random.default_rng(0).normal(3, 2, 5000)
    found = distances.interval_of_mean(values)
    expected = values.mean() + 1.96 * values.std() / np.sqrt(5000) * np.array([-1, 1])
    assert found == pytest.approx(expected, abs=0.1 * values.std() / np.sqrt(5000))
    assert distances.interval_of_mean(values) == found
    assert distances.interval_of_mean(values[:1]) is None


def test_precision_and_recall_by_their_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "CHUNK", 17)
    reference, sample = features(0, 60), features(1, 50, 0.8)

    def covered(points: np.ndarray, balls: np.ndarray) -> float:
        radii = np.sort(cdist(balls, balls), 1)[:, 3]
        return float((cdist(points, balls) <= radii).any(1).mean())

    precision, recall = sets.Sets([reference], [sample]).precision_recall
    assert precision == pytest.approx(covered(sample, reference)) and 0 < precision < 1
    assert recall == pytest.approx(covered(reference, sample)) and 0 < recall < 1


def test_density_and_coverage_by_their_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "CHUNK", 17)
    reference, sample = features(0, 60), features(1, 50, 0.8)
    radii = np.sort(cdist(reference, reference), 1)[:, 5]
    within = cdist(reference, sample) < radii[:, None]
    density, coverage = distances.density_coverage(reference, sample)
    assert density == pytest.approx(within.sum() / (5 * 50)) and coverage == pytest.approx(within.any(1).mean())
    assert 0 < coverage < 1 and density > 0
    one, whole = distances.density_coverage(reference, reference)
    assert whole == 1 and one == pytest.approx(1)  # a ball holds its centre and the four nearest others


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


def test_frechet_distance_equals_torch_fidelity() -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    features = torch.from_numpy(np.random.default_rng(2).normal(size=(2, 200, 40)))
    parts = (features[0], features[1].cumsum(1))
    one, two = (fid_features_to_statistics(part) for part in parts)
    ours = frechet_distance(*(gaussian_of(part.numpy()) for part in parts))
    expected = fid_statistics_to_metric(one, two, verbose=False)
    assert ours == pytest.approx(expected["frechet_inception_distance"], rel=1e-10)


@pytest.mark.parametrize("count", [2, 7, 515])
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
    found, whole = (merged([gaussian_of(part) for part in parts]), gaussian_of(np.concatenate(parts)))
    assert found.n == whole.n == 18
    np.testing.assert_allclose(found.mu, whole.mu, rtol=1e-13)
    np.testing.assert_allclose(found.sigma, whole.sigma, rtol=1e-12)
