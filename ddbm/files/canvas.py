"""Arrays that may be larger than the memory."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

DISK = 1 << 27  # bytes from which an array lies on the disk


def canvas(shape: Sequence[int], folder: Path | None = None, kind: Any = np.float32) -> np.ndarray:
    """Zeros; large ones in a file without a name in `folder` (default: that of temporary files). Raises OSError."""
    size = math.prod(shape) * np.dtype(kind).itemsize
    if size < DISK:
        return np.zeros(shape, kind)
    with TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):  # a full disk would kill whoever writes to the map
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, kind, "r+", shape=tuple(shape))
