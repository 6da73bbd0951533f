"""Read image files of any bit depth and number of channels, losing nothing on the way."""

from pathlib import Path
from typing import IO, NamedTuple

import imagecodecs
import numpy as np
import tifffile
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
PNG = b"\x89PNG\r\n\x1a\n"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class Picture(NamedTuple):
    """The pixels of a file as stored, without alpha channel."""

    pixels: np.ndarray  # [H, W, C] uint8, uint16 or float
    mask: np.ndarray | None  # bool [H, W], True where alpha > 0; None: everywhere


def read_image(path: Path) -> Picture:
    """Read a file by its content. Alpha becomes the mask, except in TIFF, where every channel is data.

    Raises ValueError, naming the file, for one that cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(26)
            file.seek(0)
            if head.startswith(TIFF):
                return _read_tiff(file)
            if head.startswith(PNG) and head[24:25] == b"\x10":  # IHDR bit depth 16: Pillow would read RGB as 8 bit
                return _split_alpha(_with_channels(imagecodecs.png_decode(file.read())))
            return _read_pillow(file)
    except Exception as error:  # each library raises its own kinds for a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):  # its text shows the open file instead of the name
            reason = f"cannot identify image file {str(path)!r}"
        raise ValueError(f"{path}: cannot be read ({reason}); replace or remove the file") from error


def scaled(pixels: np.ndarray, white: float, path: Path) -> torch.Tensor:
    """[H, W, C] as float32 [C, H, W], 0 to -1 and `white` (0: 255, 65535 or 1.0 by type) to 1, clipped above.

    Raises ValueError for other pixel types, values that are not finite, negative ones, and floats above 1 when no
    white is given.
    """
    kind = (pixels.dtype.kind, pixels.dtype.itemsize)
    full = {("u", 1): 255.0, ("u", 2): 65535.0}.get(kind, 1.0 if kind[0] == "f" else 0.0)
    if not full:
        raise ValueError(f"{path}: pixels are {pixels.dtype}, expected uint8, uint16 or float; convert the file")
    values = pixels.astype(np.float64 if kind == ("f", 8) else np.float32)
    if kind[0] == "f":
        if not np.isfinite(values).all():
            raise ValueError(f"{path}: holds NaN or infinite pixels, expected finite values; repair or remove the file")
        low, high = values.min(), values.max()
        if low < 0 or (high > 1 and not white):
            raise ValueError(
                f"{path}: float pixels lie in [{low:g}, {high:g}], expected [0, 1]; "
                "rescale, or set --source_white/--target_white to the largest value (none may be negative)"
            )
    values = np.minimum(values / (white or full), 1) * 2 - 1
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1), dtype=np.float32))


def _with_channels(pixels: np.ndarray) -> np.ndarray:
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _split_alpha(pixels: np.ndarray) -> Picture:
    """Grey + alpha or RGB + alpha (2 or 4 channels) into data and mask."""
    if pixels.shape[-1] not in (2, 4):
        return Picture(pixels, None)
    mask = pixels[..., -1] > 0
    return Picture(pixels[..., :-1], None if mask.all() else mask)


def _read_pillow(file: IO[bytes]) -> Picture:
    with Image.open(file) as stored:
        if getattr(stored, "n_frames", 1) > 1:
            raise ValueError(f"{stored.n_frames} frames, expected one picture a file")
        stored.load()
        image = ImageOps.exif_transpose(stored)
    if image.mode[0] in "IF":
        raise ValueError(f"pixel mode {image.mode}, expected 8 bit here; store it as 16-bit PNG or TIFF")
    alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    mode = ("L" if image.mode in ("1", "L", "LA", "La") else "RGB") + ("A" if alpha else "")
    return _split_alpha(_with_channels(np.asarray(image.convert(mode))))


def _read_tiff(file: IO[bytes]) -> Picture:
    with tifffile.TiffFile(file) as stored:
        series, photometric = stored.series[0], stored.series[0].keyframe.photometric
        if photometric in (tifffile.PHOTOMETRIC.PALETTE, tifffile.PHOTOMETRIC.SEPARATED):
            file.seek(0)
            return _read_pillow(file)  # to RGB
        pixels, axes = series.asarray(), series.axes
    if pixels.ndim == 3 and axes[0] == "Q" and pixels.shape[2] < pixels.shape[0]:
        axes = "YXQ"  # tifffile.imwrite of an H x W x C array stores H pages: the short axis is the channels
    keep = [i for i, axis in enumerate(axes) if axis in "YX" or pixels.shape[i] > 1]
    pixels = pixels.reshape([pixels.shape[i] for i in keep])
    axes = "".join(axes[i] for i in keep)
    channels = axes.replace("Y", "").replace("X", "")
    if "YX" not in axes or len(channels) > 1:
        raise ValueError(f"axes {axes} of shape {pixels.shape}, expected height, width and at most one of channels")
    pixels = np.moveaxis(pixels, axes.index(channels), -1) if channels else pixels[..., None]
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    if photometric == tifffile.PHOTOMETRIC.MINISWHITE and pixels.dtype.kind == "u":
        pixels = np.iinfo(pixels.dtype).max - pixels
    return Picture(pixels, None)
