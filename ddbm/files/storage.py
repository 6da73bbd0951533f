"""Files and directories that are there whole or not at all, also after a power cut."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def write_whole(path: Path, write: bytes | Callable[[BinaryIO], object]) -> None:
    """Writes a file so that it is there whole or not at all.

    write: the content, or what writes it into the file it is given. An OSError names the file and leaves the old one.
    """
    with whole(path) as aside, aside.open("wb") as file:
        if callable(write):
            write(file)
        else:
            file.write(write)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write a file under; it takes `path` when it is whole and on the disk, and is gone after an error.

    An OSError names the file and leaves what was there.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with named(path):
            aside.unlink(missing_ok=True)
            yield aside
            _flush(aside)
            aside.replace(path)
            _flush(path.parent)
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """An OSError of the block names the file that is written there."""
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """The same of a directory of files; one that has the name already is replaced."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.mkdir()
        yield aside
        for inner in [*aside.iterdir(), aside]:
            _flush(inner)
        old = path.with_name(f".{path.name}.old")
        if path.exists():
            path.rename(old)
        aside.rename(path)
        shutil.rmtree(old, ignore_errors=True)
        _flush(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
