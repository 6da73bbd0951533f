"""Kill tests: `python -m tests.torture --kills 50 [--mode kill|term|disk|ranks|all]` (Linux).

Trains a tiny network in a process of its own, hits it at random moments, every second one while it saves, and starts it
again. What it ends in is compared with a run that was left alone: weights, averages, optimiser, snapshots and log, bit
for bit on the CPU. When a run is finished the next begins, with another seed and other settings.

    kill    SIGKILL
    term    SIGTERM: it must end with exit code 75 and a checkpoint of the last step
    disk    the disk is full: it must end with one line and an exit code, and go on when there is room again
    ranks   SIGKILL for one of two ranks: the other must be gone within a minute, the error said once

Exit code 0: everything as promised; 1: not, and the runs are kept; 2: a mistake.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import torch
from tqdm import tqdm

from ddbm.files import checkpoint
from ddbm.settings import Settings, from_flags, setting
from scripts.common import run
from tests.torture.hits import Strike, disk, kill, kill_one_rank, newest_step, terminate
from tests.torture.run import SAVE_INTERVAL, SETTINGS, Life, Moment, compare, damaged, leftovers

SAVING = {"checkpoints": 0.04, "ema": 0.004}  # seconds that writing takes, about
GIVE_UP = 5  # problems
CPU_FSDP = hasattr(torch.cpu.Stream, "record_event")  # not with torch 2.6
ALL = ("kill", "term", "disk", "ranks")


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


SWITCHES = {"--verbose": "a line for every hit in place of the progress bar"}


@dataclass
class Tally:
    """What was seen in a mode; problems: what was not as promised."""

    hit_by: str
    kills: int = 0
    aimed: int = 0
    saving: int = 0
    starts: int = 0
    again: int = 0
    verified: int = 0
    damaged: int = 0
    others: int = 0
    runs: int = 0
    identical: int = 0
    values: int = 0
    slowest: float = 0.0
    problems: list[str] = field(default_factory=list)


ROWS = {
    "kills": "times hit",
    "aimed": "  aimed at a save",
    "saving": "  during a save",
    "starts": "starts",
    "again": "steps done again",
    "slowest": "longest time to end, s",
    "verified": "checkpoints looked at",
    "damaged": "checkpoints found damaged",
    "others": "other files found damaged",
    "runs": "runs",
    "identical": "  identical to one left alone",
    "values": "tensors and values compared",
}

# ---------------------------------------------------------------------------------------------------------------- runs


@dataclass(frozen=True)
class Mode:
    """hit_by: for the table; aims: of every second hit, the others are at saves; variants: settings, run by run."""

    hit_by: str
    strike: Strike
    aims: Sequence[str] = ("start", "steps", "steps", "steps")
    variants: Sequence[str] = ("", "--workers 1", "--layers tied --group D4 --regularization_weight 0.3")
    ranks: int = 1
    gaps: bool = False  # in the log


class Torture:
    """Runs in the directory `work`; those that were left alone are made once and serve every mode."""

    def __init__(self, config: TortureConfig, work: Path, verbose: bool = False) -> None:
        self.config, self.work, self.verbose = config, work, verbose
        self._alone: dict[tuple[str, ...], tuple[Path, float]] = {}

    def torment(self, mode: Mode, folder: Path) -> Tally:
        """Hits training `kills` times, in runs in `folder`."""
        tally, rng = Tally(mode.hit_by), Random(f"{self.config.seed} {mode.hit_by}")
        with tqdm(total=self.config.kills, desc=mode.hit_by, unit="hit", disable=self.verbose) as bar:
            while tally.kills < self.config.kills and len(tally.problems) < GIVE_UP:
                number = tally.runs
                flags = [*SETTINGS, "--total_steps", str(self.config.steps), "--seed", str(self.config.seed + number)]
                flags += mode.variants[number % len(mode.variants)].split()
                self._one_run(mode, flags, folder / f"run_{number}", tally, rng, bar)
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

    def _one_run(self, mode: Mode, flags: list[str], run_dir: Path, tally: Tally, rng: Random, bar: tqdm) -> None:
        """From the beginning to the end, or to the first problem."""
        whole, startup = self.alone(flags, mode.ranks)
        problems: list[str] = []
        finished = False
        while not finished and not problems:
            aim = None
            if tally.kills < self.config.kills:
                aim = "save" if tally.kills % 2 else rng.choice(mode.aims)
            with Life(run_dir, flags, self.config.steps, mode.ranks) as life:
                tally.starts += 1
                try:
                    finished, problems = self._one_life(mode, life, aim, startup, tally, rng, bar)
                except ValueError as error:
                    problems = [str(error)]
        tally.runs += 1
        if finished:
            values, differing = compare(whole, run_dir, mode.gaps)
            tally.values += values
            tally.identical += not differing
            if differing:
                problems.append(f"{len(differing)} not as in {whole}: {', '.join(differing[:5])}")
            problems += [f"{run_dir / name} was left behind" for name in leftovers(run_dir)]
        tally.problems += [f"{run_dir} ({' '.join(flags[len(SETTINGS) :])}): {problem}" for problem in problems]
        if not problems:
            shutil.rmtree(run_dir)

    def _one_life(
        self, mode: Mode, life: Life, aim: str | None, startup: float, tally: Tally, rng: Random, bar: tqdm
    ) -> tuple[bool, list[str]]:
        """A start, hit once unless it comes to the end of the run before; returns whether it did, and problems."""
        if aim is None or not life.reach(self._moment(aim, rng), startup):
            code = life.wait()
            problems = [] if code == 0 else [f"it ended by itself with exit code {code}: {life.last_words()}"]
            return code == 0, problems
        saving, begun = bool(life.writes()), time.monotonic()
        problems = mode.strike(life, rng)
        if life.process.returncode == 0:
            return True, []
        seconds, done, newest = time.monotonic() - begun, life.step(), newest_step(life.run_dir)
        saving = bool(life.writes()) or (saving and mode.strike is not kill)  # what it wrote when it was killed is left
        checkpoints, others = damaged(life.run_dir)
        tally.kills += 1
        tally.aimed += aim == "save"
        tally.saving += saving
        tally.again += max(0, done - newest)
        tally.verified += len(checkpoint.steps(life.run_dir))
        tally.damaged += len(checkpoints)
        tally.others += len(others)
        tally.slowest = max(tally.slowest, seconds)
        bar.update()
        if self.verbose:
            place = f"step {done}" if done >= 0 else "the start"
            print(
                f"{mode.hit_by} {tally.kills}: {life.run_dir.name}, aimed at {aim}, hit {place}"
                f"{' and a save' if saving else ''}; exit code {life.process.returncode} after {seconds:.2f} s; newest "
                f"checkpoint {newest}; left aside: {', '.join(leftovers(life.run_dir)) or 'nothing'}",
                flush=True,
            )
        return False, problems + checkpoints + others

    def _moment(self, aim: str, rng: Random) -> Moment:
        folder = rng.choice(("checkpoints", "checkpoints", "checkpoints", "ema"))
        steps = rng.randrange(max(2 * SAVE_INTERVAL, self.config.steps // 8))
        return Moment(aim, rng.random(), steps, folder, rng.uniform(0, SAVING[folder]))

    def run(self, name: str) -> Tally:
        """One mode by its name."""
        folder = self.work / name
        if name == "disk":
            with disk(folder, self.config.disk) as place:
                tally = self.torment(Mode(place.name, place.fill, place.aims, gaps=True), folder)
                if tally.problems and place.mounted:  # the tmpfs goes
                    kept = shutil.copytree(folder, self.work / "disk_kept")
                    tally.problems = [problem.replace(str(folder), str(kept)) for problem in tally.problems]
            return tally
        folder.mkdir()
        return self.torment(MODES[name], folder)


MODES = {
    "kill": Mode("SIGKILL", kill),
    "term": Mode("SIGTERM", terminate, aims=("steps",)),
    "ranks": Mode("SIGKILL of a rank", kill_one_rank, variants=("", "--parallel fsdp")[: 1 + CPU_FSDP], ranks=2),
}


def table(tallies: Sequence[Tally]) -> str:
    rows = [("", *(tally.hit_by for tally in tallies))]
    for name, label in ROWS.items():
        values = [getattr(tally, name) for tally in tallies]
        rows.append((label, *(f"{v:.1f}" if isinstance(v, float) else str(v) for v in values)))
    rows.append(("as promised", *("NO" if tally.problems else "yes" for tally in tallies)))
    return "\n".join(f"{label:<32}" + "".join(f"{value:>20}" for value in values) for label, *values in rows)


def main(argv: Sequence[str]) -> int:
    config, extra = from_flags(TortureConfig, argv, switches=SWITCHES)
    work = Path(config.run_dir or tempfile.mkdtemp(prefix="ddbm-torture-")).resolve()
    if config.run_dir:
        if work.exists() and (not work.is_dir() or any(work.iterdir())):
            raise ValueError(f"{work} is not empty: give --run_dir a new directory")
        work.mkdir(parents=True, exist_ok=True)
    kept = bool(config.run_dir)
    try:
        torture = Torture(config, work, extra.verbose)
        tallies = [torture.run(name) for name in (ALL if config.mode == "all" else [config.mode])]
        print(table(tallies))
        problems = [problem for tally in tallies for problem in tally.problems]
        for problem in problems:
            print(f"NOT as promised: {problem}", file=sys.stderr)
        if problems:
            kept = True
            print(f"the runs are kept in {work}", file=sys.stderr)
        return 1 if problems else 0
    finally:
        if not kept:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleans up, as Ctrl-C does
    run(main)
