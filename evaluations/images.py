"""What is evaluated: images from an npz, a folder or memory, walked over in batches and never copied whole."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import numpy as np

from ddbm.files import npz
from evaluations import folders

ORDER = "order_digest"  # key in an npz
SLACK = 0.1  # how far floats of [0, 1] or [-1, 1] may be outside and still be taken for such
CHUNK = 1 << 21  # bytes read at once where nobody says how many images

Shape = tuple[int, int, int, int]


class Walk(Protocol):
    """Images in their order, `count` at a time; of these batches the rank-th and every ranks-th from there."""

    def __call__(self, count: int, rank: int = 0, ranks: int = 1) -> Iterator[np.ndarray]: ...


@dataclass(frozen=True)
class Images:
    """uint8 images of `shape` [N, H, W, C], to be walked over as often as one likes.

    path: where they lie, if not in memory; names: of the files if it is a folder; order: `order_digest` of the pairs
    they belong to, "" if unknown.
    """

    shape: Shape
    walk: Walk
    path: Path | None = None
    names: tuple[str, ...] | None = None
    order: str = ""

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def array(self) -> np.ndarray:
        """All of them in memory."""
        array, start = np.empty(self.shape, np.uint8), 0
        for batch in self._chunks():
            array[start : start + len(batch)] = batch
            start += len(batch)
        return array

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of shape and pixels."""
        found = hashlib.sha256(str(self.shape).encode())
        for batch in self._chunks():
            found.update(np.ascontiguousarray(batch).data)
        return found.hexdigest()

    @cached_property
    def first_grey(self) -> tuple[int, int] | None:
        """The first image with a value that is neither 0 nor 255, and the value; None for masks."""
        first = 0
        for batch in self.walk(64):
            for n, image in enumerate(batch):
                grey = image[(image != 0) & (image != 255)]
                if grey.size:
                    return first + n, int(grey[0])
            first += len(batch)
        return None

    @cached_property
    def only_ones(self) -> bool:
        """Whether all values are 0 and 1, as of a mask that was not brought to 0 and 255."""
        return self.first_grey is not None and self.first_grey[1] == 1 and all(b.max() <= 1 for b in self._chunks())

    def _chunks(self) -> Iterator[np.ndarray]:
        return self.walk(max(1, CHUNK // int(np.prod(self.shape[1:]))))


def load_images(path: str | Path) -> Images:
    """The images of an npz with key `arr_0`, or of a folder of 8-bit images (sorted by name, subfolders not read).

    Raises FileNotFoundError if `path` is missing and ValueError if its content is not uint8 [N, H, W, C].
    """
    path = existing(path)
    if path.is_dir():
        files = folders.image_files(path)
        shape = (len(files), *folders.check_shapes(files))
        return Images(shape, partial(folders.read_images, files), path, tuple(file.name for file in files))
    found = npz.keys(path)
    if "arr_0" not in found:
        raise ValueError(f"{path}: found keys {npz.listed(found)}; expected arr_0")
    head = npz.header(path, "arr_0")
    _check(head.shape, head.dtype, str(path), lambda: npz.rows(path, "arr_0", 256))
    order = str(npz.read(path, ORDER)[ORDER]) if ORDER in found else ""
    height, width, channels = head.shape[1:]
    return Images((head.shape[0], height, width, channels), partial(npz.rows, path, "arr_0"), path, order=order)


def as_images(images: "np.ndarray | Images", name: str) -> Images:
    """An array as images; `name` says whose it is. Raises ValueError unless it is uint8 [N, H, W, C]."""
    if isinstance(images, Images):
        return images
    array = images
    _check(array.shape, array.dtype, name, lambda: iter([array]))
    total, height, width, channels = array.shape

    def walk(count: int, rank: int = 0, ranks: int = 1) -> Iterator[np.ndarray]:
        for start in range(rank * count, total, ranks * count):
            yield array[start : start + count]

    return Images((total, height, width, channels), walk)


def check_pairs(reference: Images, sample: Images) -> None:
    """Raise ValueError unless image n of one belongs to image n of the other, as far as can be told."""
    if len(reference) != len(sample):
        raise ValueError(
            f"{len(reference)} images in the reference and {len(sample)} in the sample; expected as many, "
            "row n of one belonging to row n of the other: sample every source once"
        )
    if reference.order and sample.order and reference.order != sample.order:
        raise ValueError(
            f"reference and sample hold other pairs, or another order ({ORDER} {reference.order[:8]} and "
            f"{sample.order[:8]}): sample the split that the reference was made of"
        )


def check_sizes(reference: Images, sample: Images) -> None:
    """Raise ValueError unless the images of both have one height, width and number of channels."""
    (height, width, channels), (h, w, c) = reference.shape[1:], sample.shape[1:]
    if channels != c:
        kinds = {1: "grey", 3: "colour"}
        found = (f"{kinds[n]} (C = {n})" if n in kinds else f"of {n} channels" for n in (channels, c))
        raise ValueError("the reference is {} and the sample {}; expected equal [H, W, C]".format(*found))
    if (height, width) != (h, w):
        raise ValueError(
            f"the reference is {height} x {width} px and the sample {h} x {w}; expected equal [H, W, C]; "
            "make the reference at the size of the samples"
        )


def order_digest(names: Sequence[str]) -> str:
    """SHA-256, in hex, over the names of the pairs in their order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def existing(path: str | Path) -> Path:
    """`path` as a Path; FileNotFoundError if there is nothing."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; expected an npz or a folder of images")
    return path


def _check(shape: tuple[int, ...], dtype: np.dtype, name: str, values: Callable[[], Iterator[np.ndarray]]) -> None:
    """Raise ValueError unless this is uint8 [N, H, W, C] with at least one value; `name` says whose."""
    if dtype != np.uint8:
        found, remedy = str(dtype), "x * 255, as np.uint8" if dtype.kind == "b" else "levels 0..255 as np.uint8"
        if dtype.kind in "fiu" and 0 not in shape:
            low, high, broken = _range(values())
            if broken:
                raise ValueError(f"{name}: {found} with {broken} NaN or infinite values; expected uint8 0..255")
            shown, remedy = _remedy(dtype, low, high)
            found += f" in {shown}"
        raise ValueError(f"{name}: {found}; expected uint8 0..255; store {remedy}")
    if len(shape) != 4:
        raise ValueError(f"{name}: shape {shape}; expected four axes [N, H, W, C] (grey images: C = 1)")
    if 0 in shape:
        raise ValueError(f"{name}: empty, shape {shape}; expected at least one image")
    if shape[1] in (1, 3) and shape[3] > 4:
        raise ValueError(
            f"{name}: shape {shape} looks like [N, C, H, W]; expected [N, H, W, C]; store x.transpose(0, 2, 3, 1)"
        )


def _remedy(dtype: np.dtype, low: float, high: float) -> tuple[str, str]:
    """The range that values from low to high are of, a little beyond it (`SLACK`) or not, and how to store them."""
    shown = f"[{low:g}, {high:g}]"
    if low >= -1 - SLACK and high <= 1 + SLACK and (dtype.kind == "f" or low >= 0):
        least, change = (-1, "(x + 1) * 127.5") if low < -SLACK else (0, "x * 255")
        if low < least or high > 1:
            return shown, f"clip to [{least}, 1], then {change}, rounded, as np.uint8"
        return f"[{least}, 1]", f"{change}, rounded, as np.uint8"
    if low >= 0 and high <= 255:
        return shown, "round(...).astype(np.uint8)"
    if dtype == np.uint16:
        return shown, "x / 257, rounded, as np.uint8"
    return shown, "levels 0..255 as np.uint8"


def _range(parts: Iterator[np.ndarray]) -> tuple[float, float, int]:
    """Smallest and largest finite value, and how many are not finite."""
    low, high, broken = np.inf, -np.inf, 0
    for part in parts:
        finite = part[np.isfinite(part)]
        broken += part.size - finite.size
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return low, high, broken
