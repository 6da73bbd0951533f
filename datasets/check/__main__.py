"""Checks pairs: `python -m datasets.check DIR [--flag value ...]`, the flags that a training would be given.

Writes one HTML page. Exit status: 0 nothing is wrong, 1 something is, 2 nothing can be checked.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from shlex import quote

import numpy as np
from tqdm import tqdm

from ddbm.config import DataConfig, parse_size
from ddbm.files.storage import write_whole
from ddbm.ranks.entry import run
from ddbm.settings import from_flags, setting

from ..formats import root_of
from ..images import narrow
from ..layouts import Found, Pair
from ..parts import splits_of
from ..sizes import proposed
from .findings import Finding, findings
from .looks import Look, highest, look
from .measures import suited
from .page import page

FEWEST = 16  # square images from which on something is said of their orientations


@dataclass(frozen=True)
class CheckConfig(DataConfig):
    """The pairs, as a training would be told of them, and the page."""

    dataset: str = setting("my_pairs", "name of the training that is proposed")
    out: str = setting("check.html", "the page to write")
    workers: int = setting(0, "processes that read pairs")


def looks_at(found: dict[str, Found], options: DataConfig, workers: int) -> Iterator[Look]:
    """One look at every pair, in order."""
    pairs: list[Pair] = [pair for part in found.values() for pair in part.pairs]
    splits = [name for name, part in found.items() for _ in part.pairs]
    layout = next(iter(found.values())).layout
    how = partial(look, layout=layout, options=options)
    if not workers:
        yield from tqdm(map(how, pairs, splits), "reading", len(pairs), unit="pair", dynamic_ncols=True)
        return
    with ProcessPoolExecutor(min(workers, os.cpu_count() or 1)) as pool:
        yield from tqdm(pool.map(how, pairs, splits, chunksize=16), "reading", len(pairs), unit="pair")


def command(root: Path, looks: Sequence[Look], config: CheckConfig, group: str) -> str:
    """What starts a training on these pairs."""
    given = [
        f"--{f.name} {quote(str(getattr(config, f.name)))}"
        for f in fields(DataConfig)
        if f.name not in ("dataset", "data_dir") and getattr(config, f.name) != f.default
    ]
    for side, name in enumerate(("source", "target")):
        if white := narrow(highest(looks, side, config))[0]:
            given.append(f"--{name}_white {white}")
    if config.image_size == "native":
        given.append(f"--image_size {proposed({each.sides[0].shape[:2] for each in looks})}")
    if group != "none":
        given.append(f"--layers tied --group {group} --augment {group}")
    words = [f"DATA_DIR={quote(str(root))} bash train_ddbm.sh {quote(config.dataset)} i2sb", *given]
    return " ".join(words)


def counted(found: dict[str, Found], looks: Sequence[Look]) -> list[list[str]]:
    """Rows of what there is: split, pairs, sizes, and channels, types and values of both sides."""
    rows = [["split", "pairs", "sizes", "source", "target"]]
    for split, part in found.items():
        whole = [each for each in looks if each.split == split and not each.problem]
        row = [split, str(len(part.pairs))]
        if whole:
            sizes = sorted({each.sides[0].shape[:2] for each in whole})
            smallest, largest = ("x".join(map(str, size)) for size in (sizes[0], sizes[-1]))
            row.append(smallest if len(sizes) == 1 else f"{smallest} to {largest}, {len(sizes)} in all")
            for side in (0, 1):
                own = [each.sides[side] for each in whole]
                channels = "/".join(sorted({str(glance.shape[2]) for glance in own}))
                kinds = "/".join(sorted({glance.kind for glance in own}))
                low, high = min(glance.low for glance in own), max(glance.high for glance in own)
                row.append(f"{channels} x {kinds}, {low:g} to {high:g}")
        rows.append(row + ["-"] * (len(rows[0]) - len(row)))
    return rows


def main(argv: Sequence[str]) -> int:
    config, extra = from_flags(
        CheckConfig, argv, {"folder": "of the pairs"}, about={"prog": "python -m datasets.check"}
    )
    root, out = Path(extra.folder).expanduser(), Path(config.out)
    if out.is_dir() or out.suffix not in (".html", ".htm") or not out.absolute().parent.is_dir():
        raise ValueError(f"--out {out}: expected the name of an HTML file in a folder that exists")
    config = replace(config, data_dir=str(root.resolve()))
    alone: list[Path] = []
    found = splits_of(root_of(root, config), config, alone)
    looks = list(looks_at(found, config, config.workers))
    wrong = findings(looks, config)
    if alone:
        text = f"{len(alone)} file(s) have no partner: {alone[0]}"
        wrong.insert(0, Finding("unmatched", text, [str(path) for path in alone]))
    whole = [each for each in looks if not each.problem]
    if not whole:
        raise ValueError(f"{root}: none of {len(looks)} pairs can be read; {looks[0].problem}")
    runs = np.stack([each.orientation for each in whole if each.orientation is not None] or [np.zeros(10)])
    height, width = parse_size(config.image_size) or (1, 1)
    group, off = suited(runs, height == width) if len(runs) >= FEWEST else ("none", {})
    notices = list(dict.fromkeys(notice for part in found.values() for notice in part.notices))
    rows, start = counted(found, looks), command(root.resolve(), whole, config, group)
    pairs = {(name, pair.name): pair for name, part in found.items() for pair in part.pairs}
    layout = next(iter(found.values())).layout
    content = page(root.name, rows, notices, wrong, whole, pairs, (group, off), start, layout, config)
    write_whole(out, content.encode())

    for row in rows:
        print("  ".join(row))
    print("\n".join(f"note: {notice}" for notice in notices))
    print("\n".join(f"{each.kind}: {each.text}" for each in wrong) or "nothing is wrong")
    print(f"orientations: {said(group, off)}\npage: {out}\ntrain by: {start}")
    return 1 if wrong else 0


def said(group: str, off: dict[str, float]) -> str:
    """Which group suits, in words."""
    if not off:
        return "too few square images to tell which group suits"
    return f"they look alike under {group}" if group != "none" else "they look alike under no group"


if __name__ == "__main__":
    run(main)
