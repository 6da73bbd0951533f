"""The linear baseline: the best map from a small window of the source to the target pixel."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

BLOCK = 1 << 15  # pixels whose windows are held at once


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
            y = _unit(target).reshape(-1, targets.shape[3])
            for pixels, x in _blocks(_unit(source), window):
                gram += x.T @ x
                cross += x.T @ y[pixels]
        return cls(np.linalg.lstsq(gram, cross, rcond=None)[0], window)

    def predict(self, sources: np.ndarray) -> np.ndarray:
        """Sources [N, H, W, C] -> uint8 [N, H, W, K]."""
        count, height, width, _ = sources.shape
        predicted = np.empty((count, height * width, self.weights.shape[1]), np.uint8)
        for source, output in zip(sources, predicted, strict=True):
            for pixels, x in _blocks(_unit(source), self.window):
                output[pixels] = np.rint(np.clip(x @ self.weights, 0, 1) * 255).astype(np.uint8)
        return predicted.reshape(count, height, width, -1)


def _unit(image: np.ndarray) -> np.ndarray:
    """float64 in [0, 1]; floats are taken to be there already."""
    return image / 255.0 if image.dtype == np.uint8 else image.astype(np.float64)


def _blocks(image: np.ndarray, window: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Slices of the flat pixels of image [H, W, C], each with its design matrix [pixels, window² C + 1]."""
    height, width, _ = image.shape
    half = window // 2
    padded = np.pad(image, ((half, half), (half, half), (0, 0)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (window, window), axis=(0, 1))
    rows = max(1, BLOCK // width)
    for top in range(0, height, rows):
        block = windows[top : top + rows]
        flat = block.reshape(block.shape[0] * width, -1)
        yield slice(top * width, top * width + len(flat)), np.column_stack([flat, np.ones(len(flat))])
