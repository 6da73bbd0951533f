"""Packs pairs of one size: `python -m datasets.pack DIR OUT [--flag value ...]`, the flags a training would be given.

OUT is read as DIR is, with the same splits, names and pixels, and faster (datasets/packed.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ddbm.config import DataConfig
from ddbm.files.storage import whole_directory
from ddbm.ranks.entry import run
from ddbm.settings import from_flags

from .images import Picture
from .masks import read_mask
from .packed import Pack, is_packed, write_packed
from .paired import read_pair, sides_of
from .parts import splits_of


def main(argv: Sequence[str]) -> int:
    options, extra = from_flags(DataConfig, argv, {"folder": "of the pairs", "out": "folder to write, a new one"})
    root, out = Path(extra.folder).expanduser(), Path(extra.out)
    if not root.is_dir() or is_packed(root):
        raise ValueError(f"'{root}' is {'packed' if root.is_dir() else 'no folder'}; expected one with files of pairs")
    if not extra.out or out.exists() or not out.absolute().parent.is_dir():
        raise ValueError(f"cannot write '{out}': name a new folder in one that exists")
    found = splits_of(root, replace(options, data_dir=str(root)))
    pairs = [(part, pair) for part, each in found.items() for pair in each.pairs]
    layout = next(iter(found.values())).layout

    def read() -> Iterator[tuple[Picture, Picture, np.ndarray | None]]:
        for _, pair in tqdm(pairs, "packing", unit="pair", dynamic_ncols=True):
            source, target = read_pair(pair, layout, sides_of(options), options.source_half)
            if source.white or target.white:
                raise ValueError(f"{pair.source}: fewer bits than its type has; give its white, as --source_white 4095")
            masks = [each.mask for each in (source, target) if each.mask is not None]
            size = source.pixels.shape[:2]
            masks += [read_mask(pair.mask, (size[0], size[1]))] if pair.mask else []
            yield source, target, np.logical_and.reduce(masks) if masks else None

    names, splits, kinds = zip(*((pair.name, part, pair.kind) for part, pair in pairs), strict=True)
    with whole_directory(out) as aside:
        shape = write_packed(aside, read(), Pack(names, splits, kinds))
    print(f"{out}: {len(pairs)} pairs of {shape[1]}x{shape[2]}; train with DATA_DIR={out} and the same flags")
    return 0


if __name__ == "__main__":
    run(main)
