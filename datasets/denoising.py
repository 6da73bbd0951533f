"""The stained section of `histology` under strong noise, to be denoised; training, validation and test share no pixel.

Target: the section (512 x 512, RGB, 8 bits). Source: the same with salt-and-pepper noise, every pixel lost with
probability LOST, and then black or white with equal odds. The noise is drawn once for the whole picture, from a fixed
seed, so a pixel has the same in every patch; that of a pixel says nothing of another's, and its law stays when the
picture is turned or mirrored.
"""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from ddbm.config import DataConfig

from .patches import BLOCK, Parted, patch_size

LOST = 0.5
# The part of every block of BLOCK pixels. Test is one square with gland, nuclei and stroma.
PARTS = np.array(
    [
        ["train", "train", "val", "train"],
        ["train", "train", "train", "train"],
        ["train", "train", "test", "test"],
        ["train", "val", "test", "test"],
    ]
)


class Denoising(Parted):
    def __init__(self, split: str, options: DataConfig) -> None:
        super().__init__(split, options, pictures(), PARTS, patch_size(options), BLOCK)


@cache
def pictures() -> tuple[np.ndarray, np.ndarray]:
    """Target and source, uint8 [512, 512, 3]."""
    from skimage.data import immunohistochemistry

    target = immunohistochemistry()
    return target, noisy(target)


def noisy(images: np.ndarray) -> np.ndarray:
    """Images under the noise: uint8 [..., H, W, C]."""
    noise = np.random.default_rng(0).random((*images.shape[:-1], 1))
    return np.where(noise < LOST, np.where(noise < LOST / 2, 0, 255), images).astype(np.uint8)


def whole() -> tuple[np.ndarray, np.ndarray]:
    """Target and source of the test blocks in one piece, uint8 [256, 256, 3]."""
    first, last = BLOCK * np.argwhere(PARTS == "test")[[0, -1]]
    target, source = (image[first[0] : last[0] + BLOCK, first[1] : last[1] + BLOCK] for image in pictures())
    return target, source


def write_whole(folder: str | Path) -> None:
    """The same as target.png and source.png in a folder, which is made."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for side, image in zip(("target", "source"), whole(), strict=True):
        Image.fromarray(image).save(Path(folder, f"{side}.png"))
