"""Features and statistics on the disk, found by the content of what they were computed from."""

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddbm.files import npz
from ddbm.files.storage import write_whole


@dataclass
class Cache:
    """A folder of npz files, each whole or not there. No folder: nothing is kept."""

    folder: Path | None

    def load(self, name: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray] | None:
        """The arrays under a name; None unless they are finite floats of these shapes, and are to be written anew."""
        if self.folder is None:
            return None
        try:
            kept = npz.read(self.folder / f"{name}.npz", *shapes)
        except (ValueError, OSError):
            return None
        finite = all(array.dtype.kind == "f" and np.isfinite(array).all() for array in kept.values())
        return kept if finite and {key: array.shape for key, array in kept.items()} == shapes else None

    def save(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Where the folder cannot be written to, nothing is kept, which is said once."""
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / f"{name}.npz", lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
        except OSError as error:
            print(f"note: features are not kept: {error}; name another folder with --cache", file=sys.stderr)
            self.folder = None


def open_cache(text: str | None) -> Cache:
    """The cache of a folder; "none": none; None: $DDBM_CACHE, or .cache/ddbm at home."""
    text = text or os.environ.get("DDBM_CACHE")
    with suppress(RuntimeError):  # no home
        return Cache(None if text == "none" else Path(text or "~/.cache/ddbm").expanduser())
    return Cache(None)
