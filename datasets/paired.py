"""Pairs of image files below a folder: side by side in one file, in two folders, or told apart by a suffix."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddbm.config import DataConfig, Header, parse_size
from ddbm.files.canvas import canvas
from ddbm.files.stores import fetched

from .base import Item
from .degradations import Steps, degraded, parsed
from .formats import find, format_of, read_row, root_of
from .images import Picture, Unreadable, level_note, read_image, scaled
from .layouts import Pair
from .listing import check_name
from .masks import circle, read_mask
from .skipping import Skipped
from .sources import SOURCES, find_sources, is_single

Window = tuple[slice, slice]
STRIP = 1 << 22  # values that are float32 at once while a picture is made smaller
PROBES = 4  # pairs that are read before a note about their levels


class Side(NamedTuple):
    """How the files of one side are read."""

    name: str
    white: float
    black: float
    resize: str


def sides_of(options: DataConfig) -> tuple[Side, Side]:
    """How the files of source and target are read."""
    return (
        Side("source", options.source_white, options.source_black, options.source_resize),
        Side("target", options.target_white, options.target_black, options.target_resize),
    )


def _steps(options: DataConfig) -> Steps:
    """Those of --degrade. Raises ValueError for levels that its grey levels, 0 to 255, are not."""
    for side in sides_of(options) if options.degrade else ():
        if side.black or side.white not in (0, 255):
            raise ValueError(f"--degrade takes 0 for black and 255 for white: leave --{side.name}_white and _black out")
    return parsed(options.degrade) if options.degrade else ()


class FolderPairs:
    """A split of the pairs below `data_dir`; opening it lists the files and reads the first pair, no more.

    like: of a trained model, whose layout and class names hold for these pairs too; sources: for it a folder without
    targets will do, whose items have a mid-grey target of the model's channels.
    """

    def __init__(self, split: str, options: DataConfig, like: Header | None = None, sources: bool = False) -> None:
        if not options.data_dir:
            raise ValueError("no folder of pairs given; set DATA_DIR=/path (--data_dir /path)")
        place = fetched(options.data_dir).expanduser()
        check_name(place)
        root = root_of(place, options)
        bare = sources and like is not None and not format_of(root)
        alone = find_sources(root, split, options, like) if bare and like is not None else None
        self.split, self.layout, self.pairs, self.classes, notices = alone or find(root, split, options, like)
        self.targets = self.layout != SOURCES
        self.options = options
        self.sides = sides_of(options)[: 1 + self.targets]
        self.degrade = _steps(options)
        self.names = [pair.name for pair in self.pairs]
        self.num_classes = len(self.classes)
        self.skipped = Skipped() if options.skip_unreadable else None
        self.first, pictures = self._first()
        source, target = pictures[0], pictures[-1]
        self.source_channels = source.pixels.shape[2]
        self.target_channels = target.pixels.shape[2]
        if like is not None and not self.targets:
            self.target_channels = like.images.target_channels
        self.native = (source.pixels.shape[0], source.pixels.shape[1])
        ending = self.pairs[self.first].target.suffix.lower().removeprefix(".")
        self.stored = (source.pixels.dtype.name, target.pixels.dtype.name, "tiff" if ending[:3] == "tif" else ending)
        if like is not None and like.native and self.layout == "side_by_side":
            _refuse_singles(self.pairs[self.first].source, self.native, like.native)
        self.size = parse_size(options.image_size) or self.native
        notes = [self._level_note(n, first, like is not None) for n, first in enumerate(pictures)]
        notices += filter(None, notes)
        self.notice = f"{root}: {'; '.join(notices)}" if notices else ""

    def __len__(self) -> int:
        return len(self.pairs)

    def get(self, index: int, rng: np.random.Generator | None) -> Item:
        """The pair at `index`. Raises ValueError, naming the file, for one that differs from the first."""
        pair = self.pairs[index]
        pictures = self._read(pair)
        if self.degrade and rng is not None and self.targets:
            pictures = (self._remade(pair, pictures, rng), pictures[1])
        read = list(zip(self.sides, pair[1:3], pictures, strict=False))  # without targets of the source alone
        for (side, path, picture), channels in zip(read, (self.source_channels, self.target_channels), strict=False):
            self._check(path, side.name, picture, channels)
        masks = [picture.mask for picture in pictures if picture.mask is not None]
        if pair.mask:
            masks.append(read_mask(pair.mask, pictures[0].pixels.shape[:2]))
        mask = torch.from_numpy(np.logical_and.reduce(masks))[None] if masks else None
        size, window = self._place(pictures[0].pixels.shape[:2], rng, pair.source)
        sides = [
            fitted(picture.pixels, mask, size, window, side._replace(white=side.white or picture.white), path)
            for side, path, picture in read
        ]
        x_T, mask = sides[0]
        x_0 = sides[1][0] if self.targets else x_T.new_zeros(self.target_channels, *self.size)
        item = Item(x_0, x_T, None, self.classes.index(pair.kind) if self.classes else None)
        if mask is not None:
            item = item.within(torch.stack([seen for _, seen in sides if seen is not None]).all(0))
        return item.within(circle(*self.size)) if self.options.mask == "circle" else item

    def _first(self) -> tuple[int, tuple[Picture, ...]]:
        """The first pair that can be read, where others are passed over."""
        for number, pair in enumerate(self.pairs):
            try:
                return number, self._read(pair)
            except Unreadable as error:
                if self.skipped is None or number == len(self.pairs) - 1:
                    raise
                self.skipped.tell(str(error))
        raise AssertionError

    def _read(self, pair: Pair) -> tuple[Picture, ...]:
        return read_pair(pair, self.layout, self.sides, self.options.source_half)

    def _remade(self, pair: Pair, pictures: tuple[Picture, ...], rng: np.random.Generator) -> Picture:
        """The source that --degrade makes of its target this time. Raises ValueError, naming the file."""
        source, target = pictures
        try:
            if target.pixels.dtype != np.uint8:
                raise ValueError(f"{target.pixels.dtype} pixels, --degrade takes 8 bits")
            pixels = degraded(target.pixels, self.degrade, rng, target.mask)
            if pixels.shape[2] != self.source_channels:
                raise ValueError(f"--degrade makes {pixels.shape[2]} channels, the sources have {self.source_channels}")
        except ValueError as error:
            raise ValueError(f"{pair.target}: {error}; leave --degrade out, or change it") from None
        return source._replace(pixels=pixels)

    def _level_note(self, n: int, first: Picture, trained: bool) -> str:
        """What to say of a side where a few pairs look as if their white were not that of their type."""
        side, count = self.sides[n], len(self.pairs)
        if side.white or side.black:
            return ""
        probed = sorted({count * k // PROBES for k in range(1, PROBES)} - {0})
        advice = f"set --{side.name}_white {{level}}"
        if trained:
            advice = f"the model takes {{full}} as white: train it anew ({advice}), or rescale the files"
        pictures = (self._read(self.pairs[k])[n].pixels for k in probed)
        try:
            note = level_note(chain([first.pixels], pictures), advice)
        except ValueError:  # whoever reads that pair says it
            return ""
        return note and f"{side.name}s hold {note}"

    def _check(self, path: Path, side: str, picture: Picture, channels: int) -> None:
        height, width, found = picture.pixels.shape
        like = f"as in {self.names[self.first]}"
        if found != channels:
            raise ValueError(f"{path}: {side} has {found} channels, expected {channels} {like}; convert the file")
        if (height, width) != self.size and self.options.image_size == "native":
            raise ValueError(
                f"{path}: {height}x{width} pixels, expected {self.size[0]}x{self.size[1]} {like}; "
                "for files of many sizes set --image_size N"
            )

    def _place(
        self, stored: tuple[int, ...], rng: np.random.Generator | None, path: Path
    ) -> tuple[tuple[int, int], Window]:
        """The size to which a pair is resized, and the rows and columns of it that are cut out."""
        (height, width), (rows, columns) = self.size, resized_to(self.options.fit, self.size, stored)
        if rows < height or columns < width:
            raise ValueError(
                f"{path}: {rows}x{columns} pixels is smaller than the crop {height}x{width}; "
                "set a smaller --image_size or --fit resize"
            )
        random = rng if self.options.fit == "crop" and (rows, columns) != (height, width) else None
        top, left = (
            int(random.integers(room + 1)) if random else room // 2 for room in (rows - height, columns - width)
        )
        return (rows, columns), (slice(top, top + height), slice(left, left + width))


def resized_to(fit: str, size: Sequence[int], stored: Sequence[int]) -> tuple[int, int]:
    """Height and width to which images of `stored` pixels are resized by --fit, of which the middle is as `size`."""
    (height, width), (rows, columns) = size, stored
    if fit == "crop":
        return rows, columns
    if fit == "stretch":
        return height, width
    scale = max(height / rows, width / columns)
    return max(height, round(rows * scale)), max(width, round(columns * scale))


def read_pair(pair: Pair, layout: str, sides: Sequence[Side], half: str) -> tuple[Picture, ...]:
    """Source and target, of equal height and width; the source alone where there is one side.

    half: of files with both the one that is the source. Raises ValueError, naming the file.
    """
    stored = [bool(side.white or side.black) for side in sides]
    if pair.row is not None:
        return read_row(pair.row)[: len(sides)]
    source = read_image(pair.source, stored[0])
    if len(sides) == 1:
        return (source,)
    if layout == "side_by_side":
        height, width = source.pixels.shape[:2]
        if width % 2:
            raise ValueError(f"{pair.source}: {height}x{width} pixels, expected an even width to split in halves")
        target = source if stored[0] == stored[1] else read_image(pair.source, stored[1])
        halves = [slice(0, width // 2), slice(width // 2, width)]
        if half == "right":
            halves.reverse()
        return _columns(source, halves[0]), _columns(target, halves[1])
    target = read_image(pair.target, stored[1])
    here, there = source.pixels.shape[:2], target.pixels.shape[:2]
    if here != there:
        raise ValueError(
            f"{pair.source} is {here[0]}x{here[1]} pixels but {pair.target} is {there[0]}x{there[1]}; "
            "source and target of a pair must have equal size"
        )
    return source, target


def _columns(picture: Picture, columns: slice) -> Picture:
    mask = None if picture.mask is None else picture.mask[:, columns]
    return Picture(picture.pixels[:, columns], mask, picture.white)


def fitted(
    pixels: np.ndarray, mask: Tensor | None, size: tuple[int, int], window: Window, side: Side, path: Path,
    folder: Path | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """[H, W, C] pixels, bool [1, H, W] mask -> image and mask, resized and cut; what is hidden counts for nothing.

    Part by part, as float32 takes four times the memory; folder: where results lie that are larger than it should hold.
    """
    rows, columns = (range(n)[part] for n, part in zip(size, window, strict=True))
    channels = pixels.shape[2] + (mask is not None)
    image = canvas((pixels.shape[2], len(rows), len(columns)), folder)
    if pixels.shape[:2] == size:
        for part in _parts(len(rows), len(columns) * channels):
            where = slice(rows.start + part.start, rows.start + part.stop)
            image[:, part] = scaled(pixels[where, window[1]], side.white, path, side.black)
        return torch.from_numpy(image), None if mask is None else mask[0][window][None]
    narrow = canvas((channels, len(pixels), len(columns)), folder)
    for part in _parts(len(pixels), pixels.shape[1] * channels):  # columns strip by strip, then rows
        strip = scaled(pixels[part], side.white, path, side.black)
        if mask is not None:
            strip = torch.cat([strip * mask[:, part], mask[:, part].float()])
        narrow[:, part] = _resized(strip, (strip.shape[1], size[1]), side.resize)[..., window[1]]
    seen = None if mask is None else canvas((1, *image.shape[1:]), folder, bool)
    for part in _parts(len(columns), (len(pixels) + size[0]) * channels):
        found = torch.from_numpy(np.ascontiguousarray(narrow[..., part]))
        found = _resized(found, (size[0], found.shape[2]), side.resize)[:, window[0]]
        if seen is not None:
            seen[..., part], found = found[-1:] > 0.5, found[:-1] / found[-1:].clamp(min=0.5)
        image[..., part] = found.clamp(-1, 1)
    return torch.from_numpy(image), None if seen is None else torch.from_numpy(seen)


def _parts(length: int, values: int) -> list[slice]:
    """Rows or columns that are worked on together; values: in each."""
    step = max(1, STRIP // max(values, 1))
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _resized(image: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    nearest, (rows, columns) = mode == "nearest", size
    if image.shape[2] == 1:  # with antialias PyTorch 2.14 gives wrong values for a single column
        image, size = image.expand(-1, -1, 2), (rows, max(columns, 2))
    found = F.interpolate(image[None], size, mode="nearest-exact" if nearest else mode, antialias=not nearest)[0]
    return found[..., :columns]


def _refuse_singles(path: Path, half: tuple[int, int], trained: tuple[int, ...]) -> None:
    """Raises ValueError for an image of which the whole is more like one of the training pairs' than the half is."""
    height, width = half
    if is_single((height, 2 * width), trained):
        raise ValueError(
            f"{path}: {height}x{2 * width} pixels look like one image, the model was trained on two of "
            f"{trained[0]}x{trained[1]} side by side in a file; join source and target, or choose another folder"
        )
