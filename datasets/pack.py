"""Stores pairs anew: `python -m datasets.pack DIR OUT [--format F] [--flag value ...]`, the flags of their training.

DIR is read as a training would read it, in any format of `formats.py`; OUT gives the same splits, names and pixels.
"""

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
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
    for split, name, kind, entry in zip(pack.splits, pack.names, pack.kinds, entries, strict=True):
        inner = name if not kind or name.startswith(f"{kind}/") else f"{kind}/{name}"
        for side, pixels in zip(("source", "target"), entry, strict=False):
            assert pixels is not None
            write_pixels(out / split / side / inner, Picture(pixels, entry[2]))


def write_zip(out: Path, entries: Iterator[Entry], pack: Pack) -> None:
    """That folder in an archive; its files are compressed already."""
    with TemporaryDirectory(dir=out.parent) as folder, zipfile.ZipFile(out, "w") as archive:
        write_folder(Path(folder), entries, pack)
        for path in sorted(each for each in Path(folder).rglob("*") if each.is_file()):
            archive.write(path, path.relative_to(folder))


WRITERS: dict[str, RowWriter] = {name: each.write for name, each in ROWS.items()}
WRITERS |= {"folder": write_folder, "zip": write_zip}
FILES = ("hdf5", "zip")  # the others are folders


def main(argv: Sequence[str]) -> int:
    options, extra = from_flags(PackConfig, argv, {"folder": "of the pairs", "out": "what to write, not there yet"})
    given, out = Path(extra.folder).expanduser(), Path(extra.out).expanduser()
    choose(WRITERS, options.format, "format")
    if options.skip_unreadable:
        raise ValueError("--skip_unreadable is training's: a pack holds all pairs; remove what datasets.check lists")
    if out.exists() and extra.out:
        raise ValueError(f"{out} is there already: name another, or remove it")
    if not extra.out or not out.absolute().parent.is_dir():
        raise ValueError(f"cannot write '{out}': name a new folder or file in one that exists")
    root = root_of(given, options)
    found = splits_of(root, replace(options, data_dir=str(given)))
    pairs = [(part, pair) for part, each in found.items() for pair in each.pairs]
    layout = next(iter(found.values())).layout

    def read() -> Iterator[Entry]:
        for _, pair in tqdm(pairs, "packing", unit="pair", dynamic_ncols=True):
            source, target = read_pair(pair, layout, sides_of(options), options.source_half)
            if source.white or target.white:
                raise ValueError(f"{pair.source}: fewer bits than its type has; give its white, as --source_white 4095")
            masks = [each.mask for each in (source, target) if each.mask is not None]
            size = source.pixels.shape[:2]
            masks += [read_mask(pair.mask, (size[0], size[1]))] if pair.mask else []
            yield source.pixels, target.pixels, np.logical_and.reduce(masks) if masks else None

    names, splits, kinds = zip(*((pair.name, part, pair.kind) for part, pair in pairs), strict=True)
    with (whole if options.format in FILES else whole_directory)(out) as aside:
        WRITERS[options.format](aside, read(), Pack(names, splits, kinds))
    but = ", but without --mask_folder and --mask_suffix" if options.mask_folder or options.mask_suffix else ""
    print(f"{out}: {len(pairs)} pairs; train with DATA_DIR={quote(str(out))} and the same flags{but}")
    return 0


if __name__ == "__main__":
    run(main)
