"""Arrays that may be larger than the memory."""

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
