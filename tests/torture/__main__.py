"""Kill tests: `python -m tests.torture --kills 50 [--mode kill|term|disk|ranks|all]`, from the checkout (Linux).

Trains a tiny network in a process of its own, hits it at random moments, every second one while it saves, and starts it
again. What it ends in is compared with a run that was left alone: weights, averages, optimiser, snapshots and log, bit
for bit on the CPU. When a run is finished the next begins, with another seed and other settings.

    kill    SIGKILL
    term    SIGTERM: it must end with exit code 75 and a checkpoint of the last step
    disk    the disk is full: it must end with one line and an exit code, and go on when there is room again
    ranks   SIGKILL for one of two ranks: the other must be gone within a minute, the error said once

Exit code 0: everything as promised; 1: not, and the runs are kept; 2: a mistake.
"""

import math
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import torch

from ddbm.settings import Settings, from_flags, setting
from scripts.common import run
from tests.torture.hits import Strike, disk, kill, kill_one_rank, terminate
from tests.torture.run import SAVE_INTERVAL, SETTINGS, Life, check_whole, compare, expect, leftovers

CPU_FSDP = hasattr(torch.cpu.Stream, "record_event")  # not with torch 2.6
ALL = ("kill", "term", "disk", "ranks")
COUNTED = (
    "times hit", "aimed at a save", "during a save", "starts", "steps done again", "longest time to end, s",
    "checkpoints looked at", "runs", "identical to one left alone", "tensors and values compared",
)  # fmt: skip


@dataclass(frozen=True)
class TortureConfig(Settings):
    """Kill tests"""

    kills: int = setting(50, "times that training is hit, in each mode", above=0)
    mode: str = setting("kill", "what it is hit by", choices=(*ALL, "all"))
    steps: int = setting(250, "steps of a run; when they are done, the next begins")
    seed: int = setting(0, "seed of the moments and of the runs")
    disk: str = setting(
        "auto", "how the disk gets full: a tmpfs (root alone may mount it), or a limit on the size of files",
        choices=("auto", "tmpfs", "limit"),
    )  # fmt: skip
    run_dir: str = setting("", "new directory for the runs; default: a temporary one, deleted if all is well")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 6 * SAVE_INTERVAL:
            raise ValueError(f"--steps {self.steps} leaves no time to be hit: expected {6 * SAVE_INTERVAL} or more")


@dataclass(frozen=True)
class Mode:
    """hit_by: for the table; aims: of every second hit, the others are at saves; variants: settings, run by run."""

    hit_by: str
    strike: Strike
    aims: Sequence[str] = ("start", "steps", "steps", "steps")
    variants: Sequence[str] = ("", "--workers 1", "--layers tied --group D4 --regularization_weight 0.3")
    ranks: int = 1
    gaps: bool = False  # in the log


MODES = {
    "kill": Mode("SIGKILL", kill),
    "term": Mode("SIGTERM", terminate, aims=("steps",)),
    "ranks": Mode("SIGKILL of a rank", kill_one_rank, variants=("", "--parallel fsdp")[: 1 + CPU_FSDP], ranks=2),
}


@dataclass
class Tally:
    """What was seen in a mode, by the names in COUNTED; problem: the first thing that was not as promised."""

    hit_by: str
    seen: Counter[str] = field(default_factory=Counter)
    problem: str = ""


