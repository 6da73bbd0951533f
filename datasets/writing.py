"""Write pictures as the targets of a training were stored: 8 or 16 bits as PNG, everything else as TIFF."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import tifffile

from ddbm.files.storage import whole

from .large import LARGE, Resolution

TILE = 256
INCH = 2.54  # cm


class Form(NamedTuple):
    """How values in [-1, 1] are stored: as `kind`, -1 as `black` and 1 as `white`, in files of this ending."""

    kind: str
    black: float
    white: float
    ending: str  # .png or .tif


def form_of(kind: str, format: str, channels: int, black: float, white: float) -> Form:
    """That of targets of a type and format ("" of an old checkpoint: 8 bits); white 0 is that of the type."""
    type_ = np.dtype(kind or "uint8")
    top = white or (float(np.iinfo(type_).max) if type_.kind in "ui" else 1.0)
    png = type_ in (np.uint8, np.uint16) and format != "tiff" and channels in (1, 3)
    return Form(type_.name, black, top, ".png" if png else ".tif")


def write_image(
    path: Path, image: np.ndarray, form: Form, resolution: Resolution | None = None, mask: np.ndarray | None = None
) -> None:
    """A picture, whole or not at all; image: float32 [C, H, W] in [-1, 1]; mask: bool [H, W], kept as alpha.

    PNG has 1 or 3 channels, 8 or 16 bits. TIFFs of many pixels are written by tiles. Raises OSError.
    """
    channels, height, width = image.shape

    def stored(rows: slice, columns: slice) -> np.ndarray:
        values = form.black + (image[:, rows, columns].astype(np.float64) + 1) / 2 * (form.white - form.black)
        kind = np.dtype(form.kind)
        opaque = form.white
        if kind.kind in "ui":
            limits = np.iinfo(kind)
            values, opaque = np.rint(values).clip(limits.min, limits.max), limits.max
        if mask is not None:
            values = np.concatenate([values, np.where(mask[None, rows, columns], opaque, 0)])
        return np.moveaxis(values.astype(kind), 0, -1)

    def filled() -> np.ndarray:
        """All of it, `[H, W, C]` or, of one channel, `[H, W]`."""
        pixels = np.empty((height, width, depth), form.kind)
        for top in range(0, height, TILE):
            pixels[top : top + TILE] = stored(slice(top, top + TILE), slice(None))
        return pixels[..., 0] if depth == 1 else pixels

    depth = channels + (mask is not None)
    with whole(path) as aside:
        if form.ending == ".png":
            data = imagecodecs.png_encode(filled())
            aside.write_bytes(data[:IHDR_END] + _phys(resolution) + data[IHDR_END:])
            return
        extra = ["unspecified"] * (channels - 1 if channels != 3 else 0) + ["unassalpha"] * (mask is not None)
        about: dict[str, Any] = {
            "photometric": "rgb" if channels == 3 else "minisblack", "planarconfig": "contig" if extra else None,
            "extrasamples": extra or None, "compression": "zlib", "metadata": None,
        }  # fmt: skip
        if resolution:
            about |= {"resolution": resolution[:2], "resolutionunit": UNITS[resolution.unit]}
        big = height * width * depth * np.dtype(form.kind).itemsize >= 1 << 31
        with tifffile.TiffWriter(aside, bigtiff=big) as tiff:
            if height * width < LARGE:
                tiff.write(filled(), **about)
                return

            def tiles() -> Iterator[np.ndarray]:
                for top in range(0, height, TILE):
                    for left in range(0, width, TILE):
                        tile = stored(slice(top, top + TILE), slice(left, left + TILE))
                        padding = [(0, TILE - tile.shape[0]), (0, TILE - tile.shape[1]), (0, 0)]
                        tile = np.pad(tile, padding)
                        yield tile[..., 0] if depth == 1 else tile

            shape = (height, width) if depth == 1 else (height, width, depth)
            tiff.write(tiles(), shape=shape, dtype=form.kind, tile=(TILE, TILE), **about)


UNITS = {"none": 1, "inch": 2, "cm": 3}
IHDR_END = 33  # bytes of a PNG's signature and first chunk


def _phys(resolution: Resolution | None) -> bytes:
    """The PNG chunk of pixels a metre; nothing where no unit is known."""
    if resolution is None or resolution.unit == "none":
        return b""
    a_metre = 100 / (INCH if resolution.unit == "inch" else 1)
    body = b"pHYs" + struct.pack(">IIB", *(min(round(a_metre * n), 2**32 - 1) for n in resolution[:2]), 1)
    return struct.pack(">I", 9) + body + struct.pack(">I", zlib.crc32(body))
