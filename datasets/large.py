"""Pictures part by part: of a large TIFF never more than a few tiles are in memory; and what a file says of scale."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from PIL import Image

from .images import FORMATS, ORIENTATION, PHOTOMETRIC, Picture, is_tiff, only_series, read_image, tiff_picture, told

LARGE = 1 << 24  # pixels from which a TIFF is read, and a picture written, by tiles
BUFFER = 1 << 24  # bytes of a file that are read at once
JPEG = 7  # of the TIFF tag, whose decoder gives RGB
UNITS = {1: "none", 2: "inch", 3: "cm"}  # of the TIFF tag


class Resolution(NamedTuple):
    """Pixels a unit across and down; unit: "inch", "cm", or "none", of which the file does not say more."""

    x: float
    y: float
    unit: str


class Part(NamedTuple):
    """Pixels of a picture, and the rows and columns they fill."""

    rows: slice
    columns: slice
    picture: Picture


class Opened(NamedTuple):
    """A picture whose parts are read when they are asked for, once; a file may turn out to be damaged then."""

    height: int
    width: int
    parts: Iterator[Part]


def open_image(path: Path, stored: bool = False) -> Opened:
    """A file as `read_image` reads it. Raises ValueError, naming the file, for one that cannot be read."""
    with told(path), path.open("rb") as file:
        if is_tiff(file):
            with tifffile.TiffFile(file) as tiff:
                page = only_series(tiff).keyframe
                size = (page.imagelength, page.imagewidth)
                plain = page.photometric in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.RGB)
                plain |= page.photometric == PHOTOMETRIC.YCBCR and page.compression == JPEG  # as of slide scanners
                upright = page.tags.valueof(ORIENTATION, 1) == 1
                if plain and upright and only_series(tiff).axes in ("YX", "YXS") and size[0] * size[1] >= LARGE:
                    return Opened(*size, _tiles(path, stored))
    picture = read_image(path, stored)
    height, width = picture.pixels.shape[:2]
    return Opened(height, width, iter([Part(slice(0, height), slice(0, width), picture)]))


def _tiles(path: Path, stored: bool) -> Iterator[Part]:
    with told(path), tifffile.TiffFile(path) as tiff:
        page = only_series(tiff).keyframe
        height, width = page.imagelength, page.imagewidth
        segments = page.segments(
            maxworkers=1, sort=True, buffersize=BUFFER
        )  # unsorted, tifffile misreads what lies behind a hole
        for data, (_, _, top, left, _), shape in segments:
            rows, columns = slice(top, min(top + shape[1], height)), slice(left, min(left + shape[2], width))
            if data is None:  # a tile that was left out
                data = np.zeros((1, *shape[1:]), page.dtype)
            pixels = data[0, : rows.stop - top, : columns.stop - left]
            yield Part(rows, columns, tiff_picture(pixels, page, True, stored))


def resolution(path: Path) -> Resolution | None:
    """What a file says of the size of its pixels as it is shown, upright; None: nothing."""
    with told(path), path.open("rb") as file:
        if is_tiff(file):
            with tifffile.TiffFile(file) as tiff:
                tags = only_series(tiff).keyframe.tags
                across, down = (tags.valueof(code) for code in (282, 283))
                if not across or not down or not (across[0] and across[1] and down[0] and down[1]):
                    return None
                unit = UNITS.get(int(tags.valueof(296, 2)), "none")
                found = Resolution(across[0] / across[1], down[0] / down[1], unit)
                return _turned(found, tags.valueof(ORIENTATION))
        with Image.open(file, formats=FORMATS) as stored:
            dpi = stored.info.get("dpi")
            if not dpi or not all(0 < float(value) < 1e9 for value in dpi):
                return None
            return _turned(Resolution(float(dpi[0]), float(dpi[1]), "inch"), stored.getexif().get(ORIENTATION))


def _turned(found: Resolution, orientation: Any) -> Resolution:
    return Resolution(found.y, found.x, found.unit) if orientation in (5, 6, 7, 8) else found
