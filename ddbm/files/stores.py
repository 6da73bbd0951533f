"""Blob stores, gs://BUCKET/PATH and az://ACCOUNT/CONTAINER/PATH: whole files are copied, by blobfile.

    $DDBM_STORES/fetched/gs/BUCKET/PATH    what is read: brought here as far as it is missing or has changed
    $DDBM_STORES/sent/gs/BUCKET/PATH       what is written: a folder here, whose mirror lies in the store

DDBM_STORES is ~/.cache/ddbm/stores unless set. All else knows local paths alone.
"""

import fcntl
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm.contrib.concurrent import thread_map

from .storage import named

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
ADDRESS = re.compile(r"(gs://[^/]+|az://[^/]+/[^/]+)(/.*)?", re.DOTALL)
AZURE = re.compile(r"https://([^/.]+)\.blob\.core\.windows\.net/")
MINE = re.compile(r"(^|/)\.|^wandb/")  # files of a folder that are not sent: hidden ones, and what wandb sends itself
TRIES = 10  # with waits of 0, 0.1, 0.2, ... 25.6 s, at random up to that; blobfile alone would ask for ever


def full(place: str) -> str:
    """The one spelling of an address, or a local path from the root. Raises ValueError for an unknown kind of store."""
    if not SCHEME.match(place):
        return str(Path(place).expanduser().resolve())
    match = ADDRESS.fullmatch(AZURE.sub(r"az://\1/", place))
    names = PurePosixPath(match[2] or "").parts if match else ()
    if match is None or ".." in names:
        raise ValueError(f"{place} is in no known store: expected gs://BUCKET/PATH or az://ACCOUNT/CONTAINER/PATH")
    return "/".join([match[1], *(name for name in names if name.strip("/"))])


def is_store(place: str | Path) -> bool:
    return isinstance(place, str) and bool(SCHEME.match(place)) and bool(full(place))


def local(place: str, kind: str = "fetched") -> Path:
    """A local path as it is; of an address where its copy lies here, or will lie."""
    root = Path(os.environ.get("DDBM_STORES") or Path.home() / ".cache" / "ddbm" / "stores").expanduser().resolve()
    return root / kind / full(place).replace("://", "/", 1) if is_store(place) else Path(place)


def address(path: Path) -> str:
    """The address that a path here is the copy of, or the path itself."""
    for root in (local("gs://x", kind).parents[1] for kind in ("fetched", "sent")):
        if path.is_relative_to(root):
            return path.relative_to(root).as_posix().replace("/", "://", 1)
    return str(path)


def fetched(place: str | Path, *patterns: str) -> Path:
    """A local path as it is; of an address its copy here, made as far as it is missing or differs in size or time.

    patterns: of the names below it that are wanted, all without. What is here and not in the store is deleted. The
    processes of a machine take turns, and those that waited need not look again.
    """
    if not is_store(place):
        return Path(place)
    path, asked = local(str(place)), time.time()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        if file.read() != repr(patterns) or os.fstat(file.fileno()).st_mtime < asked:
            file.truncate(0)
            if not _bring(full(str(place)), path, patterns):
                raise FileNotFoundError(f"{place}: there is nothing of that name in the store")
            with named(path):
                file.write(repr(patterns))
                file.flush()
    return path


class Mirror:
    """A folder to write to, `path`, and its mirror in a store; a local folder has none, and nothing is to be done."""

    def __init__(self, place: str) -> None:
        self.address = full(place) if is_store(place) else ""
        self.path = local(place, "sent")
        self.place = self.address or str(self.path)
        self._there: dict[str, Any] = {}  # every name in the store; size and time of the file here, None without one

    def fetch(self, *patterns: str) -> None:
        """Brings the files that match a pattern, and deletes here what is not in the store."""
        if self.address:
            found = _bring(self.address, self.path, patterns)
            self._there = {name: _state(self.path / name) for name in found}

    def names(self) -> list[str]:
        """Of all files, whether they are here or in the store."""
        return sorted({*_files(self.path), *self._there})

    def send(self, *patterns: str) -> None:
        """Copies new and changed files to the store, and deletes there what was here and is gone.

        A checkpoint counts from the moment that its manifest is there: it goes last, and first of what is deleted.
        """
        if not self.address:
            return
        here = {name: _state(self.path / name) for name in _files(self.path) if not MINE.search(name)}
        changed = [n for n, state in here.items() if _matches(n, patterns) and state != self._there.get(n)]

        def put(name: str) -> None:
            with _told(f"{self.address}/{name}") as target:
                _client().copy(str(self.path / name), target, overwrite=True)
            self._there[name] = here[name]

        for manifests in (False, True):
            _each(put, [name for name in changed if name.endswith("manifest.json") == manifests])
        gone = {name for name, state in self._there.items() if state and not (self.path / name).exists()}
        folders = {name.rpartition("/")[0] for name in gone if not (self.path / name).parent.exists()}
        self.remove(name for name in self._there if name in gone or name.rpartition("/")[0] in folders)

    def remove(self, names: Iterable[str]) -> None:
        """Deletes files, here and in the store."""
        for name in sorted(names, key=lambda name: not name.endswith("manifest.json")):
            if name in self._there:
                with _told(f"{self.address}/{name}") as target, suppress(FileNotFoundError):
                    _client().remove(target)
                del self._there[name]
            _delete(self.path, name)


