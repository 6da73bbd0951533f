"""Stores pairs anew: `python -m datasets.pack DIR OUT [--format F] [--flag value ...]`, the flags of their training.

DIR is read as a training would read it, in any format of `formats.py`; OUT gives the same splits, names and pixels.
"""

import unicodedata
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath
from shlex import quote
from tempfile import TemporaryDirectory

import numpy as np
from tqdm import tqdm

from ddbm.config import DataConfig
from ddbm.files.storage import whole, whole_directory
from ddbm.ranks.entry import run
from ddbm.settings import choose, from_flags, setting

from .formats import ROWS, root_of
from .images import Picture
from .listing import SYSTEM
from .masks import read_mask
from .paired import read_pair, sides_of
from .parts import splits_of
from .rows import Entry, Pack, RowWriter
from .writing import write_pixels


@dataclass(frozen=True)
class PackConfig(DataConfig):
    """The pairs, as a training would be told of them"""

    format: str = setting("packed", "how OUT is written: packed, hdf5, zip, shards, or folder")


def write_folder(out: Path, entries: Iterator[Entry], pack: Pack) -> None:
    """Two folders of PNG (TIFF where PNG cannot hold them) a split, masks as alpha; classes are their first folders."""
    for place, entry in zip(places_of(pack), entries, strict=True):
        for side, pixels in zip(("source", "target"), entry, strict=False):
            assert pixels is not None
            write_pixels(out / place.parts[0] / side / Path(*place.parts[1:]), Picture(pixels, entry[2]))


def places_of(pack: Pack) -> list[PurePosixPath]:
    """Split, class and name of every pair, as files have them.

    Raises ValueError for names that no file can have, or that two would have; says where their order is another.
    """
    found: dict[str, PurePosixPath] = {}
    for split, name, kind in zip(pack.splits, pack.names, pack.kinds, strict=True):
        inner = PurePosixPath(name if not kind or name.startswith(f"{kind}/") else f"{kind}/{name}")
        remedy = "give the rows other names, or take --format packed or shards"
        odd = (part[0] in "./" or part.lower() in SYSTEM or len(part.encode()) > LONGEST for part in inner.parts)
        if not inner.name or any(odd):
            raise ValueError(f"'{name}' of {split}: a file of a data set has no such name; {remedy}")
        place = split / inner
        if found.setdefault(unicodedata.normalize("NFC", str(place)).casefold(), place) is not place:
            raise ValueError(f"'{name}' of {split}: two pairs have it, but for capitals or Unicode form; {remedy}")
    if any(a.parts > b.parts for a, b in pairwise(found.values()) if a.parts[0] == b.parts[0]):
        print("note: files are in the order of their names, the pairs here are not: batches will differ")
    return list(found.values())


def changes(options: PackConfig) -> str:
    """What the flags of a training on the pairs become, for one on what is packed."""
    names = ["mask_folder", "mask_suffix"]
    if options.format in ("folder", "zip"):  # of two folders, source and target
        names += ["layout", "source_half", "source_folder", "target_folder", "source_suffix", "target_suffix"]
    usual = {each.name: each.default for each in fields(DataConfig)}
    words = [f"--{name} {quote(str(usual[name]))}" for name in names if getattr(options, name) != usual[name]]
    return f", but {' '.join(words)}" if words else ""


def write_zip(out: Path, entries: Iterator[Entry], pack: Pack) -> None:
    """That folder in an archive; its files are compressed already."""
    with TemporaryDirectory(dir=out.parent) as folder, zipfile.ZipFile(out, "w") as archive:
        write_folder(Path(folder), entries, pack)
        for path in sorted(each for each in Path(folder).rglob("*") if each.is_file()):
            archive.write(path, path.relative_to(folder))


WRITERS: dict[str, RowWriter] = {name: each.write for name, each in ROWS.items()}
WRITERS |= {"folder": write_folder, "zip": write_zip}
FILES = ("hdf5", "zip")  # the others are folders
LONGEST = 240  # bytes of a name, to which an ending comes


def main(argv: Sequence[str]) -> int:
    options, extra = from_flags(PackConfig, argv, {"folder": "of the pairs", "out": "what to write, not there yet"})
    given, out = Path(extra.folder).expanduser(), Path(extra.out).expanduser()
    choose(WRITERS, options.format, "format")
    if options.skip_unreadable:
        raise ValueError("--skip_unreadable is training's: a pack holds all pairs; remove what datasets.check lists")
    if out.exists() and extra.out:
        raise ValueError(f"{out} is there already: name another, or remove it")
    if not extra.out:
        raise ValueError("OUT is '', such as of a variable that is not set: name a new folder or file")
    root = root_of(given, options)
    found = splits_of(root, replace(options, data_dir=str(given)))
    pairs = [(part, pair) for part, each in found.items() for pair in each.pairs]
    layout = next(iter(found.values())).layout

    def read() -> Iterator[Entry]:
        for _, pair in bar:
            source, target = read_pair(pair, layout, sides_of(options), options.source_half)
            if source.white or target.white:
                raise ValueError(f"{pair.source}: fewer bits than its type has; give its white, as --source_white 4095")
            masks = [each.mask for each in (source, target) if each.mask is not None]
            size = source.pixels.shape[:2]
            masks += [read_mask(pair.mask, (size[0], size[1]))] if pair.mask else []
            yield source.pixels, target.pixels, np.logical_and.reduce(masks) if masks else None

    for notice in dict.fromkeys(notice for each in found.values() for notice in each.notices):
        print(f"note: {root}: {notice}")
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    names, splits, kinds = zip(*((pair.name, part, pair.kind) for part, pair in pairs), strict=True)
    kept = whole if options.format in FILES else whole_directory
    with tqdm(pairs, "packing", unit="pair", dynamic_ncols=True) as bar, kept(out) as aside:
        WRITERS[options.format](aside, read(), Pack(names, splits, kinds))
    print(f"{out}: {len(pairs)} pairs; train with DATA_DIR={quote(str(out))} and the same flags{changes(options)}")
    return 0


if __name__ == "__main__":
    run(main)
