"""Pairs of one size in one pair of files, which are mapped into memory: nothing is decoded, and no folder is walked.

DIR/pairs.json     a `Pack`: names, splits and classes of the rows
    source.npy     uint8 or uint16 [N, H, W, C], as the files were read; levels, fit and augmentation come later
    target.npy     the same
    mask.npy       bool [N, H, W], True where the pair is defined; if any has a mask
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ddbm.files.storage import read_json, write_whole
from ddbm.settings import from_dict, to_dict

from .images import Unreadable
from .rows import RECORD, Entry, Pack, Read, refuse_unlike

SIDES, MASK = ("source.npy", "target.npy"), "mask.npy"


def record(root: Path) -> Pack:
    return from_dict(Pack, read_json(root / RECORD), str(root / RECORD))


def write_record(out: Path, pack: Pack) -> None:
    write_whole(out / RECORD, json.dumps(to_dict(pack)).encode())


def reader(root: Path) -> Read:
    source, target = (_mapped(root / side) for side in SIDES)
    masks = _mapped(root / MASK) if (root / MASK).is_file() else None
    return lambda n: (source[n], target[n], None if masks is None else masks[n])


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))  # a plain view is indexed in less time
    except (OSError, ValueError, EOFError) as error:
        raise Unreadable(f"{path}: cannot be read ({error}); pack the pairs again") from None


def write(out: Path, entries: Iterator[Entry], pack: Pack) -> None:
    out.mkdir(exist_ok=True)
    arrays: list[np.ndarray] = []
    masks: np.ndarray | None = None
    first: Entry | None = None
    for n, (name, entry) in enumerate(zip(pack.names, entries, strict=True)):
        source, target, mask = entry
        if first is None:
            first = entry
            arrays = [_created(out / side, len(pack.names), each)
                      for side, each in zip(SIDES, (source, target), strict=True)]  # fmt: skip
        refuse_unlike(name, entry, pack.names[0], first)
        arrays[0][n], arrays[1][n] = source, target
        if mask is not None and masks is None:
            masks = _created(out / MASK, len(pack.names), mask)
            masks[:] = True
        if masks is not None and mask is not None:
            masks[n] = mask
    for array in (*arrays, *([] if masks is None else [masks])):
        array.flush()  # type: ignore[attr-defined]
    write_record(out, pack)


def _created(path: Path, count: int, like: np.ndarray) -> np.ndarray:
    """An empty array for so many images. Raises ValueError for pixels of another type than files have."""
    if like.dtype not in (np.uint8, np.uint16, bool):
        raise ValueError(f"{path.name}: pixels are {like.dtype}, a pack holds uint8 or uint16; keep these as files")
    return np.lib.format.open_memmap(path, "w+", like.dtype, (count, *like.shape))
