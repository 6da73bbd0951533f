"""Distances between two sets of features that need all of them, by a kernel and by nearest neighbours; intervals."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SUBSETS, SUBSET_SIZE, SEED = 100, 1000, 2020  # torch-fidelity's
MANIFOLD_NEIGHBOURS = 3  # torch-fidelity's, and the paper's
DENSITY_NEIGHBOURS = 5  # the paper's
CHUNK = 1000  # rows whose distances to all others are held at once
RESAMPLES = 1000  # of the bootstrap
TAILS = (0.025, 0.975)

Interval = tuple[float, float]  # of 95 %


class Score(NamedTuple):
    """A number, the standard deviation over what it is a mean of, its 95 % interval, and what else is to be said.

    per_image: of pairs, the values [N] that it is the mean of.
    """

    mean: float
    std: float | None = None
    interval: Interval | None = None
    note: str = ""
    per_image: np.ndarray | None = None


def kernel_distance(reference: np.ndarray, sample: np.ndarray) -> Score:
    """MMD² with the kernel (x·y / D + 1)³, unbiased, the mean over 100 subsets of 1000 (or all, if fewer) features.

    float32 [N, D] each, N >= 2. The subsets are torch-fidelity's; the interval comes from them, or, where they are
    more than half of the images, from 100 others of half.
    """
    count = min(len(reference), len(sample))
    size = min(SUBSET_SIZE, count)
    values = _subsets(reference, sample, size)
    mean, interval = float(values.mean()), None
    if 2 * size <= count:
        interval = interval_of_subsets(mean, values, size, count)
    elif count >= 4:
        interval = interval_of_subsets(mean, _subsets(reference, sample, count // 2), count // 2, count)
    alike = size == len(reference) == len(sample)  # each subset is all there is
    note = f"subsets of all {size} images instead of {SUBSET_SIZE}" if size < SUBSET_SIZE else ""
    return Score(mean, None if alike else float(values.std()), interval, note)


def _subsets(reference: np.ndarray, sample: np.ndarray, size: int) -> np.ndarray:
    from torch_fidelity.metric_kid import kernel_mmd

    random = np.random.RandomState(SEED)
    values = np.zeros(SUBSETS)
    for n in range(SUBSETS):
        x = sample[random.choice(len(sample), size, replace=False)]
        y = reference[random.choice(len(reference), size, replace=False)]
        values[n] = kernel_mmd(x, y)
    return values


def precision_recall(reference: np.ndarray, sample: np.ndarray) -> tuple[float, float]:
    """Share of samples in the reference's manifold and of references in the samples', by torch-fidelity.

    float32 [N >= 4, D] each.
    """
    from torch_fidelity.metric_prc import calculate_precision_recall_part

    precision, recall = calculate_precision_recall_part(
        torch.from_numpy(sample), torch.from_numpy(reference), MANIFOLD_NEIGHBOURS, CHUNK
    )
    return precision, recall


def density_coverage(reference: np.ndarray, sample: np.ndarray) -> tuple[float, float]:
    """How many reference balls a sample lies in, over k, and the share of balls with a sample in them.

    The ball of a reference reaches to its k-th nearest other one, k = 5. float32 [N >= 6, D] and [M, D].
    """
    x, y = (torch.from_numpy(rows).double() for rows in (reference, sample))
    inside, covered = 0.0, 0.0
    for part in x.split(CHUNK):
        radii = _distances(part, x).kthvalue(DENSITY_NEIGHBOURS + 1).values  # the first is itself
        within = _distances(part, y) < radii[:, None]
        inside += float(within.sum())
        covered += float(within.any(1).sum())
    return inside / (DENSITY_NEIGHBOURS * len(y)), covered / len(x)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="use_mm_for_euclid_dist")


def interval_of_mean(values: np.ndarray) -> Interval | None:
    """The percentile interval of the mean of values [N], whose images are drawn anew with replacement (Efron 1979).

    The draws are the same for all metrics of N images. None for fewer than two values.
    """
    if len(values) < 2:
        return None
    rng = np.random.default_rng(0)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, TAILS)
    return float(low), float(high)


def interval_of_subsets(mean: float, values: np.ndarray, size: int, count: int) -> Interval:
    """The interval of a `mean` over subsets of an estimate from `count` images, from its values [S] on such subsets.

    Subsets of `size` images without replacement vary by σ² (1 / size - 1 / count), the estimate from all images by
    σ² / count, and the mean over S subsets by 1 / S of the former on top (Politis & Romano 1994).
    """
    share = size / count
    deviations = (values - values.mean()) * np.sqrt(share / (1 - share) + 1 / len(values))
    low, high = np.quantile(deviations, TAILS)
    return float(mean - high), float(mean - low)
