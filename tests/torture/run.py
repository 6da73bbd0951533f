"""One training run of the kill tests: started in its own process, watched, hit, examined, compared with another."""

import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import safetensors.torch
import torch

from ddbm.files import checkpoint
from ddbm.training import averages, logger
from ddbm.training.loop import REQUEUE
from scripts.torchrun import children

ROOT = Path(__file__).resolve().parents[2]
SAVE_INTERVAL = 5
PATIENCE = 60  # seconds in which what was hit must have ended
SETTINGS = (
    "--dataset histology --schedule vp --image_size 16 --model_channels 8 --num_head_channels 8 --channel_mult 1,2 "
    "--attention_resolutions 8 --num_res_blocks 1 --batch_size 4 --dropout 0.1 --lr 1e-3 --device cpu --log_interval 1 "
    f"--save_interval {SAVE_INTERVAL} --val_interval 50 --keep_checkpoints 4 --keep_every 50"
).split()
LOGGED = ("loss", "lr", "val_loss")  # what of a record does not depend on the clock
SAVING = {"checkpoints": 0.04, "ema": 0.004}  # seconds that writing takes, about


def expect(promise: bool, otherwise: str) -> None:
    """Raises ValueError, which says what was not as promised."""
    if not promise:
        raise ValueError(otherwise)


