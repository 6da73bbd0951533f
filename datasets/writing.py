"""Write pictures as the targets of a training were stored: 8 or 16 bits as PNG, everything else as TIFF."""

import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import imagecodecs
import numpy as np
import tifffile

from ddbm.config import Header
from ddbm.files.storage import whole, write_whole

from .images import Picture
from .large import LARGE, Resolution

TILE = 256
INCH = 2.54  # cm


class Form(NamedTuple):
    """How values in [-1, 1] are stored: as `kind`, -1 as `black` and 1 as `white`, in files of this ending."""

    kind: str
    black: float
    white: float
    ending: str  # .png or .tif


def form_of(header: Header) -> Form:
    """That of the targets a model was trained on; an old checkpoint does not say, and they are taken for 8-bit PNG."""
    _, kind, format = header.stored or ("", "uint8", "png")
    type_, data = np.dtype(kind), header.config.data
    top = data.target_white or (float(np.iinfo(type_).max) if type_.kind in "ui" else 1.0)
    png = type_ in (np.uint8, np.uint16) and format != "tiff" and header.images.target_channels in (1, 3)
    return Form(type_.name, data.target_black, top, ".png" if png else ".tif")


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

    depth = channels + (mask is not None)
    with whole(path) as aside:
        if form.ending == ".png":
            with aside.open("wb") as file:
                _write_png(file, (height, width, depth), form.kind, stored, resolution)
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
                pixels = stored(slice(None), slice(None))
                tiff.write(pixels[..., 0] if depth == 1 else pixels, **about)
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


def write_pixels(path: Path, picture: Picture) -> Path:
    """Stores pixels [H, W, C] as they are, whole or not at all, the mask as alpha: the path with the ending it got.

    8 and 16 bits in 1 or 3 channels are PNG, all else TIFF. Does not wait for the disk, as there may be very many: that
    is the caller's, by os.sync. Raises OSError.
    """
    pixels, mask, _ = picture
    unsigned = pixels.dtype in (np.uint8, np.uint16)
    channels = pixels.shape[2]
    if mask is not None:
        alpha = np.where(mask, np.iinfo(pixels.dtype).max if unsigned else 1, 0).astype(pixels.dtype)
        pixels = np.concatenate([pixels, alpha[..., None]], -1)
    png = unsigned and channels in (1, 3)
    path = path.with_name(path.name + (".png" if png else ".tif"))
    path.parent.mkdir(parents=True, exist_ok=True)
    if png:
        write_whole(path, png_bytes(pixels), flush=False)
        return path
    extra = ["unspecified"] * (channels - 1 if channels != 3 else 0) + ["unassalpha"] * (mask is not None)
    with whole(path, flush=False) as aside:
        tifffile.imwrite(
            aside, pixels[..., 0] if pixels.shape[2] == 1 else pixels, compression="zlib", metadata=None,
            photometric="rgb" if channels == 3 else "minisblack", planarconfig="contig" if extra else None,
            extrasamples=extra or None,
        )  # fmt: skip
    return path


def png_bytes(pixels: np.ndarray) -> bytes:
    """uint8 or uint16 [H, W, C] as a PNG; the last of 2 and 4 channels is alpha."""
    return bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)))


UNITS = {"none": 1, "inch": 2, "cm": 3}
COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}  # PNG's numbers of grey and RGB, without and with alpha
SUB = 1  # PNG's filter: bytes are stored as differences from those of the pixel before


def _write_png(
    file: IO[bytes], shape: tuple[int, int, int], kind: str, stored: Callable[[slice, slice], np.ndarray],
    resolution: Resolution | None,
) -> None:  # fmt: skip
    """A PNG of 8 or 16 bits by strips of rows, so that memory does not grow with its height."""
    height, width, depth = shape
    size = np.dtype(kind).itemsize

    def chunk(name: bytes, body: bytes) -> None:
        file.write(struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)))

    file.write(b"\x89PNG\r\n\x1a\n")
    chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8 * size, COLOURS[depth], 0, 0, 0))
    if resolution and resolution.unit != "none":
        a_metre = 100 / (INCH if resolution.unit == "inch" else 1)
        across, down = (min(round(a_metre * n), 2**32 - 1) for n in resolution[:2])
        chunk(b"pHYs", struct.pack(">IIB", across, down, 1))
    packer = zlib.compressobj()
    for top in range(0, height, TILE):
        pixels = stored(slice(top, top + TILE), slice(None))
        lines = np.ascontiguousarray(pixels.astype(f">u{size}")).view(np.uint8).reshape(len(pixels), -1)
        before = np.pad(lines, [(0, 0), (depth * size, 0)])[:, : lines.shape[1]]
        packed = packer.compress(np.pad(lines - before, [(0, 0), (1, 0)], constant_values=SUB).tobytes())
        if packed:
            chunk(b"IDAT", packed)
    chunk(b"IDAT", packer.flush())
    chunk(b"IEND", b"")