def _state(path: Path) -> tuple[int, int] | None:
    with suppress(FileNotFoundError, NotADirectoryError):
        found = path.stat()
        return found.st_size, found.st_mtime_ns
    return None


def _files(folder: Path) -> list[str]:
    """Names of the files below a folder."""
    found = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return sorted(path.relative_to(folder).as_posix() for path in found if not path.is_symlink())


def _delete(folder: Path, name: str) -> None:
    """Deletes a file and the folders that it leaves empty, which a store does not know."""
    (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # not empty
        for parent in PurePosixPath(name).parents[:-1]:
            (folder / parent).rmdir()


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def _bring(place: str, folder: Path, patterns: tuple[str, ...]) -> dict[str, Any]:
    """Copies what matches and is not the same here, deletes what else differs; returns what is there."""
    found = _listing(place)

    def differs(name: str) -> bool:
        state, there = _state(folder / name), found.get(name)
        return not (state and there) or state[0] != there.size or abs(state[1] / 1e9 - there.mtime) > 1e-3

    def get(name: str) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.new")
        with _told(f"{place}/{name}".rstrip("/")) as source:
            _client().copy(source, str(aside), overwrite=True)
        os.utime(aside, (found[name].mtime,) * 2)
        aside.replace(path)

    for name in _files(folder):
        if differs(name) and not MINE.search(name):
            _delete(folder, name)
    wanted = [name for name in found if _matches(name, patterns) and differs(name)]
    _each(get, wanted, f"fetching {place}" if len(wanted) > 50 else "")
    return found


def _each(do: Callable[[str], object], names: list[str], text: str = "") -> None:
    """Several at once; text: of a bar that shows how many are done."""
    thread_map(do, names, max_workers=16, desc=text, unit="file", disable=not text)


# ------------------------------------------------------------------------------------------------------------- blobfile


@cache
def _client() -> Any:
    """blobfile with limits, and without writing access tokens to the disk."""
    try:
        import blobfile
    except ImportError as error:
        raise ValueError(f"stores need blobfile, which cannot be imported ({error}): pip install blobfile") from None
    warning = "warning: the store does not answer: asking again for a minute"
    told = {"log_callback": lambda _: print(warning, file=sys.stderr)}
    return blobfile.create_context(retry_limit=TRIES, save_access_token_to_disk=False, **told)


def _listing(place: str) -> dict[str, Any]:
    """Size and time of every file below an address by its name there, or of the file itself as ""."""
    with _told(place):
        found = {e.path[len(place) + 1 :]: e.stat for e in _client().scanglob(f"{place}/**") if e.is_file}
        with suppress(FileNotFoundError):
            return found or {"": _client().stat(place)}
    return {}


@contextmanager
def _told(place: str) -> Iterator[str]:
    """What goes wrong on the way to a store is an OSError of one line that names the address."""
    try:
        yield place
    except OSError as error:
        if error.errno and not error.filename:  # a full disk
            raise OSError(f"{place}: {error.strerror}") from error
        raise
    except ValueError:
        raise
    except Exception as error:  # blobfile's, urllib3's and those of what finds credentials
        reason = (getattr(error, "message", "") or str(error) or type(error).__name__).splitlines()[0]
        if place.startswith("az:") and "credentials" in reason:
            reason += "; log in with 'az login', or set AZURE_STORAGE_KEY"
        raise OSError(f"{place}: {reason}") from error
