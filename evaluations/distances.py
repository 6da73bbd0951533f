"""Distances between two sets of features: as Gaussians, gathered in one pass, by a kernel, by neighbours; intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

SUBSETS, SUBSET_SIZE, SEED = 100, 1000, 2020  # torch-fidelity's
DENSITY_NEIGHBOURS = 5  # the paper's
CHUNK = 1000  # rows whose distances to all others are held at once
RESAMPLES = 1000  # of the bootstrap
TAILS = (0.025, 0.975)

Interval = tuple[float, float]  # of 95 %


class Score(NamedTuple):
    """A number, the standard deviation over what it is a mean of, its 95 % interval, and what else is to be said.

    per_image: of pairs, the values [N] that it is the mean of; curve: lists of numbers, by name, that it sums up.
    """

    mean: float
    std: float | None = None
    interval: Interval | None = None
    note: str = ""
    per_image: np.ndarray | None = None
    curve: dict[str, list[float]] | None = None


def kernel_distance(reference: np.ndarray, sample: np.ndarray) -> Score:
    """MMD² with the kernel (x·y / D + 1)³, unbiased, the mean over 100 subsets of 1000 (or all, if fewer) features.

    float32 [N, D] each, N >= 2. The subsets are torch-fidelity's; the interval comes from them, or, where they are
    more than half of the images, from 100 others of half: subsets of m of n images without replacement vary by
    σ² (1 / m - 1 / n), the estimate from all by σ² / n, and the mean over S subsets by 1 / S of the former on top
    (Politis & Romano 1994).
    """
    count = min(len(reference), len(sample))
    size = min(SUBSET_SIZE, count)
    values = _subsets(reference, sample, size)
    mean, interval = float(values.mean()), None
    if count >= 4:
        half = min(size, count // 2)
        smaller = values if half == size else _subsets(reference, sample, half)
        share = half / count
        deviations = (smaller - smaller.mean()) * np.sqrt(share / (1 - share) + 1 / SUBSETS)
        low, high = np.quantile(deviations, TAILS)
        interval = float(mean - high), float(mean - low)
    alike = size == len(reference) == len(sample)  # each subset is all there is
    note = f"subsets of all {size} images instead of {SUBSET_SIZE}" if size < SUBSET_SIZE else ""
    return Score(mean, None if alike else float(values.std()), interval, note)


def _subsets(reference: np.ndarray, sample: np.ndarray, size: int) -> np.ndarray:
    from torch_fidelity.metric_kid import kernel_mmd

    random = np.random.RandomState(SEED)
    values = []
    for _ in range(SUBSETS):
        x, y = (rows[random.choice(len(rows), size, replace=False)] for rows in (sample, reference))
        values.append(kernel_mmd(x, y))
    return np.array(values, np.float64)


def density_coverage(reference: np.ndarray, sample: np.ndarray) -> tuple[float, float]:
    """How many reference balls a sample lies in, over k, and the share of balls with a sample in them.

    The ball of a reference reaches to its k-th nearest other one, k = 5. float32 [N >= 6, D] and [M, D].
    """
    x, y = (torch.from_numpy(rows).double() for rows in (reference, sample))
    inside, covered = 0.0, 0.0
    for part in x.split(CHUNK):
        radii = torch.cdist(part, x).kthvalue(DENSITY_NEIGHBOURS + 1).values  # the first is itself
        within = torch.cdist(part, y) < radii[:, None]
        inside += float(within.sum())
        covered += float(within.any(1).sum())
    return inside / (DENSITY_NEIGHBOURS * len(y)), covered / len(x)


def interval_of_mean(values: np.ndarray, number: Callable[[np.ndarray], Any] = np.asarray) -> Interval | None:
    """The percentile interval of the mean of values [N], whose images are drawn anew with replacement (Efron 1979).

    number: made of the mean, which is [L] of values [N, L]. The draws are the same for all metrics of N images. None
    for fewer than two values.
    """
    if len(values) < 2:
        return None
    rng = np.random.default_rng(0)
    means = [number(values[rng.integers(len(values), size=len(values))].mean(0)) for _ in range(RESAMPLES)]
    low, high = np.quantile(means, TAILS)
    return float(low), float(high)


@dataclass(frozen=True)
class Gaussian:
    """Mean `mu` [D] and covariance `sigma` [D, D], float64, of `n` rows; None: nobody says of how many."""

    mu: np.ndarray
    sigma: np.ndarray
    n: int | None = None

    @cached_property
    def factor(self) -> np.ndarray:
        """F [D, rank] with F Fᵀ = sigma."""
        values, vectors = np.linalg.eigh(self.sigma)
        kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
        return vectors[:, kept] * np.sqrt(values[kept])


class Moments:
    """Mean and scatter of rows [n, D], gathered in float64 (Chan, Golub, LeVeque 1983); memory does not grow with n."""

    def __init__(self) -> None:
        self.n = 0
        self.mean: Any = 0.0
        self.scatter: Any = 0.0

    def add(self, rows: np.ndarray) -> None:
        rows = rows.astype(np.float64)
        n, mean = len(rows), rows.mean(0)
        rows -= mean
        change = mean - self.mean
        self.scatter += rows.T @ rows + np.outer(change, change * (self.n * n / (self.n + n)))
        self.mean += change * (n / (self.n + n))
        self.n += n

    def gaussian(self) -> Gaussian:
        """With the unbiased covariance, as numpy.cov; n >= 2."""
        return Gaussian(self.mean, self.scatter / (self.n - 1), self.n)


def gaussian_of(rows: np.ndarray) -> Gaussian:
    """The Gaussian of rows [n >= 2, D]."""
    return Gaussian(rows.mean(0, dtype=np.float64), np.cov(rows, rowvar=False, dtype=np.float64), len(rows))


def merged(parts: Sequence[Gaussian]) -> Gaussian:
    """The Gaussian of the rows of all parts together; it is known of how many each is."""
    counts = [part.n for part in parts if part.n is not None]
    mu = np.average([part.mu for part in parts], 0, counts)
    each = zip(parts, counts, strict=True)
    scatter = sum(part.sigma * (n - 1) + n * np.outer(part.mu - mu, part.mu - mu) for part, n in each)
    return Gaussian(mu, scatter / (sum(counts) - 1), sum(counts))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """‖μ1 − μ2‖² + tr Σ1 + tr Σ2 − 2 tr (Σ1 Σ2)^½  >= 0 (Dowson & Landau 1982; Heusel et al. 2017, Eq. 6).

    Also of singular Σ. With Σ = F Fᵀ, tr (Σ1 Σ2)^½ is the sum of the singular values of F1ᵀ F2: real, and free of the
    noise that the square roots of rounded zero eigenvalues add up to.
    """
    cross = np.linalg.svd(a.factor.T @ b.factor, compute_uv=False).sum()
    distance = np.sum((a.mu - b.mu) ** 2) + np.trace(a.sigma) + np.trace(b.sigma) - 2 * cross
    return max(float(distance), 0.0)
