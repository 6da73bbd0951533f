"""Pairs of one size in one pair of files, which are mapped into memory: nothing is decoded, and no folder is walked.

DIR/pairs.json     a `Pack`: names, splits and classes of the rows
    source.npy     uint8 or uint16 [N, H, W, C], as the files were read; levels, fit and augmentation come later
    target.npy     the same
    mask.npy       bool [N, H, W], True where the pair is defined; if any has a mask
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ddbm.config import DataConfig, Header
from ddbm.files.storage import read_json, write_whole
from ddbm.settings import from_dict, to_dict

from .images import Picture, Unreadable
from .layouts import Found, Pair, classes_of
from .splits import held_out_of, refuse_shared

RECORD, SIDES, MASK = "pairs.json", ("source.npy", "target.npy"), "mask.npy"
INSTEAD = {"train": "train", "val": "test", "test": "val"}


@dataclass(frozen=True)
class Pack:
    """What `pairs.json` says of the rows, in their order."""

    names: tuple[str, ...]
    splits: tuple[str, ...]  # train, val or test
    kinds: tuple[str, ...]  # classes; "" without


def is_packed(root: Path) -> bool:
    return (root / RECORD).is_file()


def find_packed(root: Path, split: str, options: DataConfig, like: Header | None = None) -> Found:
    """The pairs of a split, as `find_pairs` has it. Their files are places in the arrays, such as source.npy/12."""
    pack, notices = from_dict(Pack, read_json(root / RECORD), str(root / RECORD)), list[str]()
    rows = [
        Pair(name, root / SIDES[0] / str(n), root / SIDES[1] / str(n), kind)
        for n, (name, kind) in enumerate(zip(pack.names, pack.kinds, strict=True))
    ]
    parts = {part: [row for row, own in zip(rows, pack.splits, strict=True) if own == part] for part in INSTEAD}
    if split == "auto":
        split = "test" if parts["val"] or parts["test"] else "all"
    held_out = split != "all" and not (parts["val"] or parts["test"])
    chosen = rows if split == "all" or held_out else parts[split]
    if not chosen and (chosen := parts[INSTEAD[split]]):
        notices.append(f"no {split} split, using {INSTEAD[split]}")
    if not chosen:
        raise ValueError(f"{root / RECORD}: no pairs of {split}; pack them again")
    if options.group_by and split in ("val", "test") and not held_out:
        refuse_shared(chosen, parts["train"], root, options)
    training = parts["train"] or rows
    classes = classes_of(chosen, training, root, options, like, notices) if options.num_classes else []
    if held_out:
        chosen = held_out_of(chosen, split, root, options, notices)
    return Found(split, "two_folders", chosen, classes, notices)


def read_row(path: Path) -> Picture:
    """The image at a place in an array, with the mask of its pair. Raises Unreadable, naming the file."""
    array, masks = _opened(path.parent)
    row = int(path.name)
    return Picture(np.array(array[row]), None if masks is None or masks[row].all() else np.array(masks[row]))


@lru_cache(maxsize=8)
def _opened(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """An array, and the masks beside it if there are any."""
    try:
        mask = path.with_name(MASK)
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        return array, np.load(mask, mmap_mode="r", allow_pickle=False) if mask.is_file() else None
    except (OSError, ValueError, EOFError) as error:
        raise Unreadable(f"{path}: cannot be read ({error}); pack the pairs again") from None


def write_packed(out: Path, pairs: Iterator[tuple[Picture, Picture, np.ndarray | None]], pack: Pack) -> tuple[int, ...]:
    """Writes pairs and their masks in the order of `pack` into a folder; the shape of the targets.

    Raises ValueError, naming the pair, for one that is unlike the first.
    """
    arrays: list[np.ndarray] = []
    masks: np.ndarray | None = None
    for n, (name, (source, target, mask)) in enumerate(zip(pack.names, pairs, strict=True)):
        if not arrays:
            arrays = [_created(out / side, len(pack.names), each.pixels) for side, each in
                      zip(SIDES, (source, target), strict=True)]  # fmt: skip
        for array, each in zip(arrays, (source, target), strict=True):
            if each.pixels.shape != array.shape[1:] or each.pixels.dtype != array.dtype:
                shapes = [f"{kind} of {'x'.join(map(str, shape))}" for kind, shape in
                          ((each.pixels.dtype, each.pixels.shape), (array.dtype, array.shape[1:]))]  # fmt: skip
                raise ValueError(f"{name}: {shapes[0]}, expected {shapes[1]} as in {pack.names[0]}; make all alike")
            array[n] = each.pixels
        if mask is not None and masks is None:
            masks = _created(out / MASK, len(pack.names), mask)
            masks[:] = True
        if masks is not None and mask is not None:
            masks[n] = mask
    for array in (*arrays, *([] if masks is None else [masks])):
        array.flush()  # type: ignore[attr-defined]
    write_whole(out / RECORD, json.dumps(to_dict(pack)).encode())
    return arrays[1].shape


def _created(path: Path, count: int, like: np.ndarray) -> np.ndarray:
    """An empty array for so many images. Raises ValueError for pixels of another type than files have."""
    if like.dtype not in (np.uint8, np.uint16, bool):
        raise ValueError(f"{path}: pixels are {like.dtype}, a pack holds uint8 or uint16; keep these as files")
    return np.lib.format.open_memmap(path, "w+", like.dtype, (count, *like.shape))
