"""A fundus photograph that ships with scikit-image, to be restored; training, validation and test share no pixel.

Target: the middle 1280 x 1280 pixels (RGB, 8 bits). Source: the same, blurred by a Gaussian of BLUR pixels and with
Gaussian noise of NOISE grey levels, rounded and clipped to 8 bits. Both are the same when the picture is turned or
mirrored, as laws; the noise is drawn once for the whole picture, from a fixed seed.
"""

from functools import cache

import numpy as np

from ddbm.config import DataConfig

from .patches import Parted, patch_size

BLOCK = 256  # pixels a side of what is held out
BLUR, NOISE = 3.0, 20.0
# The part of every block; the corners are mostly black.
PARTS = np.array(
    [
        ["", "train", "val", "train", ""],
        ["train", "test", "train", "test", "train"],
        ["train", "train", "train", "train", "test"],
        ["train", "val", "train", "test", "train"],
        ["", "train", "train", "train", ""],
    ]
)


class Retina(Parted):
    def __init__(self, split: str, options: DataConfig) -> None:
        super().__init__(split, options, pictures(), PARTS, patch_size(options, BLOCK, BLOCK), BLOCK)


@cache
def pictures() -> tuple[np.ndarray, np.ndarray]:
    """Target and source, uint8 [1280, 1280, 3]."""
    from scipy.ndimage import gaussian_filter
    from skimage.data import retina

    whole = retina()
    margins = [(n - side * BLOCK) // 2 for n, side in zip(whole.shape, PARTS.shape, strict=False)]
    target = whole[tuple(slice(m, m + side * BLOCK) for m, side in zip(margins, PARTS.shape, strict=True))]
    blurred = gaussian_filter(target.astype(np.float32), (BLUR, BLUR, 0))
    noisy = blurred + np.random.default_rng(0).normal(0, NOISE, target.shape)
    return target, np.rint(noisy).clip(0, 255).astype(np.uint8)
