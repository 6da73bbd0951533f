"""Pairs of any sizes in the chunks of litdata, with `pairs.json` beside them; read by index, in our loader's order.

DIR/index.json     litdata's; chunk-0-*.bin: items {source, target: [H, W, C], mask: bool [H, W], or empty without one}
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ddbm.files.storage import read_json

from .images import Unreadable
from .packed import write_record
from .rows import Entry, Pack, Read

INDEX = "index.json"
CHUNK = 1 << 26  # bytes
NONE = np.ones((0, 0), bool)  # the mask of a pair without one


def reader(root: Path) -> Read:
    short = short_chunks(root)
    data = _streaming(root).StreamingDataset(str(root), batch_decode=1)  # else an item costs its neighbours' time, too

    def read(n: int) -> Entry:
        for chunk, problem in short.items():
            if n in chunk:
                raise Unreadable(problem)
        try:
            item = data[n]
        except Exception as error:  # the library raises many kinds for a damaged chunk
            reason = " ".join(str(error).split()) or type(error).__name__
            raise Unreadable(f"{root}: pair {n} cannot be read ({reason}); copy or make it again") from error
        return item["source"], item["target"], item["mask"] if item["mask"].size else None

    return read


def short_chunks(root: Path) -> dict[range, str]:
    """The pairs of chunks that have fewer bytes than the index says, for which litdata would wait; and what to say."""
    problems, first = dict[range, str](), 0
    index = read_json(root / INDEX)
    if not isinstance(index.get("chunks"), list):
        raise Unreadable(f"{root / INDEX}: names no chunks, expected litdata's index; copy or make it again")
    for chunk in index["chunks"]:
        path = root / chunk["filename"]
        found, pairs = path.stat().st_size if path.is_file() else 0, range(first, first + chunk["chunk_size"])
        if found < chunk["chunk_bytes"]:
            problems[pairs] = f"{path}: has {found} bytes, expected {chunk['chunk_bytes']}; copy or make it again"
        first = pairs.stop
    return problems


def write(out: Path, entries: Iterator[Entry], pack: Pack) -> None:
    cache = _streaming(out).Cache(str(out), chunk_bytes=CHUNK)
    for n, (source, target, mask) in enumerate(entries):
        arrays = {"source": source, "target": target, "mask": NONE if mask is None else mask}
        cache[n] = {key: np.ascontiguousarray(each) for key, each in arrays.items()}
    cache.done()
    cache.merge()
    write_record(out, pack)


def _streaming(root: Path) -> Any:
    try:
        from litdata import streaming
    except ImportError as error:
        raise ValueError(f"{root}: shards are read by litdata ({error}): pip install -e '.[shards]'") from None
    return streaming
