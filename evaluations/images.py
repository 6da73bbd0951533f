"""What is evaluated: images from an npz, a folder or memory, walked over in batches and never copied whole."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from datasets.images import EXTENSIONS, read_image
from ddbm.files import npz

ORDER = "order_digest"  # key in an npz
GREY = 128  # of pixels that are transparent, as in samples
CHUNK = 1 << 21  # bytes read at once where nobody says how many images
# (count, rank=0, ranks=1): images in their order, `count` at a time; the rank-th of these and every ranks-th from there
Walk = Callable[..., Iterator[np.ndarray]]


@dataclass(frozen=True)
class Images:
    """uint8 images of `shape` [N, H, W, C], to be walked over as often as one likes.

    path: where they lie, if not in memory; names: of the files if it is a folder; order: `order_digest` of the pairs
    they belong to, "" if unknown.
    """

    shape: tuple[int, ...]
    walk: Walk
    path: Path | None = None
    names: tuple[str, ...] = ()
    order: str = ""

    def __len__(self) -> int:
        return self.shape[0]

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of shape and pixels."""
        found = hashlib.sha256(str(self.shape).encode())
        for batch in self._chunks():
            found.update(np.ascontiguousarray(batch).data)
        return found.hexdigest()

    @cached_property
    def levels(self) -> list[int]:
        """The values of masks, among 0, 1 and 255; of other images those up to where it is seen that they are none."""
        found: set[int] = set()
        for batch in self._chunks():
            found |= set(np.flatnonzero(np.bincount(batch.ravel())).tolist())
            if found - {0, 1, 255}:
                break
        return sorted(found)

    def _chunks(self) -> Iterator[np.ndarray]:
        return self.walk(max(1, CHUNK // int(np.prod(self.shape[1:]))))


def load_images(path: str | Path) -> Images:
    """The images of an npz with key `arr_0`, or of a folder of 8-bit images (sorted by name, subfolders not read).

    Raises FileNotFoundError if `path` is missing and ValueError if its content is not uint8 [N, H, W, C].
    """
    path = existing(path)
    if path.is_dir():
        return _folder(path)
    found = npz.keys(path)
    if "arr_0" not in found:
        raise ValueError(f"{path}: found keys {npz.listed(found)}; expected arr_0")
    shape, _, dtype = npz.header(path, "arr_0")
    order = str(npz.read(path, ORDER)[ORDER]) if ORDER in found else ""
    return Images(_checked(shape, dtype, str(path)), partial(npz.rows, path, "arr_0"), path, order=order)


def as_images(images: "np.ndarray | Images", name: str) -> Images:
    """An array as images; `name` says whose it is. Raises ValueError unless it is uint8 [N, H, W, C]."""
    if isinstance(images, Images):
        return images
    return Images(_checked(images.shape, images.dtype, name), _sliced(len(images), images.__getitem__))


def order_digest(names: Sequence[str]) -> str:
    """SHA-256, in hex, over the names of the pairs in their order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def existing(path: str | Path) -> Path:
    """`path` as a Path; FileNotFoundError if there is nothing."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; expected an npz or a folder of images")
    return path


def _folder(path: Path) -> Images:
    """The image files of a folder, read when they are wanted."""
    if (path / "sampling.json").is_file():
        raise ValueError(f"{path} holds samples as npz; give its samples_*.npz and reference_*.npz")
    files = sorted(f for f in path.iterdir() if f.suffix.lower() in EXTENSIONS and not f.name.startswith("."))
    if not files:
        raise ValueError(f"{path}: no images; expected files ending in {', '.join(EXTENSIONS)}")
    shape = _read(files[0]).shape

    def read(rows: slice) -> np.ndarray:
        images = [_read(file) for file in files[rows]]
        for file, image in zip(files[rows], images, strict=True):
            if image.shape != shape:
                raise ValueError(
                    f"{file}: shape {image.shape}, but {files[0].name} has {shape}; bring all images of a folder to "
                    "one height, width and number of channels"
                )
        return np.stack(images)

    return Images((len(files), *shape), _sliced(len(files), read), path, tuple(file.name for file in files))


def _read(file: Path) -> np.ndarray:
    """One image, uint8 [H, W, C], mid-grey where it is transparent."""
    pixels, mask = read_image(file)
    if pixels.dtype != np.uint8:
        raise ValueError(f"{file}: more than 8 bits a channel ({pixels.dtype}); expected 8; convert it yourself first")
    return pixels if mask is None else np.where(mask[..., None], pixels, np.uint8(GREY))


def _sliced(total: int, read: Callable[[slice], np.ndarray]) -> Walk:
    """The walk over images of which any row can be read."""

    def walk(count: int, rank: int = 0, ranks: int = 1) -> Iterator[np.ndarray]:
        for start in range(rank * count, total, ranks * count):
            yield np.ascontiguousarray(read(slice(start, start + count)))

    return walk


def _checked(shape: tuple[int, ...], dtype: np.dtype, name: str) -> tuple[int, ...]:
    """The shape, if this is uint8 [N, H, W, C] with at least one value; `name` says whose."""
    channels_first = len(shape) == 4 and shape[1] in (1, 3) and shape[3] > 4
    if dtype != np.uint8 or len(shape) != 4 or 0 in shape or channels_first:
        raise ValueError(
            f"{name}: {dtype} of shape {shape}; expected uint8 of [N, H, W, C], levels 0 to 255; store x * 255 of "
            "[0, 1], or (x + 1) * 127.5 of [-1, 1], rounded; x.transpose(0, 2, 3, 1) of [N, C, H, W]"
        )
    return shape
