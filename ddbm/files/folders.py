"""Folders that a command writes to: made, tried, and held against a second process."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from .storage import named


def make_directory(path: Path) -> Path:
    """The directory, made if need be and tried for writing."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=path).close()
    except OSError as error:
        raise ValueError(f"cannot write to {path} ({error.strerror}): choose another directory") from None
    return path


@contextmanager
def locked(run_dir: Path, flag: str = "run_dir") -> Iterator[None]:
    """Holds a directory against a second process; a crash leaves no lock behind, as the system gives it back."""
    if run_dir.is_file():
        raise ValueError(f"{run_dir} is a file: choose another --{flag}")
    path = make_directory(run_dir) / ".lock"
    with path.open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone: flock's would pass to workers
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise ValueError(
                f"{run_dir} is in use by another run ({file.read().strip() or 'just starting'}): wait for it, or "
                f"choose another --{flag}"
            ) from None
        with named(path):
            os.ftruncate(file.fileno(), 0)  # past the buffer, which closing would try again to write
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        try:
            yield
        finally:
            if run_dir.is_dir() and [p.name for p in run_dir.iterdir()] == [".lock"]:  # nothing came of it
                path.unlink()
                run_dir.rmdir()
