"""Distances equal torch-fidelity's, closed forms and definitions; intervals are what they say and cover the truth."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from evaluations import distances, sets
from evaluations.distances import Gaussian, Moments, frechet_distance, gaussian_of, kernel_distance


def features(seed, count, shift=0.0):
    return (np.random.default_rng(seed).normal(size=(count, 8)) + shift).astype(np.float32)


def mmd(x, y):
    """Gretton et al. 2012, Eq. 3, of as many rows in both."""
    m, (xx, yy, xy) = len(x), (((a @ b.T) / 8 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    return (xx.sum() + yy.sum() - np.trace(xx) - np.trace(yy)) / (m * (m - 1)) - 2 * xy.mean()


@pytest.mark.parametrize(("counts", "subset"), [((90, 70), 20), ((30, 41), 20), ((12, 9), 1000), ((9, 9), 1000)])
def test_kernel_distance(monkeypatch, counts, subset):
    """Torch-fidelity's mean and deviation; its interval from halves where the subsets are more than these."""
    from torch_fidelity.metric_kid import kid_features_to_metric

    monkeypatch.setattr(distances, "SUBSET_SIZE", subset)
    monkeypatch.setattr(distances, "SUBSETS", 7)
    reference, sample = features(0, counts[0]), features(1, counts[1], 0.5)
    found, size, fewest = kernel_distance(reference, sample), min(subset, *counts), min(counts)
    theirs = kid_features_to_metric(
        torch.from_numpy(sample), torch.from_numpy(reference), kid_subset_size=size, kid_subsets=7, verbose=False
    )
    assert found.mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    expected = theirs["kernel_inception_distance_std"]
    assert found.std == (None if counts == (9, 9) else pytest.approx(expected, rel=1e-9))
    assert found.note == ("" if size == subset else f"subsets of all 9 images instead of {subset}")
    m, random = min(size, fewest // 2), np.random.RandomState(2020)
    drawn = []
    for _ in range(7):
        x = sample[random.choice(len(sample), m, replace=False)]
        drawn.append(mmd(x, reference[random.choice(len(reference), m, replace=False)]))
    # σ² (1 / m - 1 / n) is the variance of a subset, σ² / n that of all, and 1 / 7 of the former is the mean's own
    scale = np.sqrt((1 / fewest) / (1 / m - 1 / fewest) + 1 / 7)
    low, high = np.percentile(np.array(drawn) - np.mean(drawn), [2.5, 97.5]) * scale
    assert found.interval == pytest.approx((found.mean - high, found.mean - low), rel=1e-5)
    assert [kernel_distance(reference[:n], sample).interval is None for n in (3, 4)] == [True, False]


def test_interval_of_a_mean():
    """The percentiles of means of as many values drawn with replacement; of many values a normal distribution's."""
    assert distances.interval_of_mean(np.ones(1)) is None and distances.interval_of_mean(np.ones(2)) == (1, 1)
    values, random = np.random.default_rng(0).normal(3, 2, 900), np.random.default_rng(0)
    found = distances.interval_of_mean(values)
    drawn = [np.mean([values[n] for n in random.integers(900, size=900)]) for _ in range(1000)]
    assert found == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])), rel=1e-12)
    assert found == pytest.approx(values.mean() + 1.96 * 2 / 30 * np.array([-1, 1]), abs=0.15 * 2 / 30)


def test_neighbours_by_their_definition(monkeypatch):
    """Precision and recall of the third, density and coverage of the fifth."""
    monkeypatch.setattr(sets, "CHUNK", 17)
    monkeypatch.setattr(distances, "CHUNK", 17)
    reference, sample = features(0, 60), features(1, 50, 0.8)
    found = sets.Sets([reference], [sample])

    def covered(points, balls):
        radii = np.sort(cdist(balls, balls), 1)[:, 3]
        return float((cdist(points, balls) <= radii).any(1).mean())

    for metric, sides in ((sets.precision, (sample, reference)), (sets.recall, (reference, sample))):
        assert 0 < metric(found).mean < 1 and metric(found).mean == pytest.approx(covered(*sides))
    within = cdist(reference, sample) < np.sort(cdist(reference, reference), 1)[:, 5, None]
    assert sets.density(found).mean == pytest.approx(within.sum() / (5 * 50))
    assert sets.coverage(found).mean == pytest.approx(within.any(1).mean()) and 0 < within.any(1).mean() < 1
    same = distances.density_coverage(reference, reference)
    assert same == pytest.approx((1, 1))  # a ball holds its centre and the four nearest others


def test_frechet_distance_of_commuting_gaussians():
    random = np.random.default_rng(0)
    basis = np.linalg.qr(random.normal(size=(30, 30)))[0]
    mu1, mu2 = random.normal(size=(2, 30))
    v1, v2 = random.uniform(0.1, 9, size=(2, 30))
    v1[:10], v2[5:15] = 0, 0  # singular
    one, two = Gaussian(mu1, basis * v1 @ basis.T), Gaussian(mu2, basis * v2 @ basis.T)
    expected = np.sum((mu1 - mu2) ** 2) + np.sum((np.sqrt(v1) - np.sqrt(v2)) ** 2)
    assert frechet_distance(one, two) == pytest.approx(expected, rel=1e-10)
    assert 0 <= frechet_distance(one, one) == pytest.approx(0, abs=1e-10)
    assert one.factor.shape == (30, 20) and two.factor.shape == (30, 20)  # no noise of zeros that were rounded
    point = Gaussian(mu1, 0 * one.sigma)
    assert frechet_distance(point, two) == pytest.approx(np.sum((mu1 - mu2) ** 2) + v2.sum(), rel=1e-10)


@pytest.mark.parametrize("count", [2, 7, 515])
def test_mean_and_covariance(count):
    """At once and row by row, also where the mean is far from 0, where sums of squares would cancel."""
    rows = np.random.default_rng(count).normal(1000, 1, (count, 6)).astype(np.float32)
    moments = Moments()
    for row in rows:
        moments.add(row[None])
    for found in (gaussian_of(rows), moments.gaussian()):
        assert found.n == count
        np.testing.assert_allclose(found.mu, rows.astype(np.float64).mean(0), rtol=1e-13)
        np.testing.assert_allclose(found.sigma, np.cov(rows.astype(np.float64), rowvar=False), rtol=1e-9, atol=1e-12)
