"""Pairs that lie as rows in a few files: what every such format (`formats.py`) says of them, and gives."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

RECORD = "pairs.json"  # a `Pack`, where the format has no place of its own for it

Entry = tuple[np.ndarray, np.ndarray, np.ndarray | None]  # source, target [H, W, C]; bool [H, W], True where defined
Read = Callable[[int], Entry]


class Row(NamedTuple):
    """The place of a pair: a file or folder of rows, and which of them."""

    root: Path
    number: int


@dataclass(frozen=True)
class Pack:
    """What is said of the rows, in their order."""

    names: tuple[str, ...]
    splits: tuple[str, ...]  # train, val or test
    kinds: tuple[str, ...]  # classes; "" without


RowWriter = Callable[[Path, Iterator[Entry], Pack], None]


class Format(NamedTuple):
    """A way to store pairs; what goes wrong is a ValueError of one line that names the file."""

    record: Callable[[Path], Pack]
    reader: Callable[[Path], Read]  # for this process
    write: RowWriter


def refuse_unlike(name: str, entry: Entry, first_name: str, first: Entry) -> None:
    """Raises ValueError for a pair of another size or type than the first."""
    for here, there in zip(entry[:2], first[:2], strict=True):
        if here.shape != there.shape or here.dtype != there.dtype:
            shapes = [f"{each.dtype} of {'x'.join(map(str, each.shape))}" for each in (here, there)]
            raise ValueError(
                f"{name}: {shapes[0]}, expected {shapes[1]} as in {first_name}; make all alike, or take --format "
                "shards, zip or folder"
            )
