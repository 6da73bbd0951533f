"""Read image files as a viewer shows them: upright, in sRGB or grey, of any bit depth and number of channels."""

import io
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, NamedTuple

import imagecodecs
import numpy as np
import tifffile
import torch
from PIL import Image, UnidentifiedImageError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".webp", ".gif")
READER = 2  # raised whenever files are read to other values than before
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")  # all of 8 bits, but for PNG and TIFF
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ORIENTATION, INK_SET, REFERENCE_BLACK_WHITE = 274, 332, 532  # TIFF tags
PNG_EXIF = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")  # without any of them there is no orientation
SRGB = imagecodecs.cms_profile("srgb")
PHOTOMETRIC = tifffile.PHOTOMETRIC
LEVELS = {"uint8": (1, 15), "uint16": (1, 255, 1023, 4095, 16383)}  # full scales of fewer bits than the type has
logging.getLogger("imagecodecs").setLevel(logging.ERROR)  # a line for every odd chunk of every file
Image.MAX_IMAGE_PIXELS = None  # large pictures are no attack where they are one's own data


class Unreadable(ValueError):
    """A file that is damaged, or of a kind that is not read."""


class Picture(NamedTuple):
    """The pixels of a file, without alpha channel."""

    pixels: np.ndarray  # [H, W, C]; uint8 and uint16 from 0 to their full scale, others as stored
    mask: np.ndarray | None  # bool [H, W], True where alpha > 0; None: everywhere
    white: int = 0  # of stored values of 2 to 15 bits; 0: that of the type


def read_image(path: Path, stored: bool = False) -> Picture:
    """Read a file by its content. Alpha becomes the mask; every other channel is data.

    stored: values of TIFFs of 2 to 15 bits as they are, for levels that speak of them, not scaled to 8 or 16 bits.
    Raises Unreadable, a ValueError that names the file, for one that cannot be read, or not rightly.
    """
    with told(path), path.open("rb") as file:
        return decoded(file, stored)


def decoded(file: IO[bytes], stored: bool = False) -> Picture:
    """The same of an open file, to be used within `told`: what is wrong with it is raised as it comes."""
    return _read_tiff(file, stored) if is_tiff(file) else _read_pillow(file)


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Whatever is wrong with a file as one line that names it."""
    try:
        yield
    except Exception as error:  # each library raises its own kinds for a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):  # its text shows the open file instead of the name
            reason = "cannot identify its format"
        raise Unreadable(f"{path}: cannot be read ({reason}); replace or remove the file") from error


def is_tiff(file: IO[bytes]) -> bool:
    """By its first bytes; the file is where it was."""
    found = file.read(4) in TIFF
    file.seek(0)
    return found


def scaled(pixels: np.ndarray, white: float, path: Path, black: float = 0.0) -> torch.Tensor:
    """[H, W, C] as float32 [C, H, W], `black` to -1 and `white` to 1, clipped at both.

    white: 0 is 255, 65535 or 1.0 by type. Raises ValueError for values without a meaning: not finite, below 0 without
    a black, above 1 (float) or of another type without a white.
    """
    kind, size = pixels.dtype.kind, pixels.dtype.itemsize
    full = {("u", 1): 255.0, ("u", 2): 65535.0}.get((kind, size), 1.0 if kind == "f" else 0.0)
    top = white or full
    remedy = (
        "convert the file, or give the values of white (--source_white, --target_white; the evaluator: --white) and "
        "black (--source_black, --target_black; --black)"
    )
    if kind not in "uif" or not top:
        raise ValueError(f"{path}: pixels are {pixels.dtype}, expected uint8, uint16, float or a white; {remedy}")
    if kind == "u" and size <= 2 and top > black:
        table = _scale(pixels.dtype, top, black)
        return torch.from_numpy(np.take(table, pixels.transpose(2, 0, 1)))
    values = pixels.astype(np.float64 if size == 8 or (kind != "f" and size == 4) else np.float32)
    if kind == "f" and not np.isfinite(values).all():
        raise ValueError(f"{path}: holds NaN or infinite pixels, expected finite values; repair or remove the file")
    if kind != "u":
        low, high = values.min(), values.max()
        if (low < 0 and not black) or (kind == "f" and high > 1 and not white):
            expected = f"[{min(black, 0):g}, 1]" if kind == "f" and not white else "0 or more, or a black"
            raise ValueError(f"{path}: pixels lie in [{low:g}, {high:g}], expected {expected}; {remedy}")
    if top <= black:
        raise ValueError(f"{path}: white is {top:g} by the type of the file, expected more than the black {black:g}")
    return torch.from_numpy(np.ascontiguousarray(_between(values, top, black).transpose(2, 0, 1), dtype=np.float32))


def _between(values: np.ndarray, top: float, black: float) -> np.ndarray:
    return (np.clip(values, black, top) - black) / (top - black) * 2 - 1


@lru_cache(maxsize=8)
def _scale(kind: np.dtype, top: float, black: float) -> np.ndarray:
    """What each value of a type of 8 or 16 bits becomes, float32: to look up is faster than to compute."""
    return _between(np.arange(np.iinfo(kind).max + 1).astype(np.float32), top, black).astype(np.float32)


def narrow(pictures: Iterable[np.ndarray]) -> tuple[int, int, int, int]:
    """Of pictures without a value above the full scale of fewer bits than their type has: that scale, the type's, the
    highest value and how many they are; else zeros.
    """
    top = count = 0
    for pixels in pictures:
        levels = LEVELS.get(pixels.dtype.name, ())
        top, count = max(top, int(pixels.max()) if levels else 0), count + 1
        if not levels or top > levels[-1]:
            return 0, 0, 0, 0
    if not top:
        return 0, 0, 0, 0
    return next(level for level in levels if top <= level), np.iinfo(pixels.dtype).max, top, count


def level_note(pictures: Iterable[np.ndarray], advice: str) -> str:
    """What to say of such a few pictures; advice: what to do, with {level} for that scale and {full} for the type's."""
    level, full, top, count = narrow(pictures)
    said = f"no value above {top} of {full} ({count} looked at): if {level} is white they are nearly black"
    return f"{said}; {advice.format(level=level, full=full)}" if level else ""


