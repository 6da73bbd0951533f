"""The journal of a prepared folder: a line of all, with settings and shared files, and one a job that is done."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from ddbm.files.storage import write_whole
from ddbm.settings import differences

from .raw import sha256
from .recipe import Common, Job

JOURNAL = ".prepared.jsonl"
Record = dict[str, Any]


def keep(journal: IO[str], fresh: list[Record]) -> None:
    """Notes what is done, once it is on the disk; a wait for the disk after every file would take most of the time."""
    os.sync()
    journal.writelines(json.dumps(record) + "\n" for record in fresh)
    journal.flush()
    fresh.clear()


def noted(files: Mapping[str, Path]) -> Record:
    """What the journal says of raw files: their digests, and by what a change is noticed without reading them."""
    return {
        "sources": {name: sha256(path) for name, path in files.items()},
        "stamps": {name: stamp(path) for name, path in files.items()},
    }


def stamp(path: Path) -> list[int]:
    info = path.stat()
    return [info.st_size, info.st_mtime_ns]


def changed(files: Mapping[str, Path], note: Record) -> list[str]:
    """The names of files that are not as they were noted."""
    stamps, digests = note.get("stamps", {}), note["sources"]
    moved = [name for name, path in files.items() if stamps.get(name) != stamp(path)]
    return [name for name in moved if digests.get(name) != sha256(files[name])]


def changed_files(jobs: Iterable[Job], records: Iterable[Record], settings: Common, finished: bool) -> list[str]:
    """The files of jobs that are not as when these were done, and of a finished folder what came or went."""
    known: Record = {"sources": {}, "stamps": {}}
    for record in records:
        for key, merged in known.items():
            merged.update(record.get(key, {}))
    now = {name: path for job in jobs for name, path in files_of(job, settings).items()}
    others = changed({name: path for name, path in now.items() if name in known["sources"]}, known)
    return sorted(others + [*(now.keys() ^ known["sources"].keys())] * finished)


def files_of(job: Job, settings: Common) -> dict[str, Path]:
    """Those that are read for a job alone, by their places below --source."""
    root = Path(settings.source).expanduser()
    return {path.relative_to(root).as_posix(): path for path in job.files}


def done_in(out: Path, asked: Record) -> tuple[Record, dict[str, Record]]:
    """What the journal of a folder says of all, and of what is done, by job.

    Raises ValueError where the folder holds something else, or what was made with other settings.
    """
    path = out / JOURNAL
    if not path.exists():
        if others := [other.name for other in sorted(out.iterdir()) if other.name != ".lock"]:
            raise ValueError(f"{out} holds something else already, such as {others[0]}: choose another --out")
        return {}, {}
    lines = path.read_text().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]  # the last may be torn by a kill
    try:
        first, *records = map(json.loads, whole)
        known = {record["job"]: record for record in records}
        others = differences(*({"name": which["name"], **which["settings"]} for which in (first, asked)))
        if known and others:
            raise ValueError(
                f"{out} was prepared with other settings ({'; '.join(others)}): use those to go on, or another --out"
            )
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove {out} and begin anew") from None
    if len(whole) < len(lines):
        write_whole(path, "".join(whole).encode())
    return first, known
