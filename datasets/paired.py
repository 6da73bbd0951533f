"""Pairs of image files below a folder: side by side in one file, in two folders, or told apart by a suffix."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddbm.config import DataConfig, parse_size
from ddbm.files.stores import fetched

from .base import Item
from .images import Picture, read_image, scaled
from .layouts import Pair, class_of, find_pairs


class FolderPairs:
    """A split of the pairs below `data_dir`; opening it lists the files and reads the first pair, no more."""

    def __init__(self, split: str, options: DataConfig) -> None:
        if not options.data_dir:
            raise ValueError("no folder of pairs given; set DATA_DIR=/path (--data_dir /path)")
        root = fetched(options.data_dir).expanduser()
        if not root.is_dir():
            problem = "is a file, expected a folder" if root.exists() else "does not exist"
            raise FileNotFoundError(f"data_dir {root} {problem}; set DATA_DIR to the folder that holds the pairs")
        found = find_pairs(root, split, options)
        self.options = options
        self.layout, self.pairs, self.classes, self.notice = found
        self.names = [pair.name for pair in self.pairs]
        self.num_classes = len(self.classes)
        source, target = self._read(self.pairs[0])
        self.source_channels = source.pixels.shape[2]
        self.target_channels = target.pixels.shape[2]
        native = source.pixels.shape[:2]
        self.size = parse_size(options.image_size) or (native[0], native[1])

    def __len__(self) -> int:
        return len(self.pairs)

    def get(self, index: int, rng: np.random.Generator | None) -> Item:
        """The pair at `index`. Raises ValueError, naming the file, for one that differs from the first."""
        pair = self.pairs[index]
        source, target = self._read(pair)
        self._check(pair.source, "source", source, self.source_channels)
        self._check(pair.target, "target", target, self.target_channels)
        x_T = scaled(source.pixels, self.options.source_white, pair.source)
        x_0 = scaled(target.pixels, self.options.target_white, pair.target)
        masks = [side.mask for side in (source, target) if side.mask is not None]
        mask = torch.from_numpy(np.logical_and.reduce(masks))[None] if masks else None
        if source.pixels.shape[:2] != self.size:
            x_0, x_T, mask = self._fit(x_0, x_T, mask, rng, pair.source)
        if mask is not None:
            x_0, x_T = x_0 * mask, x_T * mask  # outside it both are mid-grey
        return Item(x_0, x_T, mask, self.classes.index(class_of(pair)) if self.classes else None)

    def _read(self, pair: Pair) -> tuple[Picture, Picture]:
        """Source and target, of equal height and width."""
        source = read_image(pair.source)
        if self.layout == "side_by_side":
            height, width = source.pixels.shape[:2]
            if width % 2:
                raise ValueError(f"{pair.source}: {height}x{width} pixels, expected an even width to split in halves")
            halves = [_columns(source, 0, width // 2), _columns(source, width // 2, width)]
            left = self.options.source_half == "left"
            return (halves[0], halves[1]) if left else (halves[1], halves[0])
        target = read_image(pair.target)
        here, there = source.pixels.shape[:2], target.pixels.shape[:2]
        if here != there:
            raise ValueError(
                f"{pair.source} is {here[0]}x{here[1]} pixels but {pair.target} is {there[0]}x{there[1]}; "
                "source and target of a pair must have equal size"
            )
        return source, target

    def _check(self, path: Path, side: str, picture: Picture, channels: int) -> None:
        height, width, found = picture.pixels.shape
        if found != channels:
            raise ValueError(
                f"{path}: {side} has {found} channels, expected {channels} as in {self.names[0]}; convert the file"
            )
        if (height, width) != self.size and self.options.image_size == "native":
            raise ValueError(
                f"{path}: {height}x{width} pixels, expected {self.size[0]}x{self.size[1]} as in {self.names[0]}; "
                "for files of many sizes set --image_size N"
            )

    def _fit(
        self, x_0: Tensor, x_T: Tensor, mask: Tensor | None, rng: np.random.Generator | None, path: Path
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Bring a pair and its mask to `size`, all three in the same way."""
        (height, width), (rows, columns) = self.size, x_0.shape[-2:]
        random = None
        if self.options.fit == "resize":
            scale = max(height / rows, width / columns)
            rows, columns = max(height, round(rows * scale)), max(width, round(columns * scale))
            x_0, x_T = _resized(x_0, (rows, columns)), _resized(x_T, (rows, columns))
            if mask is not None:
                mask = F.interpolate(mask[None].float(), (rows, columns), mode="area")[0] > 0.5
        elif rows < height or columns < width:
            raise ValueError(
                f"{path}: {rows}x{columns} pixels is smaller than the crop {height}x{width}; "
                "set a smaller --image_size or --fit resize"
            )
        else:
            random = rng
        top, left = (
            int(random.integers(room + 1)) if random else room // 2 for room in (rows - height, columns - width)
        )
        window = (..., slice(top, top + height), slice(left, left + width))
        return x_0[window], x_T[window], None if mask is None else mask[window]


def _columns(picture: Picture, start: int, stop: int) -> Picture:
    mask = None if picture.mask is None else picture.mask[:, start:stop]
    return Picture(picture.pixels[:, start:stop], mask)


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0].clamp(-1, 1)
