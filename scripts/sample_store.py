"""Finished batches of a sampling, kept until all are there, and the npz files that are made of them.

    OUT/.parts/
        header.json               what the images depend on, so that no other sampling goes on with them
        00000000_00000064.npz     images 0 to 63: sample, target, source, mask if there is one, nfe

Every file is there whole or not at all. The npz files are written batch by batch, so that no memory holds them.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np

from ddbm.files.storage import is_local, remove_tree, write_whole

HEADER = "header.json"
NAME = re.compile(r"(\d{8})_(\d{8})\.npz")


class Part(NamedTuple):
    """The images `start` to `stop - 1` of the data."""

    start: int
    stop: int
    path: Path


class Rows(NamedTuple):
    """An array that comes in pieces along its first axis; one without axes in one piece."""

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: Iterable[np.ndarray]


class Parts:
    """The finished batches in the directory `out`."""

    def __init__(self, out: Path) -> None:
        self.out, self.folder = out, out / ".parts"

    def begin(self, header: dict[str, Any], restart: bool) -> list[Part]:
        """The parts that a sampling with this header finds; with `restart` none.

        Raises ValueError where they are another's, as they may be hours of work.
        """
        header = json.loads(json.dumps(header))
        found = [] if restart else self.found()
        if found:
            known = self._header()
            names = dict.fromkeys([*known, *header])
            differing = [f"{n}: {known.get(n)} -> {header.get(n)}" for n in names if known.get(n) != header.get(n)]
            if differing:
                raise ValueError(
                    f"{self.out} holds {sum(p.stop - p.start for p in found)} images of an unfinished sampling with "
                    f"other settings ({'; '.join(differing)}): use those to go on with it, another --out_dir, or "
                    "--restart to throw them away"
                )
            for part in self.listed():
                if part not in found:
                    part.path.unlink(missing_ok=True)
            return found
        self.remove()
        self.folder.mkdir(exist_ok=True)
        write_whole(self.folder / HEADER, json.dumps(header, indent=2).encode())
        return []

    def _header(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.folder / HEADER).read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return {}

    def listed(self) -> list[Part]:
        """All parts by their names, in order."""
        paths = self.folder.iterdir() if self.folder.is_dir() else ()
        named = ((NAME.fullmatch(path.name), path) for path in paths)
        return sorted(Part(int(match[1]), int(match[2]), path) for match, path in named if match)

    def found(self) -> list[Part]:
        """The parts that are whole, in order, no image twice."""
        kept: list[Part] = []
        for part in self.listed():
            if part.start >= (kept[-1].stop if kept else 0) and _is_whole(part.path):
                kept.append(part)
        return kept

    def images(self, count: int) -> int:
        """How many of the first `count` images are there."""
        return sum(min(part.stop, count) - part.start for part in self.listed() if part.start < count)

    def write(self, start: int, rows: Mapping[str, np.ndarray], nfe: int) -> None:
        """Keeps the images from `start` on; rows: `[N, H, W, C]`."""
        stop = start + len(rows["sample"])
        content = {name: whole(array) for name, array in rows.items()} | {"nfe": whole(np.array(nfe))}
        write_file(self.folder / f"{start:08}_{stop:08}.npz", content)

    def remove(self) -> None:
        if self.folder.is_dir():
            remove_tree(self.folder, HEADER)


def missing(found: Sequence[Part], count: int, batch_size: int) -> list[range]:
    """The images below `count` that no part holds, batch by batch: batch k is of images k batch_size to the next's.

    So a batch is made of the same images whatever the number of ranks, and whichever were finished before.
    """
    runs, position = [], 0
    for part in [*found, Part(count, count, Path())]:
        while position < min(part.start, count):
            stop = min(part.start, count, (position // batch_size + 1) * batch_size)
            runs.append(range(position, stop))
            position = stop
        position = part.stop
    return runs


def read(part: Part, name: str, count: int) -> np.ndarray:
    """An array of a part, of its images below `count`; the mask is all True where it has none.

    Raises ValueError, and deletes the part, if it is damaged.
    """
    try:
        with part.path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if name == "mask" and name not in arrays:
                return np.ones((*arrays["sample"].shape[:3], 1), bool)[: count - part.start]
            array: np.ndarray = arrays[name]
            return array if not array.ndim else array[: count - part.start]
    except (ValueError, EOFError, KeyError, zlib.error, zipfile.BadZipFile) as error:
        part.path.unlink(missing_ok=True)
        raise ValueError(
            f"{part.path} was damaged ({error}) and is deleted: the same command samples its images again"
        ) from None


def in_order(parts: Sequence[Part], name: str, count: int) -> Rows:
    """An array of all parts, of the images below `count`."""
    first = read(parts[0], name, count)
    return Rows((count, *first.shape[1:]), first.dtype, (read(part, name, count) for part in parts))


def chosen(parts: Sequence[Part], name: str, index: Sequence[int]) -> np.ndarray:
    """Some images of an array, in rising order."""
    picked = []
    for part in parts:
        inside = [i - part.start for i in index if part.start <= i < part.stop]
        if inside:
            picked.append(read(part, name, part.stop)[inside])
    return np.concatenate(picked)


def whole(array: np.ndarray) -> Rows:
    return Rows(array.shape, array.dtype, [array])


def write_npz(file: BinaryIO, arrays: Mapping[str, Rows]) -> None:
    """What `np.savez` writes, from arrays that need not fit in memory."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, rows in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                for block in _npy(rows):
                    member.write(block)


def write_file(path: Path, arrays: Mapping[str, Rows]) -> None:
    """Writes an npz whole or not at all, also to a store without holding it in memory."""
    if is_local(path):
        write_whole(path, lambda file: write_npz(file, arrays))
        return
    with path.open("wb") as file:  # there when it is closed, and not after an error
        write_npz(cast(BinaryIO, file), arrays)


def _npy(rows: Rows) -> Iterator[bytes]:
    head = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(rows.dtype)
    np.lib.format.write_array_header_1_0(head, {"descr": descr, "fortran_order": False, "shape": rows.shape})
    yield head.getvalue()
    for piece in rows.pieces:
        yield piece.tobytes()


def _is_whole(path: Path) -> bool:
    """Whether the file has its end, where a zip lists what it holds."""
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            return {"sample.npy", "target.npy", "source.npy", "nfe.npy"} <= set(archive.namelist())
    except zipfile.BadZipFile:
        return False
