"""The linear baseline: the best map from a small window of the source to the target pixel."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LinearMap:
    """Affine map from window x window source pixels (all channels, reflected at the border) to the target pixel.

    `weights`: float64 [window² C + 1, K] on the [0, 1] scale, rows ordered (channel, row, column), the constant last.
    """

    weights: np.ndarray
    window: int

    @classmethod
    def fit(cls, sources: np.ndarray, targets: np.ndarray, window: int = 7) -> "LinearMap":
        """Least squares over all pixels of sources [N, H, W, C] and targets [N, H, W, K], uint8 or float in [0, 1].

        Accumulates the normal equations, so memory does not grow with N; redundant directions get the smallest weights.
        """
        assert window % 2 and len(sources) and targets.shape[:3] == sources.shape[:3]
        if min(sources.shape[1:3]) <= window // 2:
            raise ValueError(f"images of {sources.shape[1:3]} px; expected more than {window // 2} a side")
        size = window**2 * sources.shape[3] + 1
        gram, cross = np.zeros((size, size)), np.zeros((size, targets.shape[3]))
        for source, target in zip(sources, targets, strict=True):
            for x, y in zip(_windows(source, window), _unit(target), strict=True):
                gram += x.T @ x
                cross += x.T @ y
        return cls(np.linalg.lstsq(gram, cross, rcond=None)[0], window)

    def predict(self, sources: np.ndarray) -> np.ndarray:
        """Sources [N, H, W, C] -> uint8 [N, H, W, K]."""
        values = [[x @ self.weights for x in _windows(source, self.window)] for source in sources]
        return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def _unit(image: np.ndarray) -> np.ndarray:
    """float64 in [0, 1]; floats are taken to be there already."""
    return image / 255.0 if image.dtype == np.uint8 else image.astype(np.float64)


def _windows(image: np.ndarray, window: int) -> Iterator[np.ndarray]:
    """The design matrix [W, window² C + 1] of every row of pixels of an image [H, W, C]."""
    half = window // 2
    padded = np.pad(_unit(image), ((half, half), (half, half), (0, 0)), mode="reflect")
    for row in np.lib.stride_tricks.sliding_window_view(padded, (window, window), axis=(0, 1)):
        yield np.column_stack([row.reshape(len(row), -1), np.ones(len(row))])
