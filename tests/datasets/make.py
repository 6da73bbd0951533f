"""Small image files for the tests."""

import warnings
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image


def noise(height=8, width=8, channels=3, seed=0, dtype=np.uint8):
    """Random integers over the whole range, [H, W, C]."""
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (height, width, channels), dtype, endpoint=True)


def write(path: Path, pixels: np.ndarray) -> Path:
    """Write an image in the format that the extension and the pixel type ask for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.squeeze(pixels)
    if path.suffix == ".tif":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tifffile.imwrite(path, pixels)
    elif pixels.dtype == np.uint16:
        path.write_bytes(imagecodecs.png_encode(pixels))
    else:
        Image.fromarray(pixels).save(path)
    return path


def two_folders(root: Path, count=3, sides=("train/source", "train/target"), **how):
    """`count` pairs named 0, 1, ...; the target of i has seed i, its source seed 100 + i."""
    for i in range(count):
        write(root / sides[0] / f"{i}.png", noise(seed=100 + i, **how))
        write(root / sides[1] / f"{i}.png", noise(seed=i, **how))
    return str(root)


def stored(image):
    """A [C, H, W] tensor in [-1, 1] as the uint8 [H, W, C] it was read from."""
    return ((image.numpy().transpose(1, 2, 0) + 1) / 2 * 255).round().astype(np.uint8)
