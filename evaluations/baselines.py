"""The linear baseline: the best map from a small window of the source to the target pixel."""

from collections.abc import Iterator

import numpy as np

WINDOW = 7  # pixels a side, all channels, reflected at the border


def fit(sources: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Least squares over all pixels of sources [N, H, W, C] and targets [N, H, W, K], uint8 or float in [0, 1].

    The affine map float64 [window² C + 1, K] on the [0, 1] scale, rows ordered (channel, row, column), the constant
    last. Accumulates the normal equations, so memory does not grow with N; redundant directions get the smallest
    weights.
    """
    assert len(sources) and targets.shape[:3] == sources.shape[:3]
    if min(sources.shape[1:3]) <= WINDOW // 2:
        raise ValueError(f"images of {sources.shape[1:3]} px; expected more than {WINDOW // 2} a side")
    gram, cross = 0.0, 0.0
    for source, target in zip(sources, targets, strict=True):
        for x, y in zip(_windows(source), _unit(target), strict=True):
            gram += x.T @ x
            cross += x.T @ y
    return np.linalg.lstsq(gram, cross, rcond=None)[0]


def predict(weights: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Sources [N, H, W, C] -> uint8 [N, H, W, K]."""
    values = [[x @ weights for x in _windows(source)] for source in sources]
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def _unit(image: np.ndarray) -> np.ndarray:
    """float64 in [0, 1]; floats are taken to be there already."""
    return image / 255.0 if image.dtype == np.uint8 else image.astype(np.float64)


def _windows(image: np.ndarray) -> Iterator[np.ndarray]:
    """The design matrix [W, window² C + 1] of every row of pixels of an image [H, W, C]."""
    half = WINDOW // 2
    padded = np.pad(_unit(image), ((half, half), (half, half), (0, 0)), mode="reflect")
    for row in np.lib.stride_tricks.sliding_window_view(padded, (WINDOW, WINDOW), axis=(0, 1)):
        yield np.column_stack([row.reshape(len(row), -1), np.ones(len(row))])
