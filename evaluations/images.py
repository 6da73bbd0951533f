"""Reads what is evaluated: images from an npz or a folder, Inception statistics from an npz."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}


@dataclass(frozen=True)
class Images:
    """Images `array`, uint8 [N, H, W, C], from `path`; `names` are the file names if it was a folder."""

    array: np.ndarray
    path: Path
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Statistics:
    """Mean `mu` [D] and covariance `sigma` [D, D] of Inception features, float64, from `path`."""

    mu: np.ndarray
    sigma: np.ndarray
    path: Path


def load_images(path: str | Path) -> Images:
    """Read an npz with key `arr_0` or a folder of 8-bit images (sorted by name, subfolders not read).

    Raises FileNotFoundError if `path` is missing and ValueError if its content is not uint8 [N, H, W, C].
    """
    path = existing(path)
    if path.is_dir():
        return _load_folder(path)
    array = _read_npz(path, ("arr_0",))["arr_0"]
    check_images(array, str(path))
    return Images(array, path)


def load_statistics(path: str | Path) -> Statistics:
    """Read an npz with keys `mu` [D] and `sigma` [D, D]; they are returned in float64."""
    path = existing(path)
    data = _read_npz(path, ("mu", "sigma"))
    mu, sigma = data["mu"], data["sigma"]
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise ValueError(f"{path}: mu {mu.shape} and sigma {sigma.shape}; expected shapes [D] and [D, D]")
    if mu.dtype.kind != "f" or sigma.dtype.kind != "f":
        raise ValueError(f"{path}: mu is {mu.dtype} and sigma is {sigma.dtype}; expected floats")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError(f"{path}: mu or sigma holds NaN or infinity; compute the statistics again")
    return Statistics(mu.astype(np.float64), sigma.astype(np.float64), path)


def load_reference(path: str | Path) -> Images | Statistics:
    """Read images (`arr_0` or a folder) or, from an npz with `mu` and `sigma`, statistics."""
    path = existing(path)
    if path.is_file():
        keys = npz_keys(path)
        if "arr_0" not in keys:
            if {"mu", "sigma"} <= set(keys):
                return load_statistics(path)
            raise ValueError(f"{path}: found keys {_listed(keys)}; expected arr_0 (images) or mu and sigma")
    return load_images(path)


def check_images(array: np.ndarray, name: str) -> None:
    """Raise ValueError unless `array` is uint8 [N, H, W, C] with at least one value; `name` says whose."""
    if array.dtype != np.uint8:
        found, remedy = str(array.dtype), "round(...).astype(np.uint8)"
        if array.dtype.kind in "fiu" and array.size:
            low, high = float(array.min()), float(array.max())
            if array.dtype.kind == "f" and low >= -1 and high <= 1:
                low, high = (-1, 1) if low < 0 else (0, 1)
                remedy = "(x + 1) * 127.5" if low < 0 else "x * 255"
                remedy += ", rounded, as np.uint8"
            found += f" in [{low:g}, {high:g}]"
        raise ValueError(f"{name}: {found}; expected uint8 0..255; store {remedy}")
    if array.ndim != 4:
        raise ValueError(f"{name}: shape {array.shape}; expected four axes [N, H, W, C] (grey images: C = 1)")
    if not array.size:
        raise ValueError(f"{name}: empty, shape {array.shape}; expected at least one image")


def check_pairs(reference: np.ndarray, sample: np.ndarray) -> None:
    """Raise ValueError unless both [N, H, W, C] have equal length and shape."""
    if reference.shape != sample.shape:
        raise ValueError(
            f"reference has shape {reference.shape} and sample {sample.shape}; expected equal [N, H, W, C], "
            "row n of one belonging to row n of the other; sample every source once, at the reference's size"
        )


def npz_keys(path: Path) -> tuple[str, ...]:
    """Names of the arrays in an npz."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: not an npz file, or a truncated one; write it with np.savez")
    with zipfile.ZipFile(path) as archive:
        return tuple(name.removesuffix(".npy") for name in archive.namelist())


def existing(path: str | Path) -> Path:
    """`path` as a Path; FileNotFoundError if there is nothing."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; expected an npz or a folder of images")
    return path


def _read_npz(path: Path, wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
    keys = npz_keys(path)
    if missing := [key for key in wanted if key not in keys]:
        raise ValueError(f"{path}: found keys {_listed(keys)}; expected {_listed(missing)}")
    try:
        with np.load(path, allow_pickle=False) as data:
            return {key: data[key] for key in wanted}
    except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile) as error:
        if "Object arrays" in str(error):
            raise ValueError(f"{path}: an object array; expected one plain array of numbers") from error
        raise ValueError(f"{path}: cannot be read ({_line(error)}); write the file again") from error


def _load_folder(folder: Path) -> Images:
    if (folder / "sampling.json").is_file():
        raise ValueError(f"{folder} holds samples as npz; give its samples_*.npz and reference_*.npz")
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
    if not files:
        raise ValueError(f"{folder}: no images; expected files ending in {_listed(sorted(SUFFIXES))}")
    images = []
    for file in files:
        images.append(_read_image(file))
        if images[-1].shape != images[0].shape:
            raise ValueError(
                f"{file}: shape {images[-1].shape}, but {files[0].name} has {images[0].shape}; "
                "expected equal height, width and channels; bring all images of a folder to one size"
            )
    return Images(np.stack(images), folder, tuple(file.name for file in files))


def _read_image(file: Path) -> np.ndarray:
    """One 8-bit grey or RGB image [H, W, C]; alpha is dropped, a palette is looked up."""
    try:
        with Image.open(file) as image:
            tile = getattr(image, "tile", [])  # its decoder mode tells 16-bit RGB, which PIL cuts to 8
            raw = str(tile[0][3] if isinstance(tile[0][3], str) else tile[0][3][0]) if tile else ""
            if image.mode[0] in "IF" or (image.format in ("PNG", "TIFF") and ";16" in raw):
                raise ValueError(f"{file}: more than 8 bits a channel; expected 8-bit; convert it yourself first")
            if getattr(image, "n_frames", 1) > 1:
                raise ValueError(f"{file}: several pages; expected one image a file")
            grey = image.mode in ("1", "L", "LA")
            if not grey and image.mode not in ("P", "RGB", "RGBA"):
                raise ValueError(f"{file}: colour mode {image.mode}; expected grey or RGB; convert it first")
            array = np.asarray(image.convert("L" if grey else "RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file}: cannot be read as an image ({_line(error)}); write it again") from error
    return array[:, :, None] if grey else array


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names) or "none"


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
