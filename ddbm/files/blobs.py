"""Paths of blob stores with as much of pathlib's interface as this repository uses; every operation is blobfile's.

    gs://BUCKET/PATH    az://ACCOUNT/CONTAINER/PATH, also written https://ACCOUNT.blob.core.windows.net/CONTAINER/PATH

A store has no directories, only names: a directory is there while a name begins with it, a file appears whole when its
writing ends, and nothing can be renamed or grow. Only `storage.location` imports this file, for such a path.
"""

from __future__ import annotations

import io
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import PurePosixPath
from typing import IO, Any, NamedTuple, cast
from urllib.parse import urlsplit

import blobfile
import urllib3

ROOT = re.compile(r"(gs://[^/]+|az://[^/]+/[^/]+)(/.*)?", re.DOTALL)
AZURE = re.compile(r"https://([^/.]+)\.blob\.core\.windows\.net/")
PATIENCE = 45  # seconds in which a store that does not answer is asked again; blobfile alone would ask for ever
TRIES = 10  # blobfile waits 0, 0.1, 0.2, 0.4, ... s between them, at random up to that
BUSY = (408, 429, 500, 502, 503, 504)  # what blobfile asks again after
BUFFER = 1 << 23  # bytes of a file that are fetched at once


class Stat(NamedTuple):
    st_size: int
    st_mtime: float


