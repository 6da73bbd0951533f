"""What the entry points share: tables of names, data sets, checkpoints, directories and their locks."""

import fcntl
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile

from datasets import PairedData, open_data
from ddbm.bridges.grids import GRIDS
from ddbm.bridges.paths import SCHEDULES
from ddbm.bridges.samplers import SAMPLERS
from ddbm.config import DataConfig
from ddbm.files import checkpoint
from ddbm.model import SYMMETRIZE, BridgeModel, ImageShape
from ddbm.networks.layers import LAYERS
from ddbm.ranks import distributed
from ddbm.ranks.entry import run as run
from ddbm.symmetry.groups import GROUPS
from evaluations.images import to_bytes as to_bytes

TABLES: Mapping[str, Sequence[str]] = {
    "schedule": list(SCHEDULES),
    "layers": list(LAYERS),
    "group": list(GROUPS),
    "augment": list(GROUPS),
    "sampler": list(SAMPLERS),
    "grid": list(GRIDS),
    "symmetrize": list(SYMMETRIZE),
}


def say(text: str) -> None:
    """Prints on rank 0."""
    if distributed.is_main():
        print(text)


def find_checkpoint(text: str | Path) -> Path:
    """The checkpoint that a path or an address of a store names, or of a run the newest whole one."""
    return checkpoint.find(text, say)


def open_split(config: DataConfig, split: str, data_dir: str = "") -> PairedData:
    """A part of the data, which may lie in another place now; says what it fell back on."""
    data = open_data(split=split, **asdict(config) | {"data_dir": data_dir or config.data_dir})
    if data.notice:
        say(f"note: {data.notice}")
    return data


def shape_of(data: PairedData) -> ImageShape:
    """What a model must be made for to be used with this data."""
    return ImageShape(data.target_channels, data.source_channels, *data.size, data.num_classes)


def refuse_conflict(model: BridgeModel, group: str) -> None:
    """Raises ValueError for a group other than that of symmetric layers; plain layers may be sampled under any."""
    own = model.group.name
    if group and model.config.model.layers != "plain" and group != own:
        raise ValueError(
            f"--group {group} was asked for, but the checkpoint's {model.config.model.layers} layers have {own}: "
            "leave --group out"
        )


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)


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
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            if run_dir.is_dir() and [p.name for p in run_dir.iterdir()] == [".lock"]:  # nothing came of it
                path.unlink()
                run_dir.rmdir()