class Torture:
    """Runs in the directory `work`; those that were left alone are made once and serve every mode."""

    def __init__(self, config: TortureConfig, work: Path) -> None:
        self.config, self.work = config, work
        self._alone: dict[tuple[str, ...], tuple[Path, float]] = {}

    def run(self, name: str) -> Tally:
        """One mode by its name."""
        folder = self.work / name
        if name != "disk":
            folder.mkdir()
            return self.torment(MODES[name], folder)
        with disk(folder, self.config.disk) as place:
            tally = self.torment(Mode(place.name, place.fill, place.aims, gaps=True), folder)
            if tally.problem and place.mounted:  # the tmpfs goes
                kept = shutil.copytree(folder, self.work / "disk_kept")
                tally.problem = tally.problem.replace(str(folder), str(kept))
        return tally

    def torment(self, mode: Mode, folder: Path) -> Tally:
        """Hits training `kills` times, in runs in `folder`, to the end of the last of them or to the first problem."""
        tally, rng = Tally(mode.hit_by), Random(f"{self.config.seed} {mode.hit_by}")
        seen = tally.seen
        while seen["times hit"] < self.config.kills and not tally.problem:
            number, run_dir = seen["runs"], folder / f"run_{seen['runs']}"
            own = mode.variants[number % len(mode.variants)]
            flags = ["--total_steps", str(self.config.steps), "--seed", str(self.config.seed + number), *own.split()]
            whole, startup = self.alone([*SETTINGS, *flags], mode.ranks)
            finished = False
            try:
                while not finished:
                    with Life(run_dir, [*SETTINGS, *flags], self.config.steps, mode.ranks) as life:
                        seen["starts"] += 1
                        finished = self.live(life, mode, seen, rng, startup)
                seen["runs"] += 1
                values, differing = compare(whole, run_dir, mode.gaps)
                seen["tensors and values compared"] += values
                expect(not differing, f"{len(differing)} not as in {whole}: {', '.join(differing[:5])}")
                seen["identical to one left alone"] += 1
                expect(not leftovers(run_dir), f"left behind: {', '.join(leftovers(run_dir))}")
                shutil.rmtree(run_dir)
            except ValueError as error:
                tally.problem = f"{run_dir} ({' '.join(flags)}): {error}"
        return tally

    def alone(self, flags: list[str], ranks: int) -> tuple[Path, float]:
        """A run that was left alone, and the seconds until its first step. Raises ValueError if it does not finish."""
        key = (str(ranks), *flags)
        if key not in self._alone:
            run_dir = self.work / f"alone_{len(self._alone)}"
            with Life(run_dir, flags, self.config.steps, ranks) as life:
                life.until(lambda: life.step() > 0)
                startup = time.monotonic() - life.begun
                if code := life.wait():
                    raise ValueError(f"training left alone ended with exit code {code}: {life.last_words()}")
            self._alone[key] = run_dir, startup
        return self._alone[key]

    def live(self, life: Life, mode: Mode, seen: Counter[str], rng: Random, startup: float) -> bool:
        """A start, hit once unless it comes to the end of the run before; returns whether it did."""
        aim = "save" if seen["times hit"] % 2 else rng.choice(mode.aims)
        if seen["times hit"] >= self.config.kills or not life.reach(aim, rng, startup):
            code = life.wait()
            expect(code == 0, f"it ended by itself with exit code {code}: {life.last_words()}")
            return True
        saving, begun = bool(life.writes()), time.monotonic()
        try:
            mode.strike(life, rng)
        except ValueError:
            if life.process.returncode != 0:
                raise
        if life.process.returncode == 0:  # it was done before it was hit
            return True
        seconds, done, newest = time.monotonic() - begun, life.step(), life.newest()
        saving = bool(life.writes()) or (saving and mode.strike is not kill)  # what it wrote when it was killed is left
        seen["times hit"] += 1
        seen["aimed at a save"] += aim == "save"
        seen["during a save"] += saving
        seen["steps done again"] += max(0, done - newest)
        seen["longest time to end, s"] = max(seen["longest time to end, s"], math.ceil(seconds))
        seen["checkpoints looked at"] += check_whole(life.run_dir)
        print(
            f"{mode.hit_by} {seen['times hit']}: {life.run_dir.name}, aimed at {aim}, step {done}, newest checkpoint "
            f"{newest}, exit code {life.process.returncode}, left: {', '.join(leftovers(life.run_dir)) or 'nothing'}",
            flush=True,
        )
        return False


def table(tallies: Sequence[Tally]) -> str:
    rows = [("", *(tally.hit_by for tally in tallies))]
    rows += [(name, *(str(tally.seen[name]) for tally in tallies)) for name in COUNTED]
    rows.append(("as promised", *("NO" if tally.problem else "yes" for tally in tallies)))
    return "\n".join(f"{label:<32}" + "".join(f"{value:>20}" for value in values) for label, *values in rows)


def main(argv: Sequence[str]) -> int:
    config, _ = from_flags(TortureConfig, argv)
    work = Path(config.run_dir or tempfile.mkdtemp(prefix="ddbm-torture-")).resolve()
    if config.run_dir:
        if work.exists() and (not work.is_dir() or any(work.iterdir())):
            raise ValueError(f"{work} is not empty: give --run_dir a new directory")
        work.mkdir(parents=True, exist_ok=True)
    problems: list[str] = []
    try:
        torture = Torture(config, work)
        tallies = [torture.run(name) for name in (ALL if config.mode == "all" else [config.mode])]
        print(table(tallies))
        problems = [tally.problem for tally in tallies if tally.problem]
        for problem in problems:
            print(f"NOT as promised: {problem}; the runs are kept in {work}", file=sys.stderr)
        return 1 if problems else 0
    finally:
        if not (problems or config.run_dir):
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleans up, as Ctrl-C does
    run(main)
