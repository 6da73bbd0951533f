"""Where pairs may lie but in a folder: in an archive of it, or rows of a few files; `datasets.pack` converts them."""

import os
from functools import lru_cache
from pathlib import Path

from ddbm.config import DataConfig, Header

from . import hdf5, packed, shards
from .images import Picture
from .layouts import ALIASES, Found, Pair, classes_of, find_pairs
from .listing import SYSTEM
from .rows import RECORD, Format, Read, Row
from .splits import held_out_of, refuse_shared
from .zipped import Zipped

ROWS = {
    "packed": Format(packed.record, packed.reader, packed.write),
    "hdf5": Format(hdf5.record, hdf5.reader, hdf5.write),
    "shards": Format(packed.record, shards.reader, shards.write),
}
MAGIC = {b"PK": "zip", b"\x89HDF\r\n\x1a\n": "hdf5"}  # how files begin
ENDINGS = {".zip": "zip", ".h5": "hdf5", ".hdf5": "hdf5"}  # of those that do not
INSTEAD = {"train": "train", "val": "test", "test": "val"}


def root_of(place: Path, options: DataConfig) -> Path:
    """A place of pairs to be read: a folder as it is, an archive as the folder in it, a file of rows. Raises OSError
    where there is nothing, ValueError for a file that is none of these."""
    if place.is_dir():
        return place
    if not place.exists():
        raise FileNotFoundError(f"data_dir {place} does not exist; set DATA_DIR to the folder that holds the pairs")
    with place.open("rb") as file:
        head = file.read(8)
    kinds = [kind for magic, kind in MAGIC.items() if head.startswith(magic)]
    kind = kinds[0] if kinds else ENDINGS.get(place.suffix.lower(), "")
    if not kind:
        raise ValueError(f"data_dir {place} is a file, expected a folder, or an archive (.zip, .h5), of pairs")
    known = {"source", "a", options.source_folder.lower()}.union(*ALIASES.values())
    return _unzipped(place, known) if kind == "zip" else place


def _unzipped(path: Path, known: set[str]) -> Path:
    """An archive as a folder: the only one in it, as of `zip -r pairs.zip pairs`, unless its name is a known one."""
    root = Zipped(path)
    inner = [each for each in root.iterdir() if each.name[0] != "." and each.name.lower() not in SYSTEM]
    if len(inner) == 1 and inner[0].is_dir() and inner[0].name.lower() not in known:
        return inner[0]
    return root


def format_of(root: Path) -> str:
    """The format of a place with rows, "" for a folder of files."""
    if not root.is_dir():
        return "hdf5"
    if isinstance(root, Zipped) or not (root / RECORD).is_file():
        return ""
    return "shards" if (root / shards.INDEX).is_file() else "packed"


def find(
    root: Path, split: str, options: DataConfig, like: Header | None = None, alone: list[Path] | None = None
) -> Found:
    """The pairs of a split, as `find_pairs` has it, in any format."""
    if format := format_of(root):
        return _find_rows(root, format, split, options, like)
    return find_pairs(root, split, options, like, alone)


def _find_rows(root: Path, format: str, split: str, options: DataConfig, like: Header | None) -> Found:
    """The files of its pairs are names for places, such as DIR/source/12."""
    pack, notices = ROWS[format].record(root), list[str]()
    rows = [
        Pair(name, root / "source" / str(n), root / "target" / str(n), kind, row=Row(root, n))
        for n, (name, kind) in enumerate(zip(pack.names, pack.kinds, strict=True))
    ]
    parts = {part: [row for row, own in zip(rows, pack.splits, strict=True) if own == part] for part in INSTEAD}
    if split == "auto":
        split = "test" if parts["val"] or parts["test"] else "all"
    held_out = split != "all" and not (parts["val"] or parts["test"])
    chosen = rows if split == "all" or held_out else parts[split]
    if not chosen and (chosen := parts[INSTEAD[split]] if split != "all" else []):
        notices.append(f"no {split} split, using {INSTEAD[split]}")
    if not chosen:
        raise ValueError(f"{root}: no pairs of {split}; make it again")
    if options.group_by and split in ("val", "test") and not held_out:
        refuse_shared(chosen, parts["train"], root, options)
    training = parts["train"] or rows
    classes = classes_of(chosen, training, root, options, like, notices) if options.num_classes else []
    if held_out:
        chosen = held_out_of(chosen, split, root, options, notices)
    return Found(split, "two_folders", chosen, classes, notices)


def read_row(row: Row) -> tuple[Picture, Picture]:
    """Source, with the mask of the pair, and target. Raises Unreadable, naming the file."""
    source, target, mask = _reader(row.root)(row.number)
    return Picture(source, None if mask is None or mask.all() else mask), Picture(target, None)


@lru_cache(maxsize=8)
def _reader(root: Path) -> Read:
    return ROWS[format_of(root)].reader(root)


os.register_at_fork(after_in_child=_reader.cache_clear)  # open files are not for two processes