class Life:
    """A start of a training run, until it ends or is ended."""

    def __init__(self, run_dir: Path, flags: list[str], total: int, ranks: int = 1) -> None:
        self.run_dir, self.total, self.log, self.begun = run_dir, total, run_dir / "log.jsonl", time.monotonic()
        self._said, self.first, self._old_log, self._old = b"", self.newest(), self._logged_at(), writing(run_dir)
        launcher = f"-m scripts.torchrun --standalone --nproc_per_node {ranks}".split() if ranks > 1 else []
        self.process = subprocess.Popen(
            [sys.executable, *launcher, "-m", "scripts.train", *flags, "--run_dir", str(run_dir)],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL, bufsize=0,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the kill tests alone, which end it
        )  # fmt: skip
        os.set_blocking(self.process.stdout.fileno(), False)

    def __enter__(self) -> "Life":
        return self

    def __exit__(self, *_: object) -> None:
        for pid in [*children(self.process.pid), self.process.pid] if self.process.poll() is None else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

    def said(self) -> str:
        """Its output so far; of all that it ever says the pipe can hold the whole."""
        self._said += self.process.stdout.read() or b""
        return self._said.decode(errors="replace")

    def errors(self) -> int:
        """How many it said; a rank may speak into the progress bar of another."""
        return len(re.findall(r"(?:^|[\r\n\]])error: ", self.said()))

    def _logged_at(self) -> int:
        return self.log.stat().st_mtime_ns if self.log.exists() else 0

    def step(self) -> int:
        """The last step in the log; -1 before this start has touched it."""
        if self._logged_at() == self._old_log:
            return -1
        records = logger.read(self.log)
        return int(records[-1]["step"]) if records else 0

    def newest(self) -> int:
        """The step of the newest checkpoint, 0 before the first."""
        found = checkpoint.steps(self.run_dir)
        return found[-1][0] if found else 0

    def writes(self) -> set[str]:
        """What this start writes aside, or left so."""
        return writing(self.run_dir) - self._old

    def until(self, happened: Callable[[], bool], poll: float = 0.004) -> bool:
        """Waits for something; False if the process ended before. Raises ValueError if neither happens."""
        deadline = time.monotonic() + 300 + self.total
        while not happened():
            if self.process.poll() is not None:
                return False
            expect(time.monotonic() < deadline, f"training stands still ({self.run_dir}): {self.said()[-200:]}")
            time.sleep(poll)
        return True

    def reach(self, aim: str, rng: Random, startup: float) -> bool:
        """Waits for a random moment: at the start, between steps, or while something is saved after them.

        startup: seconds until the first step. False if the run is so near its end that it may come first.
        """
        if aim == "start":
            moment = self.begun + rng.random() * startup
            return self.until(lambda: time.monotonic() > moment)
        steps = rng.randrange(max(2 * SAVE_INTERVAL, self.total // 8))
        target = min(self.first + steps, self.total - 2 * SAVE_INTERVAL)
        folder = rng.choice(("checkpoints", "checkpoints", "checkpoints", "ema"))
        if self.first >= self.total - 3 * SAVE_INTERVAL or not self.until(lambda: self.step() >= target):
            return False
        if aim == "save" and not self.until(lambda: folder in {name.split("/")[0] for name in self.writes()}, 0.0005):
            return False
        time.sleep(rng.uniform(0, SAVING[folder]))
        return self.process.poll() is None

    def ends(self, *codes: int, limit: float = 0) -> int:
        """Its exit code, negative for a signal; raises ValueError for others, or after `limit` seconds (0: long)."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(limit or 300 + self.total)
        code = self.process.returncode
        expect(code in codes, f"exit code {code} (None: it goes on), expected {codes}: {self.said()[-500:]}")
        return code


# ------------------------------------- ways to hit it: each waits for the end, and raises for what was not as promised


def kill(life: Life, rng: Random) -> None:
    life.process.kill()
    life.ends(-signal.SIGKILL, limit=PATIENCE)


def terminate(life: Life, rng: Random) -> None:
    life.process.terminate()
    life.ends(REQUEUE, limit=PATIENCE)
    expect(life.newest() == life.step(), f"step {life.step()} was done, the newest checkpoint is of {life.newest()}")
    expect(not life.writes(), f"left behind in {life.run_dir}: {', '.join(sorted(life.writes()))}")


def kill_one_rank(life: Life, rng: Random) -> None:
    life.until(lambda: len(children(life.process.pid)) == 2)
    ranks = sorted(children(life.process.pid))
    ends = [os.pidfd_open(pid) for pid in ranks]
    os.kill(rng.choice(ranks), signal.SIGKILL)
    life.ends(1, 2, 128 + signal.SIGKILL, limit=PATIENCE)
    expect(all(select.select([end], [], [], PATIENCE)[0] for end in ends), f"one of the ranks {ranks} is still there")
    for end in ends:
        os.close(end)
    launchers = life.said().count("failed (exitcode: ")
    once = life.errors() <= 1 and launchers == 1 and "Traceback" not in life.said()
    expect(once, f"errors: {life.errors()} by the ranks, {launchers} by the launcher: {life.said()[-2000:]}")


def fill_disk(life: Life, rng: Random) -> None:
    """To the process the disk is full from now on: its files may not grow beyond a size, less than a checkpoint's."""
    before = life.newest()
    resource.prlimit(life.process.pid, resource.RLIMIT_FSIZE, (rng.randrange(1 << 18), resource.RLIM_INFINITY))
    life.ends(2, limit=PATIENCE)
    once = life.errors() == 1 and "Traceback" not in life.said()
    expect(once, f"a full disk was not said in one line: {life.said()[-2000:]}")
    expect(life.newest() >= before, f"the newest checkpoint was of step {before}, is of step {life.newest()}")
    expect(not life.writes(), f"left behind in {life.run_dir}: {', '.join(sorted(life.writes()))}")


# ------------------------------------------------------------------------------------------------------- what it leaves


def writing(run_dir: Path) -> set[str]:
    """Checkpoints and snapshots that are being written or deleted, or were when training was killed."""
    return {f"{folder}/{path.name}" for folder in SAVING for path in (run_dir / folder).glob(".step_*")}


def leftovers(run_dir: Path) -> list[str]:
    """Everything hidden in a run but the file of its lock."""
    return sorted({path.name for path in run_dir.glob(".*") if path.name != ".lock"} | writing(run_dir))


def check_whole(run_dir: Path) -> int:
    """The number of checkpoints. Raises ValueError for what has its final name without being whole."""
    for _, path in checkpoint.steps(run_dir):
        checkpoint.verify(path)
    if stored := averages.snapshots(run_dir):
        averages.reconstruct(run_dir, stored[-1][0], 0.1)  # reads all of them
    for path in filter(Path.exists, (run_dir / "config.json", run_dir / "run.json")):
        json.loads(path.read_text())
    return len(checkpoint.steps(run_dir))


def contents(run_dir: Path) -> dict[str, Any]:
    """Every tensor (by its bits, so that NaN equals NaN) and value of a run by name: checkpoints, snapshots, log."""
    found: dict[str, Any] = {}

    def add(value: Any, name: str) -> None:
        if isinstance(value, (dict, list, tuple)):
            for key, part in value.items() if isinstance(value, dict) else enumerate(value):
                add(part, f"{name}/{key}")
        elif isinstance(value, torch.Tensor):
            bits = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            found[name] = value.dtype, value.shape, bits
        else:
            found[name] = type(value), value

    for _, path in checkpoint.steps(run_dir):
        header = checkpoint.read_header(path)
        header["config"]["train"]["run_dir"] = ""
        weights = {file.stem: checkpoint.read_weights(path, file.stem) for file in path.glob("*.safetensors")}
        add({"config": header, "state": checkpoint.read_state(path), **weights}, f"checkpoints/{path.name}")
    for _, path in averages.snapshots(run_dir):
        add(safetensors.torch.load_file(path), f"ema/{path.stem}")
    for record in logger.read(run_dir / "log.jsonl"):
        add({name: record[name] for name in LOGGED if name in record}, f"log/{record['step']}")
    return found


def compare(whole: Path, run_dir: Path, gaps: bool = False) -> tuple[int, list[str]]:
    """A run with one that was left alone, bit for bit: how many tensors and values, and the names of those that differ.

    Both must have the last checkpoint, all snapshots and, unless gaps may be, the losses of every step and of every
    validation; of the other checkpoints those are compared that both have.
    """
    a, b = contents(whole), contents(run_dir)
    last = f"checkpoints/{checkpoint.steps(whole)[-1][1].name}/"
    needed = (n for n in a.keys() ^ b.keys() if n.startswith((last, "ema/")) or (n.endswith("loss") and not gaps))
    shared = a.keys() & b.keys()
    one_sided = [f"{name} ({'missing' if name in a else 'too much'})" for name in needed]
    return len(shared), sorted([*one_sided, *(name for name in shared if a[name] != b[name])])
