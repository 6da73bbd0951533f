"""Ways to hit a training run; each waits for its end and says what was not as promised."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from ddbm.training.loop import REQUEUE
from scripts.torchrun import children
from tests.torture.run import Life

PATIENCE = 60  # seconds in which what was hit must have ended

Strike = Callable[[Life, Random], list[str]]


def kill(life: Life, rng: Random) -> list[str]:
    life.process.kill()
    code = life.wait(PATIENCE)
    return [] if code == -signal.SIGKILL else [f"exit code {code}: {life.last_words()}"]


def terminate(life: Life, rng: Random) -> list[str]:
    life.process.terminate()
    code, done, newest = life.wait(PATIENCE), life.step(), life.newest()
    problems = [] if code == REQUEUE else [f"exit code {code} after SIGTERM, expected {REQUEUE}: {life.last_words()}"]
    if newest != done:
        problems.append(f"step {done} was done, the newest checkpoint is of step {newest}")
    return problems + left_behind(life)


def kill_one_rank(life: Life, rng: Random) -> list[str]:
    launcher = life.process.pid
    life.until(lambda: len(children(launcher)) == 2)
    ranks = sorted(children(launcher))
    os.kill(rng.choice(ranks), signal.SIGKILL)
    code, deadline = life.wait(PATIENCE), time.monotonic() + PATIENCE
    while any(map(is_alive, ranks)) and time.monotonic() < deadline:
        time.sleep(0.05)
    problems = [f"rank {pid} is still there" for pid in ranks if is_alive(pid)]
    if code in (0, REQUEUE):
        problems.append(f"exit code {code} although a rank was killed")
    launchers = life.said.count("failed (exitcode: ")
    if life.errors() > 1 or launchers != 1 or "Traceback" in life.said:
        count = f"{life.errors()} times by the ranks, {launchers} times by the launcher"
        problems.append(f"the error was said {count}, expected at most once and once: {life.last_words(8)}")
    return problems


class Disk:
    """A disk that can be filled around a run, and emptied."""

    def __init__(self, folder: Path, mounted: bool) -> None:
        self.folder, self.mounted = folder, mounted
        self.name = "full tmpfs" if mounted else "limit of file size"
        # not at the start: a new process would find the limit while Python itself is starting
        self.aims = ("start", "steps", "steps", "steps") if mounted else ("steps",)

    def fill(self, life: Life, rng: Random) -> list[str]:
        before = life.newest()
        if self.mounted:
            room = rng.choice((0, rng.randrange(1 << 20)))  # less than a checkpoint needs
            for _ in range(100):  # it fails if something was written meanwhile
                if self._resize(max(4096, self._used()) + room):
                    break
        else:
            largest = rng.randrange(1 << 18)
            resource.prlimit(life.process.pid, resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
        code, newest = life.wait(PATIENCE), life.newest()
        if self.mounted:
            self._resize(1 << 30)
        problems = []
        if code != 2 or life.errors() != 1 or "Traceback" in life.said:
            problems.append(f"exit code {code} on a full disk, expected one error and code 2: {life.last_words(8)}")
        if newest < before:
            problems.append(f"the newest checkpoint was of step {before}, is of step {newest}")
        return problems + left_behind(life)

    def _used(self) -> int:
        state = os.statvfs(self.folder)
        return (state.f_blocks - state.f_bfree) * state.f_frsize

    def _resize(self, size: int) -> bool:
        return system("mount", "-o", f"remount,size={size}", str(self.folder))


@contextmanager
def disk(folder: Path, how: str) -> Iterator[Disk]:
    """A folder for runs, on a tmpfs of its own if that may be mounted."""
    folder.mkdir()
    mounted = how != "limit" and system("mount", "-t", "tmpfs", "-o", f"size={1 << 30}", "ddbm-torture", str(folder))
    if how == "tmpfs" and not mounted:
        raise ValueError("a tmpfs could not be mounted, which takes root: use --disk limit")
    try:
        yield Disk(folder, mounted)
    finally:
        if mounted and not system("umount", str(folder)):
            system("umount", "--lazy", str(folder))


def system(*command: str) -> bool:
    return bool(shutil.which(command[0])) and subprocess.run(command, capture_output=True).returncode == 0


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def left_behind(life: Life) -> list[str]:
    """Of an end that was not a kill nothing may be left."""
    return [f"{life.run_dir / name} was left behind" for name in sorted(life.writes())]
