"""Distances that need all features equal torch-fidelity's and their definitions; intervals cover what they say."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from evaluations import distances


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
    assert (
        few.note == "subsets of all 9 images instead of 1000"
        and few.interval is not None
        and few.interval[0] < few.mean < few.interval[1]
    )
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
    monkeypatch.setattr(distances, "CHUNK", 17)
    reference, sample = features(0, 60), features(1, 50, 0.8)

    def covered(points: np.ndarray, balls: np.ndarray) -> float:
        radii = np.sort(cdist(balls, balls), 1)[:, 3]
        return float((cdist(points, balls) <= radii).any(1).mean())

    precision, recall = distances.precision_recall(reference, sample)
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
