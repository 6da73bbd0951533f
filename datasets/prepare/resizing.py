"""Pictures made smaller before they are stored, as the reader would do it."""

from pathlib import Path

import numpy as np
import torch

from ..images import Picture
from ..paired import Side, fitted


def covering(picture: Picture, size: int, path: Path, how: str = "bilinear") -> Picture:
    """A picture of unsigned integers, scaled until it covers size x size pixels, and its centre; how: of `RESIZE`."""
    pixels = picture.pixels
    scale = size / min(pixels.shape[:2])
    rows, columns = (max(size, round(n * scale)) for n in pixels.shape[:2])
    window = tuple(slice((n - size) // 2, (n - size) // 2 + size) for n in (rows, columns))
    mask = None if picture.mask is None else torch.from_numpy(picture.mask)[None]
    side = Side("picture", picture.white, 0, how)
    image, seen = fitted(pixels, mask, (rows, columns), (window[0], window[1]), side, path)
    full = np.iinfo(pixels.dtype).max
    values = np.rint((image.numpy().transpose(1, 2, 0) + 1) / 2 * full).astype(pixels.dtype)
    return Picture(values, None if seen is None else seen[0].numpy())
