"""A directory that one process at a time writes to."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .common import make_directory


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
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            if run_dir.is_dir() and [p.name for p in run_dir.iterdir()] == [".lock"]:  # nothing came of it
                path.unlink()
                run_dir.rmdir()
