"""A real picture that ships with scikit-image, cut so that no training patch touches a validation pixel.

Target: an immunohistochemically stained tissue section (512 x 512, RGB). Source: the same section with hematoxylin
alone, by colour deconvolution (Ruifrok & Johnston 2001).
"""

from functools import cache

import numpy as np
import torch

from ddbm.config import DataConfig, parse_size

from .base import Item

BLOCK = 128  # pixels; the picture is 4 x 4 blocks
VAL_COLUMNS = (1, 3, 0, 2)  # the validation block of each row: together brown gland, pale stroma and lumen


class Histology:
    """Square patches of `size` pixels, 3 channels on both sides.

    Train: an index is one of `len` nominal patches (as many as tile the training blocks); with `rng` the patch lies
    anywhere that holds no validation pixel, without it at a fixed place for each index. Val and test, the same: the
    disjoint patches of the validation blocks. All: those of every block.
    """

    source_channels = 3
    target_channels = 3
    targets = True
    num_classes, classes, layout = 0, list[str](), ""
    stored = ("uint8", "uint8", "png")

    def __init__(self, split: str, options: DataConfig) -> None:
        height, width = parse_size(options.image_size) or (32, 32)
        if height != width or BLOCK % height:
            raise ValueError(
                f"histology: image_size {options.image_size} must be one number that divides {BLOCK}, e.g. 32 or 64"
            )
        if options.num_classes:
            raise ValueError(f"histology has no classes, but num_classes is {options.num_classes}; set it to 0")
        self.size, self.split = (height, height), "test" if split == "auto" else split
        self.native = self.size
        self.train = split == "train"
        self.target, self.source = pictures()
        if self.train:
            self.positions = training_positions(height)
            self.length = 12 * (BLOCK // height) ** 2
        else:
            corners = range(0, BLOCK, height)
            columns = [range(4) if split == "all" else [column] for column in VAL_COLUMNS]
            blocks = [(row * BLOCK, column * BLOCK) for row in range(4) for column in columns[row]]
            self.positions = np.array([(y + i, x + j) for y, x in blocks for i in corners for j in corners])
            self.length = len(self.positions)
        self.names = [f"row{y}_column{x}" for y, x in map(self._position, range(self.length))]
        notices = [] if split in ("train", "all") else ["val and test are the same four blocks of the picture"]
        notices += [f"the picture ships with scikit-image, {options.data_dir} is not read"] if options.data_dir else []
        self.notice = f"histology: {'; '.join(notices)}" if notices else ""

    def __len__(self) -> int:
        return self.length

    def get(self, index: int, rng: np.random.Generator | None) -> Item:
        if self.train and rng is not None:
            top, left = self.positions[rng.integers(len(self.positions))]
        else:
            top, left = self._position(index)
        rows, columns = slice(top, top + self.size[0]), slice(left, left + self.size[1])
        return Item(self.target[:, rows, columns], self.source[:, rows, columns], None, None)

    def _position(self, index: int) -> tuple[int, int]:
        """The fixed (top, left) of an index; in training, indices are spread evenly over all positions."""
        top, left = self.positions[index * len(self.positions) // self.length]
        return int(top), int(left)


@cache
def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """Target and source, float32 [3, 512, 512] in [-1, 1]; both hold whole 8-bit values."""
    from skimage.color import hed2rgb, rgb2hed
    from skimage.data import immunohistochemistry

    stained = immunohistochemistry()
    stains = rgb2hed(stained)
    stains[..., 1:] = 0
    unstained = np.rint(np.clip(hed2rgb(stains), 0, 1) * 255).astype(np.uint8)

    def scaled(image: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(image.astype(np.float32).transpose(2, 0, 1) / 255 * 2 - 1).contiguous()

    return scaled(stained), scaled(unstained)


def validation_pixels() -> np.ndarray:
    """Bool [512, 512], True inside the validation blocks."""
    held = np.zeros((4 * BLOCK, 4 * BLOCK), bool)
    for row, column in enumerate(VAL_COLUMNS):
        held[row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK] = True
    return held


def training_positions(size: int) -> np.ndarray:
    """All (top, left) whose patch of `size` pixels holds no validation pixel: int64 [N, 2]."""
    total = np.pad(validation_pixels().astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    held = total[size:, size:] - total[:-size, size:] - total[size:, :-size] + total[:-size, :-size]
    return np.argwhere(held == 0)
