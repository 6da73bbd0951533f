"""Features and statistics on the disk, found by the content of what they were computed from."""

import os
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

from ddbm.files import npz

VARIABLE = "DDBM_CACHE"


class Cache:
    """A folder of npz files, each whole or not there; a damaged one counts as missing. No folder: nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def load(self, name: str) -> dict[str, np.ndarray] | None:
        """The arrays saved under a name, None if there are none."""
        path = self._path(name)
        if path is None or not path.is_file():
            return None
        try:
            return npz.read(path, *npz.keys(path))
        except (ValueError, OSError):
            return None  # computed and written again

    def save(self, name: str, **arrays: np.ndarray) -> None:
        """Where the folder cannot be written to, nothing is kept, which is said once."""
        path = self._path(name)
        if path is None:
            return

        def fill(writer: npz.Writer, aside: Path) -> None:
            for key, array in arrays.items():
                writer.add(key, array)

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            npz.write(path, fill)
        except OSError as error:
            print(f"note: features are not kept: {error}; name another folder with --cache", file=sys.stderr)
            self.folder = None

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{name}.npz"


def open_cache(text: str | None) -> Cache:
    """The cache of a folder; "none": none; None: $DDBM_CACHE, or .cache/ddbm at home."""
    text = text or os.environ.get(VARIABLE)
    if text == "none":
        return Cache(None)
    if text:
        return Cache(Path(text))
    with suppress(RuntimeError):  # no home
        return Cache(Path.home() / ".cache" / "ddbm")
    return Cache(None)
