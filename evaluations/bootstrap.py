"""95 % intervals: of a mean over images by resampling them, of a kernel distance from subsets."""

import numpy as np

RESAMPLES = 1000
SEED = 0
TAILS = (0.025, 0.975)

Interval = tuple[float, float]


def of_mean(values: np.ndarray) -> Interval | None:
    """The percentile interval of the mean of values [N], whose images are drawn anew with replacement (Efron 1979).

    The draws are the same for all metrics of N images. None for fewer than two values.
    """
    if len(values) < 2:
        return None
    rng = np.random.default_rng(SEED)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, TAILS)
    return float(low), float(high)


def of_subsets(mean: float, values: np.ndarray, size: int, count: int) -> Interval:
    """The interval of a `mean` over subsets of an estimate from `count` images, from its values [S] on such subsets.

    Subsets of `size` images without replacement vary by σ² (1 / size - 1 / count), the estimate from all images by
    σ² / count, and the mean over S subsets by 1 / S of the former on top (Politis & Romano 1994).
    """
    share = size / count
    deviations = (values - values.mean()) * np.sqrt(share / (1 - share) + 1 / len(values))
    low, high = np.quantile(deviations, TAILS)
    return float(mean - high), float(mean - low)
