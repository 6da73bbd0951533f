"""Folders of images, sorted by name, read when they are wanted."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ddbm.files.npz import line, listed

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}


def image_files(folder: Path) -> tuple[Path, ...]:
    """The images of a folder, not of its subfolders. Raises ValueError where there are none."""
    if (folder / "sampling.json").is_file():
        raise ValueError(f"{folder} holds samples as npz; give its samples_*.npz and reference_*.npz")
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
    if not files:
        raise ValueError(f"{folder}: no images; expected files ending in {listed(sorted(SUFFIXES))}")
    return tuple(files)


def check_shapes(files: tuple[Path, ...]) -> tuple[int, int, int]:
    """The shape [H, W, C] that all files have, from what they say before their pixels. Raises ValueError."""
    first = _shape(files[0])
    for file in files[1:]:
        if (found := _shape(file)) != first:
            raise ValueError(
                f"{file}: shape {found}, but {files[0].name} has {first}; "
                "expected equal height, width and channels; bring all images of a folder to one size"
            )
    return first


def read_images(files: tuple[Path, ...], count: int, rank: int = 0, ranks: int = 1) -> Iterator[np.ndarray]:
    """The images, `count` at a time, uint8 [count, H, W, C]; of these batches the rank-th and every ranks-th after."""
    for start in range(rank * count, len(files), ranks * count):
        yield np.stack([read_image(file) for file in files[start : start + count]])


def read_image(file: Path) -> np.ndarray:
    """One 8-bit grey or RGB image [H, W, C]; alpha is dropped, a palette is looked up."""
    try:
        with Image.open(file) as image:
            grey = _is_grey(image, file)
            array = np.asarray(image.convert("L" if grey else "RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise _damaged(file, error) from error
    return array[:, :, None] if grey else array


def _shape(file: Path) -> tuple[int, int, int]:
    try:
        with Image.open(file) as image:
            return image.height, image.width, 1 if _is_grey(image, file) else 3
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise _damaged(file, error) from error


def _is_grey(image: Image.Image, file: Path) -> bool:
    """Raises ValueError for images that are neither 8-bit grey nor RGB."""
    tile = getattr(image, "tile", [])  # its decoder mode tells 16-bit RGB, which PIL cuts to 8
    raw = str(tile[0][3] if isinstance(tile[0][3], str) else tile[0][3][0]) if tile else ""
    if image.mode[0] in "IF" or (image.format in ("PNG", "TIFF") and ";16" in raw):
        raise ValueError(f"{file}: more than 8 bits a channel; expected 8-bit; convert it yourself first")
    if getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"{file}: several pages; expected one image a file")
    grey = image.mode in ("1", "L", "LA")
    if not grey and image.mode not in ("P", "RGB", "RGBA"):
        raise ValueError(f"{file}: colour mode {image.mode}; expected grey or RGB; convert it first")
    return grey


def _damaged(file: Path, error: BaseException) -> ValueError:
    return ValueError(f"{file}: cannot be read as an image ({line(error)}); write it again")
