"""Files and directories that are there whole or not at all, also after a power cut."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

LARGEST_JSON = 2**26  # bytes


def write_whole(path: Path, write: bytes | Callable[[BinaryIO], object], flush: bool = True) -> None:
    """Writes a file so that it is there whole or not at all.

    write: the content, or what writes it into the file it is given; flush: as of `whole`. An OSError names the file and
    leaves the old one.
    """
    with whole(path, flush) as aside, aside.open("wb") as file:
        if callable(write):
            write(file)
        else:
            file.write(write)


@contextmanager
def whole(path: Path, flush: bool = True) -> Iterator[Path]:
    """A name to write a file under; it takes `path` when it is whole and on the disk, and is gone after an error.

    flush: wait for the disk; else a power cut may leave an empty file, until somebody calls os.sync. An OSError names
    the file and leaves what was there.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with named(path):
            aside.unlink(missing_ok=True)
            yield aside
            if flush:
                _flush(aside)
            aside.replace(path)
            if flush:
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
    """The same of a directory of files; one that has the name already is replaced, and of a link the link alone.

    A kill between the two renames leaves the old one as `.NAME.old` and the new one as `.NAME.PID`.
    """
    aside, old = path.with_name(f".{path.name}.{os.getpid()}"), path.with_name(f".{path.name}.old")
    try:
        with named(path):
            remove(aside)
            aside.mkdir()
            yield aside
            for inner in [*aside.iterdir(), aside]:
                _flush(inner)
            if os.path.lexists(path):
                remove(old)
                path.rename(old)
            aside.rename(path)
            remove(old)
            _flush(path.parent)
    finally:
        remove(aside)


def remove(path: Path) -> None:
    """Deletes a directory and all that is in it, a file, or of a link the link alone; what cannot be deleted stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def read_json(path: Path) -> Any:
    """What a JSON file of ours says. Raises ValueError, naming it, for what is none."""
    try:
        if (size := path.stat().st_size) > LARGEST_JSON:
            raise ValueError(f"{size} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # the latter from brackets in brackets
        raise ValueError(f"{path} is damaged, not JSON as it was written ({error})") from None


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