def _with_channels(pixels: np.ndarray) -> np.ndarray:
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _picture(pixels: np.ndarray, alpha: np.ndarray | None, orientation: object, profile: bytes | None) -> Picture:
    """Upright and in sRGB; alpha [H, W] as the mask."""
    mask = None if alpha is None or (alpha > 0).all() else alpha > 0
    if profile and pixels.dtype in (np.uint8, np.uint16):
        pixels = _in_srgb(pixels, profile)
    return Picture(_upright(pixels, orientation), None if mask is None else _upright(mask, orientation))


def _upright(image: np.ndarray, orientation: object) -> np.ndarray:
    """Undo what the EXIF orientation says was done: 5 to 8 are stored as columns, the others as rows."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return image[::rows, ::columns]


def _in_srgb(pixels: np.ndarray, profile: bytes) -> np.ndarray:
    """Pixels of another colour profile in sRGB; as they are where it is sRGB, or not one for so many channels."""
    space = {1: "gray", 3: "rgb"}.get(pixels.shape[2], "")
    if not space or not _differs(profile, space):
        return pixels
    flat = pixels[..., 0] if space == "gray" else pixels
    return _transformed(np.ascontiguousarray(flat), profile, space)[..., : pixels.shape[2]]


@lru_cache(maxsize=16)
def _differs(profile: bytes, space: str) -> bool:
    """Whether a profile moves any of a grid of colours by more than two of 255 levels."""
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    grid = colours if space == "rgb" else levels[None]
    try:
        found = _transformed(grid, profile, space)
    except (RuntimeError, ValueError):  # viewers take no notice of such a profile either
        return False
    return bool(np.abs(found - _with_channels(grid).astype(int)).max() > 2)


def _transformed(pixels: np.ndarray, profile: bytes, space: str) -> np.ndarray:
    exact = imagecodecs.CMS.FLAGS.NOOPTIMIZE if pixels.itemsize == 2 else 0  # else they go through a coarse table
    return imagecodecs.cms_transform(pixels, profile, SRGB, colorspace=space, outcolorspace="rgb", flags=exact)


def _read_pillow(file: IO[bytes], frame: int | None = None) -> Picture:
    """Whatever has 8 bits, and PNG; frame: which of a TIFF."""
    with Image.open(file, formats=FORMATS) as stored:
        if frame is not None:
            stored.seek(frame)
        elif getattr(stored, "n_frames", 1) > 1 and stored.format != "MPO":  # a JPEG with a preview or depth behind it
            raise ValueError(f"{stored.n_frames} frames, expected one picture a file")
        if stored.format == "PNG":
            return _read_png(file, stored)
        stored.load()
        alpha = stored.mode == "RGBA" or "transparency" in stored.info
        grey = stored.mode in ("1", "L")
        pixels = _with_channels(np.asarray(stored.convert(("L" if grey else "RGB") + ("A" if alpha else ""))))
        opacity = pixels[..., -1] if alpha else None
        profile = None if stored.mode in ("CMYK", "LAB") else stored.info.get("icc_profile")
        return _picture(pixels[..., :-1] if alpha else pixels, opacity, stored.getexif().get(ORIENTATION), profile)


def _read_png(file: IO[bytes], stored: Image.Image) -> Picture:
    """Pixels of any depth by libpng, which Pillow would read as 8 bits; what else the file says by Pillow."""
    profile, gamma = stored.info.get("icc_profile"), stored.info.get("gamma", 0)
    file.seek(0)
    data = file.read()
    pixels = _with_channels(imagecodecs.png_decode(data))
    alpha = pixels[..., -1] if pixels.shape[2] in (2, 4) else None
    pixels = pixels if alpha is None else pixels[..., :-1]
    if not profile and gamma and "srgb" not in stored.info and abs(gamma * 2.2 - 1) > 0.05:  # as libpng, 1/2.2 is sRGB
        profile = _gamma_profile(gamma, pixels.shape[2])
    orientation = None
    if any(word in data for word in PNG_EXIF):
        with Image.open(io.BytesIO(data)) as again:
            orientation = again.getexif().get(ORIENTATION)
    return _picture(pixels, alpha, orientation, profile)


def _gamma_profile(gamma: float, channels: int) -> bytes:
    if channels == 1:
        return imagecodecs.cms_profile("gray", gamma=1 / gamma)
    primaries = (0.64, 0.33, 1, 0.30, 0.60, 1, 0.15, 0.06, 1)  # those of sRGB
    return imagecodecs.cms_profile("rgb", whitepoint=(0.3127, 0.3290, 1), primaries=primaries, gamma=1 / gamma)


def _read_tiff(file: IO[bytes], stored: bool) -> Picture:
    """The one full picture of a TIFF; its thumbnails, pyramid and masks are left."""
    with tifffile.TiffFile(file) as tiff:
        series = only_series(tiff)
        page = series.keyframe
        photometric = page.photometric
        if photometric in (PHOTOMETRIC.SEPARATED, PHOTOMETRIC.YCBCR, PHOTOMETRIC.CIELAB):
            _check_colours(page)
            file.seek(0)
            return _read_pillow(file, page.index)
        if photometric not in (PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB, PHOTOMETRIC.PALETTE):
            raise ValueError(
                f"colours are {getattr(photometric, 'name', photometric)}, expected RGB or grey; convert it"
            )
        return tiff_picture(_channels_last(series.asarray(), series.axes), page, "S" in series.axes, stored)


def only_series(tiff: tifffile.TiffFile) -> tifffile.TiffPageSeries:
    """The one full picture of a TIFF. Raises ValueError where there are several."""
    series = [s for s in tiff.series if not (s.keyframe.is_reduced or s.keyframe.is_mask)] or tiff.series[:1]
    if len(series) > 1:
        raise ValueError(f"{len(series)} pictures, expected one a file")
    if len(set(np.atleast_1d(series[0].keyframe.tags.valueof(258, 1)).tolist())) > 1:
        raise ValueError("channels of different depth, expected one; store it anew")
    return series[0]


def tiff_picture(pixels: np.ndarray, page: tifffile.TiffPage, samples: bool, stored: bool) -> Picture:
    """What stored pixels [H, W, C] of a page, or of a part of it, show; samples: channels are the page's samples."""
    kinds = [int(kind) for kind in page.extrasamples] if samples else []
    bits, indexed = page.bitspersample, page.photometric == PHOTOMETRIC.PALETTE
    pixels = pixels if indexed else _full_scale(pixels, bits)
    unsigned = pixels.dtype.kind == "u"
    full = (np.iinfo(pixels.dtype).max if bits <= 16 else 2**bits - 1) if unsigned else 1
    pixels, alpha = _without_alpha(pixels, kinds, full)
    if indexed:
        table = page.colormap if page.colormap.max() < 256 else page.colormap >> 8  # as libtiff: some hold bytes
        pixels = np.moveaxis(table.astype(np.uint8)[:, pixels[..., 0]], 0, -1)
    elif page.photometric == PHOTOMETRIC.MINISWHITE:
        if not unsigned:
            raise ValueError(f"{pixels.dtype} whose lowest value is white, expected unsigned; convert it")
        pixels = full - pixels
    picture = _picture(pixels, alpha, page.tags.valueof(ORIENTATION), page.iccprofile)
    if not stored or indexed or not unsigned or bits in (1, 8, 16) or bits > 16:
        return picture
    white = 2**bits - 1
    return Picture(np.rint(picture.pixels * (white / full)).astype(pixels.dtype), picture.mask, white)