@dataclass(frozen=True, order=True)
class BlobPath:
    """A file or directory of a store; ordered and compared as pathlib does, name by name."""

    root: str  # gs://BUCKET or az://ACCOUNT/CONTAINER
    names: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> BlobPath:
        """The path that a text names. Raises ValueError."""
        match = ROOT.fullmatch(AZURE.sub(r"az://\1/", text))
        names = PurePosixPath(match[2] or "").parts if match else ()
        if match is None or ".." in names:
            raise ValueError(f"{text} is no path of a store: expected gs://BUCKET/PATH or az://ACCOUNT/CONTAINER/PATH")
        return cls(match[1], tuple(name for name in names if name.strip("/")))

    def __str__(self) -> str:
        return "/".join((self.root, *self.names))

    def __truediv__(self, other: str | PurePosixPath) -> BlobPath:
        return replace(self, names=self.names + PurePosixPath(other).parts)

    @property
    def name(self) -> str:
        return self.names[-1] if self.names else ""

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> BlobPath:
        return replace(self, names=self.names[:-1])

    def with_name(self, name: str) -> BlobPath:
        return self.parent / name

    def relative_to(self, other: BlobPath) -> PurePosixPath:
        depth = len(other.names)
        if (other.root, other.names) != (self.root, self.names[:depth]):
            raise ValueError(f"{self} does not lie below {other}")
        return PurePosixPath(*self.names[depth:])

    def expanduser(self) -> BlobPath:
        return self

    resolve = expanduser

    def stat(self) -> Stat:
        with _errors(self):
            found = store().stat(str(self))
        return Stat(found.size, found.mtime)

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        with suppress(FileNotFoundError):
            return bool(self.stat())
        return False

    def is_dir(self) -> bool:
        with _errors(self):
            return bool(store().isdir(str(self)))

    def walk(self) -> Iterator[tuple[BlobPath, list[str], list[str]]]:
        """As `Path.walk` of Python 3.12: directories from the top down, none where nothing is there."""
        with _errors(self):
            for place, folders, files in store().walk(str(self)):
                yield self / place[len(str(self)) :].strip("/"), folders, files

    def iterdir(self) -> Iterator[BlobPath]:
        for place, folders, files in self.walk():
            yield from (place / name for name in (*folders, *files))
            return
        raise FileNotFoundError(f"no such directory: {self}")

    def glob(self, pattern: str) -> Iterator[BlobPath]:
        """The paths that match a pattern of names with *, without **."""
        first, _, rest = pattern.partition("/")
        for path in self.iterdir() if self.is_dir() else ():
            if fnmatchcase(path.name, first):
                yield from path.glob(rest) if rest else (path,)

    def open(self, mode: str) -> IO[bytes]:
        """For reading ("rb"), or for writing ("wb") a file that is there when it is closed, and not after an error."""
        assert mode in ("rb", "wb"), mode
        with _errors(self):
            file = store().BlobFile(str(self), mode, streaming=True, partial_writes_on_exc=False)
        if mode == "rb":
            return io.BufferedReader(_Reading(self, file.detach()), BUFFER)
        return cast(IO[bytes], _Writing(self, file))

    def read_bytes(self) -> bytes:
        with self.open("rb") as file:
            return file.read()

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return self.read_bytes().decode(encoding, errors)

    def write_bytes(self, data: bytes) -> int:
        with self.open("wb") as file:
            return file.write(data)

    def write_text(self, text: str, encoding: str = "utf-8") -> int:
        self.write_bytes(text.encode(encoding))
        return len(text)

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Makes nothing, as a directory comes with its first file; refuses what is there."""
        if not exist_ok and self.exists():
            raise FileExistsError(f"there already: {self}")

    def unlink(self, missing_ok: bool = False) -> None:
        with suppress(FileNotFoundError) if missing_ok else nullcontext(), _errors(self):
            store().remove(str(self))

    def replace(self, target: BlobPath) -> BlobPath:
        """Moves a file, or a directory file by file: copied within the store, then deleted."""
        files = [place / name for place, _, files in self.walk() for name in files] or [self]
        for path in files:
            with _errors(path):
                store().copy(str(path), str(target / path.relative_to(self)), overwrite=True)
        for path in files:
            path.unlink(missing_ok=True)
        return target

    rename = replace

    def remove_tree(self) -> None:
        """Deletes a directory and everything in it, if it is there."""
        with suppress(NotADirectoryError), _errors(self):
            store().rmtree(str(self))


class _Reading(io.RawIOBase):
    """blobfile's file, with this repository's errors."""

    def __init__(self, path: BlobPath, raw: io.RawIOBase) -> None:
        self._path, self._raw = path, raw

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _errors(self._path):
            return self._raw.readinto(buffer) or 0

    def readall(self) -> bytes:
        with _errors(self._path):
            return self._raw.readall() or b""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._raw.seek(offset, whence)

    def close(self) -> None:
        super().close()
        self._raw.close()


class _Writing(io.BufferedIOBase):
    """blobfile's file, with this repository's errors."""

    def __init__(self, path: BlobPath, file: IO[bytes]) -> None:
        self._path, self._file = path, file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        with _errors(self._path):
            return self._file.write(memoryview(data).cast("B"))

    def __exit__(self, *error: Any) -> None:
        try:
            with _errors(self._path):
                self._file.__exit__(*error)  # knows that after an error nothing is to be left
        except BaseException:
            self._file.had_exception = True  # type: ignore[attr-defined]  # else it writes when it is collected
            raise
        finally:
            super().close()

    def close(self) -> None:
        if not self.closed:
            self.__exit__(None, None, None)


# ----------------------------------------------------------------------------------------------------------- the stores


@cache
def store() -> blobfile.Context:
    """blobfile with limits, and without writing access tokens to the disk."""
    return blobfile.create_context(
        get_http_pool=lambda: _pool_of(os.getpid()),
        retry_limit=TRIES,
        log_callback=lambda message: None,  # `Pool` says it
        save_access_token_to_disk=False,
        default_buffer_size=BUFFER,
    )


@cache
def _pool_of(process: int) -> Pool:
    """Connections cannot be shared with a forked process."""
    return Pool(maxsize=32)


class Pool(urllib3.PoolManager):
    """Connections; gives up a store from which nothing but failures came to a thread for `PATIENCE` seconds."""

    _failing = threading.local()

    def request(self, *args: Any, **kwargs: Any) -> urllib3.BaseHTTPResponse:
        host, asked = urlsplit(kwargs["url"]).hostname, time.monotonic()
        try:
            response = super().request(*args, **kwargs)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            self._failed(host, asked, str(error.args[-1] if error.args else error))
            raise
        if response.status in BUSY:
            self._failed(host, asked, f"it answers with status {response.status}")
        else:
            self._failing.times = None
        return response

    def _failed(self, host: str | None, asked: float, reason: str) -> None:
        now = time.monotonic()
        begun, last = getattr(self._failing, "times", None) or (asked, asked)
        if asked - last > 60:  # longer than blobfile waits: that was another time
            begun = asked
        self._failing.times = begun, now
        if begun == asked:
            print(f"warning: {host} does not answer ({reason}): asking again for a minute", file=sys.stderr)
        if now - begun > PATIENCE:
            raise blobfile.Error(f"no answer from {host} in {now - begun:.0f} s ({reason})")


@contextmanager
def _errors(path: BlobPath) -> Iterator[None]:
    """What goes wrong on the way to a store is an OSError of one line, and not there is FileNotFoundError."""
    try:
        yield
    except (blobfile.Error, urllib3.exceptions.HTTPError, RuntimeError) as error:
        reason = (getattr(error, "message", "") or str(error)).splitlines()[0]
        if path.root.startswith("az:") and "credentials" in reason:
            reason += "; log in with 'az login', or set AZURE_STORAGE_KEY"
        failure = OSError(f"{path}: {reason}")
        failure.strerror = reason
        raise failure from error
