"""One training run of the kill tests: started in a process of its own, watched, examined, compared with another."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any

import safetensors.torch
import torch

from ddbm.files import checkpoint
from ddbm.training import averages, logger
from scripts.torchrun import children

ROOT = Path(__file__).resolve().parents[2]
SAVE_INTERVAL = 5
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
        self.run_dir, self.total, self.log = run_dir, total, run_dir / "log.jsonl"
        self.begun, self.said, self._old_log, self._old = time.monotonic(), "", _state(self.log), writing(run_dir)
        newest = checkpoint.latest(run_dir, lambda message: None)
        self.first = int(newest.name.removeprefix("step_")) if newest else 0
        launcher = f"-m scripts.torchrun --standalone --nproc_per_node {ranks}".split() if ranks > 1 else []
        self.process = subprocess.Popen(
            [sys.executable, *launcher, "-m", "scripts.train", *flags, "--run_dir", str(run_dir)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the kill tests alone, which end it
        )
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as pipe:
            while part := os.read(pipe.fileno(), 1 << 16):
                self.said += part.decode(errors="replace")

    def __enter__(self) -> "Life":
        return self

    def __exit__(self, *_: object) -> None:
        for pid in [*children(self.process.pid), self.process.pid] if self.process.poll() is None else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def step(self) -> int:
        """The last step in the log; -1 before this start has touched it."""
        if _state(self.log) in (None, self._old_log):
            return -1
        records = logger.read(self.log)
        return int(records[-1]["step"]) if records else 0

    def until(self, happened: Callable[[], bool], poll: float = 0.004) -> bool:
        """Waits for something; False if the process ended before. Raises ValueError if neither happens."""
        deadline = time.monotonic() + 300 + self.total
        while not happened():
            if self.process.poll() is not None:
                return False
            expect(time.monotonic() < deadline, f"training stands still ({self.run_dir}): {self.last_words()}")
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

    def writes(self) -> set[str]:
        """What this start writes aside, or left so."""
        return writing(self.run_dir) - self._old

    def newest(self) -> int:
        """The step of the newest checkpoint, 0 before the first."""
        found = checkpoint.steps(self.run_dir)
        return found[-1][0] if found else 0

    def wait(self, limit: float | None = None) -> int:
        """Its exit code, negative for a signal. Raises ValueError after `limit` seconds."""
        limit = limit or 300 + self.total
        try:
            code = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            raise ValueError(f"it did not end within {limit:g} s: {self.last_words()}") from None
        if code >= 0:  # after a kill, workers that read data may hold the pipe for some seconds more
            self._reader.join(10)
        return code

    def errors(self) -> int:
        """How many it said; a rank may speak into the progress bar of another."""
        return len(re.findall(r"(?:^|[\r\n\]])error: ", self.said))

    def last_words(self, lines: int = 1) -> str:
        said = [line.split("\r")[-1].strip() for line in self.said.split("\n") if line.strip()]
        return " | ".join(said[-lines:]) or "it said nothing"


def writing(run_dir: Path) -> set[str]:
    """Checkpoints and snapshots that are being written or deleted, or were when training was killed."""
    return {f"{folder}/{path.name}" for folder in SAVING for path in (run_dir / folder).glob(".step_*")}


def leftovers(run_dir: Path) -> list[str]:
    """Everything hidden in a run but the file of its lock."""
    return sorted({path.name for path in run_dir.glob(".*") if path.name != ".lock"} | writing(run_dir))


def check_whole(run_dir: Path) -> int:
    """The number of checkpoints. Raises ValueError for what has its final name without being whole."""
    looked_at, checkpoints = run_dir, checkpoint.steps(run_dir)
    try:
        for _, looked_at in checkpoints:
            checkpoint.verify(looked_at)
        looked_at = run_dir / "ema"
        if stored := averages.snapshots(run_dir):
            averages.reconstruct(run_dir, stored[-1][0], 0.1)  # reads all of them
        for looked_at in filter(Path.exists, (run_dir / "config.json", run_dir / "run.json")):
            json.loads(looked_at.read_text())
    except ValueError as error:
        raise ValueError(f"{looked_at} is damaged: {error}") from error
    return len(checkpoints)


def contents(run_dir: Path) -> dict[str, Any]:
    """Every tensor and value of a run by name: checkpoints, snapshots, log."""
    found: dict[str, Any] = {}
    for _, path in checkpoint.steps(run_dir):
        header = checkpoint.read_header(path)
        header["config"]["train"]["run_dir"] = ""
        weights = {file.stem: checkpoint.read_weights(path, file.stem) for file in path.glob("*.safetensors")}
        parts = {"config": header, "state": checkpoint.read_state(path), **weights}
        found |= _leaves(parts, f"checkpoints/{path.name}")
    for _, path in averages.snapshots(run_dir):
        found |= _leaves(safetensors.torch.load_file(path), f"ema/{path.stem}")
    for record in logger.read(run_dir / "log.jsonl"):
        found |= {f"log/{record['step']}/{name}": record[name] for name in LOGGED if name in record}
    return found


def compare(whole: Path, run_dir: Path, gaps: bool = False) -> tuple[int, list[str]]:
    """A run with one that was left alone, bit for bit: how many tensors and values, and the names of those that differ.

    Both must have the last checkpoint, all snapshots and, unless gaps may be, the losses of every step and of every
    validation; of the other checkpoints those are compared that both have.
    """
    a, b = contents(whole), contents(run_dir)
    last = f"checkpoints/{checkpoint.steps(whole)[-1][1].name}/"

    def needed(name: str) -> bool:
        return name.startswith((last, "ema/")) or (name.endswith(("/loss", "/val_loss")) and not gaps)

    one_sided = [f"{name} ({'missing' if name in a else 'too much'})" for name in a.keys() ^ b.keys() if needed(name)]
    shared = a.keys() & b.keys()
    return len(shared), sorted([*one_sided, *(name for name in shared if not _same(a[name], b[name]))])


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        yield name, value
        return
    for key, part in value.items():
        yield from _leaves(part, f"{name}/{key}")


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same_kind = a.dtype == b.dtype and a.shape == b.shape
        return same_kind and torch.equal(*(x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b)))
    return type(a) is type(b) and bool(a == b)


def _state(path: Path) -> tuple[int, ...] | None:
    """What of a file changes when it is written anew or grows."""
    with suppress(FileNotFoundError):
        found = path.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns
    return None
