"""Arrays that may be larger than the memory, and .npy files that are written part by part.

Parts are written by ordinary writes: of a memory map whole pages travel, with the neighbours' values as another machine
knows them, and a full disk kills who writes to one.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import Any

import numpy as np

from .storage import named

DISK = 1 << 27  # bytes from which an array lies on the disk


def canvas(shape: Sequence[int], folder: Path | None = None, kind: Any = np.float32) -> np.ndarray:
    """Zeros; large ones in a file without a name in `folder` (default: that of temporary files). Raises OSError."""
    size = math.prod(shape) * np.dtype(kind).itemsize
    if size < DISK:
        return np.zeros(shape, kind)
    place = folder or Path(gettempdir())
    with named(place / f"{size >> 20} MiB of images"), TemporaryFile(dir=place) as file:
        if hasattr(os, "posix_fallocate"):  # a full disk would kill whoever writes to the map
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, kind, "r+", shape=tuple(shape))


def make_rows(path: Path, shape: tuple[int, ...], kind: Any = np.float32) -> None:
    """An .npy of zeros, which take no place on the disk before they are written. Raises OSError, naming it."""
    with named(path):
        np.lib.format.open_memmap(path, "w+", kind, shape)


def write_rows(path: Path, start: int, rows: np.ndarray, length: int) -> None:
    """Writes the rows from `start` on of an .npy of `length` rows; on return they are on the disk. Raises OSError."""
    with named(path), open(path, "r+b", opener=lambda name, flags: os.open(name, flags | os.O_DSYNC)) as file:
        file.seek((start - length) * rows[0].nbytes, os.SEEK_END)
        file.write(rows.tobytes())
