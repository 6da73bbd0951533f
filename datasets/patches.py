"""What the data sets have in common that cut patches from pictures which come with scikit-image."""

from collections.abc import Iterable

import numpy as np
import torch

from ddbm.config import DataConfig, parse_size

from .base import Item
from .masks import circle
from .skipping import Skipped

BLOCK = 128  # pixels a side of what is held out


class Patches:
    """Square patches of `size` pixels, 3 channels on both sides, of a target and a source [3, H, W].

    Train: an index is one of `len` nominal patches; with `rng` the patch lies at any of `positions`, without it at a
    fixed one for each index. Else: one patch a position.
    """

    source_channels = 3
    target_channels = 3
    targets = True
    num_classes, classes, layout = 0, list[str](), ""
    stored = ("uint8", "uint8", "png")
    first = 0
    skipped: Skipped | None = None

    def __init__(
        self,
        split: str,
        options: DataConfig,
        pictures: tuple[torch.Tensor, torch.Tensor],
        positions: np.ndarray,
        length: int,
        note: str,
        size: int,
    ) -> None:
        self.size, self.split = (size, size), "test" if split == "auto" else split
        self.native = self.size
        self.train, self.circle = split == "train", options.mask == "circle"
        self.target, self.source = pictures
        self.positions, self.length = positions, length
        self.names = [self.name(*self._position(index)) for index in range(self.length)]
        unread = f"its pictures ship with scikit-image, {options.data_dir} is not read" if options.data_dir else ""
        notices = "; ".join(filter(None, [note, unread]))
        self.notice = f"{options.dataset}: {notices}" if notices else ""

    def __len__(self) -> int:
        return self.length

    def get(self, index: int, rng: np.random.Generator | None) -> Item:
        if self.train and rng is not None:
            top, left = self.positions[rng.integers(len(self.positions))]
        else:
            top, left = self._position(index)
        rows, columns = slice(top, top + self.size[0]), slice(left, left + self.size[1])
        item = Item(self.target[:, rows, columns], self.source[:, rows, columns], None, None)
        return item.within(circle(*self.size)) if self.circle else item

    def name(self, top: int, left: int) -> str:
        return f"row{top}_column{left}"

    def _position(self, index: int) -> tuple[int, int]:
        """The fixed (top, left) of an index; in training, indices are spread evenly over all positions."""
        top, left = self.positions[index * len(self.positions) // self.length]
        return int(top), int(left)


class Parted(Patches):
    """Patches of a target and a source, uint8 [H, W, 3], of which every block belongs to a part, or to none ("").

    Train: as many as tile the training blocks, anywhere that holds no pixel of another part. Val, test, all: those
    that tile their blocks.
    """

    def __init__(
        self,
        split: str,
        options: DataConfig,
        pictures: tuple[np.ndarray, np.ndarray],
        parts: np.ndarray,
        size: int,
        block: int,
    ) -> None:
        part = "test" if split == "auto" else split
        own = parts != "" if part == "all" else parts == part
        positions = tiles(block * np.argwhere(own), size, block)
        length = len(positions)
        if part == "train":
            positions = free_positions((~own).repeat(block, 0).repeat(block, 1), size)
        target, source = map(scaled, pictures)
        super().__init__(split, options, (target, source), positions, length, "", size)


def patch_size(options: DataConfig, usual: int = 32, block: int = BLOCK) -> int:
    """Pixels a side, the usual ones unless asked. Raises ValueError for settings that such patches do not have."""
    name = options.dataset
    height, width = parse_size(options.image_size) or (usual, usual)
    if height != width or block % height:
        raise ValueError(
            f"{name}: image_size {options.image_size} must be one number that divides {block}, e.g. {usual} or "
            f"{usual * 2 if block % (usual * 2) == 0 else usual // 2}"
        )
    if options.degrade:
        raise ValueError(f"{name} has sources of its own: leave --degrade {options.degrade} out")
    if options.num_classes:
        raise ValueError(f"{name} has no classes, but num_classes is {options.num_classes}; set it to 0")
    return height


def free_positions(taken: np.ndarray, size: int) -> np.ndarray:
    """All (top, left) whose patch of `size` pixels holds no pixel that is True in `taken`: int64 [N, 2]."""
    total = np.pad(taken.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    held = total[size:, size:] - total[:-size, size:] - total[size:, :-size] + total[:-size, :-size]
    return np.argwhere(held == 0)


def tiles(blocks: Iterable[tuple[int, int]], size: int, block: int = BLOCK) -> np.ndarray:
    """(top, left) of the disjoint patches that fill blocks, each given by its own (top, left): int64 [N, 2]."""
    corners = range(0, block, size)
    return np.array([(y + i, x + j) for y, x in blocks for i in corners for j in corners])


def scaled(image: np.ndarray) -> torch.Tensor:
    """uint8 [H, W, C] -> float32 [C, H, W] in [-1, 1]."""
    return torch.from_numpy(image.astype(np.float32).transpose(2, 0, 1) / 255 * 2 - 1).contiguous()
