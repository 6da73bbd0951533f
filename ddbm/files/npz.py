"""Arrays of an npz, read and written in parts, so that memory does not grow with their length."""

import math
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from .storage import whole

Header = tuple[tuple[int, ...], bool, np.dtype]  # shape; whether the last axis is stored first; type


def keys(path: Path) -> tuple[str, ...]:
    """Names of the arrays in an npz. Raises ValueError for what is none."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: not an npz file, or a truncated one; write it with np.savez")
    with told(path), zipfile.ZipFile(path) as archive:
        return tuple(name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy"))


def header(path: Path, key: str) -> Header:
    """What an array says of itself before its values."""
    with _opened(path, key) as (_, found):
        return found


def rows(path: Path, key: str, count: int, rank: int = 0, ranks: int = 1) -> Iterator[np.ndarray]:
    """The array along its first axis, `count` rows at a time, read in one go through the file, compressed or not.

    Of these parts the rank-th and every ranks-th from there.
    """
    with _opened(path, key) as (file, ((length, *rest), fortran, dtype)):
        if fortran and rest:  # its rows do not lie together
            whole = read(path, key)[key]
            for start in range(rank * count, len(whole), ranks * count):
                yield np.ascontiguousarray(whole[start : start + count])
            return
        size = math.prod(rest) * dtype.itemsize
        for start in range(0, length, count):
            part = min(count, length - start)
            data = file.read(part * size)
            if len(data) < part * size:
                raise ValueError(f"{key} ends after {start + len(data) // max(size, 1)} of {length} rows")
            if start // count % ranks == rank:
                yield np.frombuffer(data, dtype).reshape(part, *rest).copy()  # torch takes no read-only memory


def read(path: Path, *wanted: str) -> dict[str, np.ndarray]:
    """Whole arrays. Raises ValueError, naming the file, for keys that are not there and for damage."""
    found = keys(path)
    if missing := [key for key in wanted if key not in found]:
        raise ValueError(f"{path}: found keys {listed(found)}; expected {listed(missing)}")
    for key in wanted:
        header(path, key)  # refuses what cannot be true before memory is taken for it
    with told(path), np.load(path, allow_pickle=False) as data:
        return {key: data[key] for key in wanted}


class Writer:
    """Adds arrays to an open npz."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive

    def add(self, key: str, array: np.ndarray) -> None:
        with self.archive.open(f"{key}.npy", "w", force_zip64=True) as file:
            npy.write_array(file, np.asanyarray(array), allow_pickle=False)

    def stream(self, key: str, shape: tuple[int, ...], dtype: type, parts: Iterable[np.ndarray]) -> None:
        """An array of a known shape from its consecutive parts."""
        described = {"descr": npy.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        written = 0
        with self.archive.open(f"{key}.npy", "w", force_zip64=True) as file:
            npy.write_array_header_2_0(file, described)
            for part in parts:
                assert part.shape[1:] == shape[1:] and part.dtype == dtype
                file.write(np.ascontiguousarray(part).data)
                written += len(part)
        assert written == shape[0], f"{written} rows of {shape[0]}"


def write(path: Path, *fill: Callable[[Writer, Path], object]) -> None:
    """Writes an npz, whole or not at all.

    fill: what adds arrays, one after the other; it gets the writer, and the file's name until it is whole, from which
    the arrays of those before it can be read.
    """
    with whole(path) as aside:
        for part in fill:
            with zipfile.ZipFile(aside, "a", zipfile.ZIP_STORED) as archive:
                part(Writer(archive), aside)


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Damage to a file as one line that names it."""
    try:
        yield
    except Exception as error:  # zipfile, its decompressors and numpy raise nearly anything on a damaged file
        if "Object arrays" in str(error):
            raise ValueError(f"{path}: an object array; expected one plain array of numbers") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: cannot be read ({reason[:200]}); write the file again") from error


@contextmanager
def _opened(path: Path, key: str) -> Iterator[tuple[IO[bytes], Header]]:
    with told(path), zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
        read_header = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError("Object arrays cannot be read")
        claimed, held = math.prod(shape) * dtype.itemsize, archive.getinfo(f"{key}.npy").file_size - file.tell()
        if min(shape, default=0) < 0 or claimed != held:
            raise ValueError(f"{key} says that it is {dtype} {list(shape)}, {claimed} bytes; the file holds {held}")
        yield file, (shape, fortran, dtype)


def listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