def _check_colours(page: tifffile.TiffPage) -> None:
    """Refuses colours that Pillow would read wrongly."""
    if page.tags.valueof(INK_SET) == 2:
        raise ValueError("inks other than CMYK, expected CMYK, RGB or grey; convert it")
    raw = page.photometric == PHOTOMETRIC.YCBCR and page.compression == 1
    levels = np.reshape(
        page.tags.valueof(REFERENCE_BLACK_WHITE, (0, 1, 255, 1, 128, 1, 255, 1, 128, 1, 255, 1)), (6, 2)
    )
    if raw and (page.subsampling != (1, 1) or (levels[:, 0] / levels[:, 1]).tolist() != [0, 255, 128, 255, 128, 255]):
        raise ValueError("uncompressed YCbCr that is subsampled or of a video's range; convert it to RGB")


def _channels_last(pixels: np.ndarray, axes: str) -> np.ndarray:
    """[H, W, C] of what tifffile read; axes: a letter each, channels are C, S (samples) or, last, Q."""
    if axes == "QYX" and 2 * pixels.shape[2] <= min(pixels.shape[:2]):
        axes = "YXC"  # tifffile.imwrite of an H x W x C array stores H pages
    keep = [i for i, axis in enumerate(axes) if axis in "YX" or pixels.shape[i] > 1]
    pixels = pixels.reshape([pixels.shape[i] for i in keep])
    axes = "".join(axes[i] for i in keep)
    channels = axes.replace("Y", "").replace("X", "")
    if "YX" not in axes or channels not in ("", "C", "S"):
        raise ValueError(
            f"axes {axes} of shape {pixels.shape}, expected one page: height, width and at most one of channels; "
            'if the pages are channels store them with tifffile.imwrite(..., metadata={"axes": "CYX"})'
        )
    return np.moveaxis(pixels, axes.index(channels), -1) if channels else pixels[..., None]


def _without_alpha(pixels: np.ndarray, kinds: list[int], whole: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Colours and alpha; kinds: what the last are, 1 alpha that colours were multiplied by, 2 alpha; whole: opaque."""
    found = [n for n, kind in enumerate(kinds) if kind in (1, 2)]
    if not found:
        return pixels, None
    where = pixels.shape[2] - len(kinds) + found[0]
    alpha, colours = pixels[..., where], np.delete(pixels, where, -1)
    if kinds[found[0]] == 1:
        shown = np.minimum(colours / np.where(alpha > 0, alpha, np.inf)[..., None], 1) * whole
        colours = (shown if whole == 1 else np.rint(shown)).astype(pixels.dtype)
    return colours, alpha


def _full_scale(pixels: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned values of up to 16 bits at the full scale of their type, others as they are."""
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype.kind != "u" or bits > 16 or bits == 8 * pixels.itemsize:
        return pixels
    return np.rint(pixels * (np.iinfo(pixels.dtype).max / (2**bits - 1))).astype(pixels.dtype)
