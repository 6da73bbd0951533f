"""Where files lie, on this machine or in a blob store (`blobs.py`), and what is done differently in the two.

A path of a store is typed as `Path`, as it offers what this repository uses of one. It is no `os.PathLike`, so that
nothing takes it for a file of this machine.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
STORE = re.compile(r"gs://|az://|https://[^/]*\.blob\.core\.windows\.net(/|$)")


def location(text: str | Path) -> Path:
    """A local path, or one of a store for gs://, az:// and https://ACCOUNT.blob.core.windows.net/.

    Raises ValueError for other schemes, and where blobfile is missing.
    """
    if not isinstance(text, str):
        return text
    if not SCHEME.match(text):
        return Path(text)
    if not STORE.match(text):
        raise ValueError(f"{text} is in no known store: expected gs://BUCKET/PATH or az://ACCOUNT/CONTAINER/PATH")
    try:
        from .blobs import BlobPath
    except ImportError as error:
        raise ValueError(f"{text} needs blobfile, which cannot be imported ({error}): pip install blobfile") from None
    return cast(Path, BlobPath.parse(text))


def is_local(path: Path) -> bool:
    return isinstance(path, Path)


# ------------------------------------------------------------------------------------------------ whole or not there


def write_whole(path: Path, write: bytes | Callable[[BinaryIO], object]) -> None:
    """Writes a file so that it is there whole or not at all, also after a power cut.

    write: the content, or what writes it into the file it is given. An OSError names the file and leaves the old one.
    What a kill leaves aside, the next write replaces.
    """
    if not is_local(path):
        buffer = io.BytesIO()
        _fill(buffer, write)
        path.write_bytes(buffer.getvalue())  # there when it ends
        return
    with whole(path) as aside, aside.open("wb") as file:
        _fill(file, write)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write a file under; it takes `path` when it is whole and on the disk, and is gone after an error.

    An OSError names the file and leaves what was there.
    """
    aside = path.with_name(f".{path.name}.new")
    try:
        aside.unlink(missing_ok=True)
        yield aside
        _flush(aside)
        aside.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def _fill(file: BinaryIO, write: bytes | Callable[[BinaryIO], object]) -> None:
    if callable(write):
        write(file)
    else:
        file.write(write)


def begin(final: Path, last: str) -> Path:
    """An empty directory to write what `publish` makes `final`.

    A store cannot rename. There it is `final` itself, which counts from the moment that its file `last` is written, so
    it must be written last.
    """
    if not is_local(final):
        remove_tree(final, last)
        return final
    aside = final.with_name(f".{final.name}.{os.getpid()}")
    aside.mkdir()
    return aside


def publish(aside: Path, final: Path) -> None:
    """Gives what `begin` returned its final name, flushed to the disk; one that has it already is replaced."""
    if not is_local(final):
        return
    for path in [*aside.iterdir(), aside]:
        _flush(path)
    old = final.with_name(f".{final.name}.old")
    if final.exists():
        final.rename(old)
    aside.rename(final)
    shutil.rmtree(old, ignore_errors=True)
    _flush(final.parent)


def remove_tree(path: Path, last: str) -> None:
    """Deletes a directory that `publish` made, so that it stops counting at once: hidden, or without `last`, first."""
    if not is_local(path):
        (path / last).unlink(missing_ok=True)
        path.remove_tree()  # type: ignore[attr-defined]  # of BlobPath
        return
    if not path.name.startswith("."):
        path = path.rename(path.with_name(f".{path.name}.old"))
    shutil.rmtree(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ------------------------------------------------------------------------------------------- what needs a file of here


@contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """The file itself, or for the time of the context a copy on this machine, for what reads only those."""
    if is_local(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        _copy(path, copy)
        yield copy


class Stage:
    """Where the growing files of a run lie, such as its log: in the run, or in a copy that `send` writes to the store.

    Nothing can grow in a store, where every change writes a file anew.
    """

    def __init__(self, run_dir: Path, names: Sequence[str]) -> None:
        """names: the files to begin with, where they are there."""
        self.run_dir, self.path = run_dir, run_dir
        self._sent: dict[Path, tuple[int, int]] = {}
        if is_local(run_dir):
            return
        folder = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.path = Path(folder) / (run_dir.name or "run")
        self.path.mkdir()
        for name in names:
            with suppress(FileNotFoundError):
                _copy(run_dir / name, self.path / name)

    def send(self, *patterns: str) -> None:
        """Writes the files that match and have changed to the store; each is there whole, old or new."""
        if is_local(self.run_dir):
            return
        for path in (p for pattern in patterns for p in sorted(self.path.glob(pattern)) if p.is_file()):
            state = path.stat()
            if self._sent.get(path) != (state.st_size, state.st_mtime_ns):
                _copy(path, self.run_dir / path.relative_to(self.path))
                self._sent[path] = (state.st_size, state.st_mtime_ns)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reading, target.open("wb") as writing:
        shutil.copyfileobj(reading, writing, 1 << 23)
