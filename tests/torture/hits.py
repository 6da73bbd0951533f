"""Ways to hit a training run; each waits for its end, and raises ValueError for what was not as promised."""

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
from tests.torture.run import Life, expect

PATIENCE = 60  # seconds in which what was hit must have ended

Strike = Callable[[Life, Random], None]


def kill(life: Life, rng: Random) -> None:
    life.process.kill()
    code = life.wait(PATIENCE)
    expect(code == -signal.SIGKILL, f"exit code {code}: {life.last_words()}")


def terminate(life: Life, rng: Random) -> None:
    life.process.terminate()
    code, done, newest = life.wait(PATIENCE), life.step(), life.newest()
    expect(code == REQUEUE, f"exit code {code} after SIGTERM, expected {REQUEUE}: {life.last_words()}")
    expect(newest == done, f"step {done} was done, the newest checkpoint is of step {newest}")
    nothing_left(life)


def kill_one_rank(life: Life, rng: Random) -> None:
    launcher = life.process.pid
    life.until(lambda: len(children(launcher)) == 2)
    ranks = sorted(children(launcher))
    os.kill(rng.choice(ranks), signal.SIGKILL)
    code, deadline = life.wait(PATIENCE), time.monotonic() + PATIENCE
    while any(map(is_alive, ranks)) and time.monotonic() < deadline:
        time.sleep(0.05)
    expect(not any(map(is_alive, ranks)), f"one of the ranks {ranks} is still there")
    expect(code not in (0, REQUEUE), f"exit code {code} although a rank was killed")
    launchers = life.said.count("failed (exitcode: ")
    count = f"{life.errors()} times by the ranks, {launchers} times by the launcher"
    once = life.errors() <= 1 and launchers == 1 and "Traceback" not in life.said
    expect(once, f"the error was said {count}, expected at most once and once: {life.last_words(8)}")


class Disk:
    """A disk that can be filled around a run, and emptied."""

    def __init__(self, folder: Path, mounted: bool) -> None:
        self.folder, self.mounted = folder, mounted
        self.name = "full tmpfs" if mounted else "limit of file size"
        # not at the start: a new process would find the limit while Python itself is starting
        self.aims = ("start", "steps", "steps", "steps") if mounted else ("steps",)

    def fill(self, life: Life, rng: Random) -> None:
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
        once = code == 2 and life.errors() == 1 and "Traceback" not in life.said
        expect(once, f"exit code {code} on a full disk, expected one error and code 2: {life.last_words(8)}")
        expect(newest >= before, f"the newest checkpoint was of step {before}, is of step {newest}")
        nothing_left(life)

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


def nothing_left(life: Life) -> None:
    """Of an end that was not a kill nothing may be left."""
    expect(not life.writes(), f"left behind in {life.run_dir}: {', '.join(sorted(life.writes()))}")
