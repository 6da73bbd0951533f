"""A real picture that ships with scikit-image, cut so that no training patch touches a validation pixel.

Target: an immunohistochemically stained tissue section (512 x 512, RGB). Source: the same section with hematoxylin
alone, by colour deconvolution (Ruifrok & Johnston 2001).
"""

from functools import cache

import numpy as np
import torch

from ddbm.config import DataConfig

from .patches import BLOCK, Patches, free_positions, patch_size, scaled, tiles

VAL_COLUMNS = (1, 3, 0, 2)  # the validation block of each row of 4: together brown gland, pale stroma and lumen


class Histology(Patches):
    """Train: as many patches as tile the training blocks, anywhere that holds no validation pixel. Val and test, the
    same: the disjoint patches of the validation blocks. All: those of every block.
    """

    def __init__(self, split: str, options: DataConfig) -> None:
        size = patch_size(options)
        columns = [range(4) if split == "all" else [column] for column in VAL_COLUMNS]
        positions = tiles([(row * BLOCK, column * BLOCK) for row in range(4) for column in columns[row]], size)
        length = len(positions)
        if split == "train":
            positions, length = training_positions(size), 12 * (BLOCK // size) ** 2
        note = "" if split in ("train", "all") else "val and test are the same four blocks of the picture"
        super().__init__(split, options, pictures(), positions, length, note, size)


@cache
def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """Target and source, float32 [3, 512, 512] in [-1, 1]; both hold whole 8-bit values."""
    from skimage.color import hed2rgb, rgb2hed
    from skimage.data import immunohistochemistry

    stained = immunohistochemistry()
    stains = rgb2hed(stained)
    stains[..., 1:] = 0
    return scaled(stained), scaled(np.rint(np.clip(hed2rgb(stains), 0, 1) * 255).astype(np.uint8))


def validation_pixels() -> np.ndarray:
    """Bool [512, 512], True inside the validation blocks."""
    held = np.zeros((4 * BLOCK, 4 * BLOCK), bool)
    for row, column in enumerate(VAL_COLUMNS):
        held[row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK] = True
    return held


def training_positions(size: int) -> np.ndarray:
    """All (top, left) whose patch of `size` pixels holds no validation pixel: int64 [N, 2]."""
    return free_positions(validation_pixels(), size)
