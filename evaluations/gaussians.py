"""Sets of features as Gaussians, in one pass over them, and the Fréchet distance between two."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

HELD = 512  # rows gathered before they are added, as adding costs the same for any number


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
        self._held: list[np.ndarray] = []

    def add(self, rows: np.ndarray) -> None:
        self._held.append(rows)
        if sum(map(len, self._held)) >= HELD:
            self._settle()

    def _settle(self) -> None:
        rows = np.concatenate(self._held).astype(np.float64)
        self._held.clear()
        mean = rows.mean(0)
        rows -= mean
        self.merge(len(rows), mean, rows.T @ rows)

    def merge(self, n: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        """Adds n rows of this mean and scatter Σ (x - mean)(x - mean)ᵀ."""
        change = mean - self.mean
        self.scatter += scatter + np.outer(change, change * (self.n * n / (self.n + n)))
        self.mean += change * (n / (self.n + n))
        self.n += n

    def gaussian(self) -> Gaussian:
        """With the unbiased covariance, as numpy.cov; n >= 2."""
        if self._held:
            self._settle()
        return Gaussian(self.mean, self.scatter / (self.n - 1), self.n)


def gaussian_of(rows: np.ndarray) -> Gaussian:
    """The Gaussian of rows [n >= 2, D]."""
    return Gaussian(rows.mean(0, dtype=np.float64), np.cov(rows, rowvar=False, dtype=np.float64), len(rows))


def merged(parts: Sequence[Gaussian]) -> Gaussian:
    """The Gaussian of the rows of all parts together."""
    moments = Moments()
    for part in parts:
        assert part.n is not None
        moments.merge(part.n, part.mu, part.sigma * (part.n - 1))
    return moments.gaussian()


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """‖μ1 − μ2‖² + tr Σ1 + tr Σ2 − 2 tr (Σ1 Σ2)^½  >= 0 (Dowson & Landau 1982; Heusel et al. 2017, Eq. 6).

    Also of singular Σ. With Σ = F Fᵀ, tr (Σ1 Σ2)^½ is the sum of the singular values of F1ᵀ F2: real, and free of the
    noise that the square roots of rounded zero eigenvalues add up to.
    """
    if a.mu.shape != b.mu.shape:
        raise ValueError(f"features {a.mu.shape} against {b.mu.shape}; expected as many: compute both by one network")
    cross = np.linalg.svd(a.factor.T @ b.factor, compute_uv=False).sum()
    distance = np.sum((a.mu - b.mu) ** 2) + np.trace(a.sigma) + np.trace(b.sigma) - 2 * cross
    return max(float(distance), 0.0)
