"""Kill tests: `python -m tests.torture --kills 50 [--mode kill|term|disk|ranks|all]`, from the checkout (Linux).

Trains a tiny network in a process of its own, hits it at random moments, every second one while it saves, and starts it
again. What it ends in is compared with a run that was left alone: weights, averages, optimiser, snapshots and log, bit
for bit on the CPU. When a run is finished the next begins, with another seed and other settings.

    kill    SIGKILL
    term    SIGTERM: it must end with exit code 75 and a checkpoint of the last step
    disk    its files may not grow, as on a full disk: it must end with one line and an exit code, and go on later
    ranks   SIGKILL for one of two ranks: the other must be gone within a minute, the error said once

Exit code 0: everything as promised; 1: not, and the runs are kept; 2: a mistake.
"""

import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch

from ddbm.settings import Settings, from_flags, setting
from scripts.common import run
from tests.torture import run as runs
from tests.torture.run import SAVE_INTERVAL, SETTINGS, Life, expect

CPU_FSDP = hasattr(torch.cpu.Stream, "record_event")  # not with torch 2.6


@dataclass(frozen=True)
class Mode:
    """aims: of every second hit, the others are at saves; variants: settings, run by run; gaps: in the log."""

    strike: Callable[[Life, Random], None]
    aims: Sequence[str] = ("start", "steps", "steps", "steps")
    variants: Sequence[str] = ("", "--workers 1", "--layers tied --group D4 --regularization_weight 0.3")
    ranks: int = 1
    gaps: bool = False


MODES = {
    "kill": Mode(runs.kill),
    "term": Mode(runs.terminate, aims=("steps",)),
    "disk": Mode(runs.fill_disk, aims=("steps",), gaps=True),  # at a start it would meet Python's own files
    "ranks": Mode(runs.kill_one_rank, variants=("", "--parallel fsdp")[: 1 + CPU_FSDP], ranks=2),
}


@dataclass(frozen=True)
class TortureConfig(Settings):
    """Kill tests"""

    kills: int = setting(50, "times that training is hit, in each mode", above=0)
    mode: str = setting("kill", "what it is hit by", choices=(*MODES, "all"))
    steps: int = setting(250, "steps of a run; when they are done, the next begins", above=6 * SAVE_INTERVAL - 1)
    seed: int = setting(0, "seed of the moments and of the runs")
    run_dir: str = setting("workdir/torture", "new directory for the runs, deleted if all is well")


class Torture:
    """Runs in the directory `work`; those that were left alone are made once and serve every mode."""

    def __init__(self, config: TortureConfig, work: Path) -> None:
        self.config, self.work = config, work
        self._alone: dict[tuple[str, ...], tuple[Path, float]] = {}

    def run(self, name: str) -> tuple[Counter[str], str]:
        """Hits training `kills` times, in runs in a folder, to the end of the last of them or to the first problem.

        Returns how often what was seen, and what was not as promised.
        """
        mode, folder, seen, rng = MODES[name], self.work / name, Counter[str](), Random(f"{self.config.seed} {name}")
        folder.mkdir()
        while seen["times hit"] < self.config.kills:
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
                values, differing = runs.compare(whole, run_dir, mode.gaps)
                seen["tensors and values compared"] += values
                expect(not differing, f"{len(differing)} not as in {whole}: {', '.join(differing[:5])}")
                seen["identical to one left alone"] += 1
                expect(not runs.leftovers(run_dir), f"left behind: {', '.join(runs.leftovers(run_dir))}")
                shutil.rmtree(run_dir)
            except ValueError as error:
                return seen, f"{run_dir} ({' '.join(flags)}): {error}"
        return seen, ""

    def alone(self, flags: list[str], ranks: int) -> tuple[Path, float]:
        """A run that was left alone, and the seconds until its first step. Raises ValueError if it does not finish."""
        key = (str(ranks), *flags)
        if key not in self._alone:
            run_dir = self.work / f"alone_{len(self._alone)}"
            with Life(run_dir, flags, self.config.steps, ranks) as life:
                life.until(lambda: life.step() > 0)
                self._alone[key] = run_dir, time.monotonic() - life.begun
                code = life.wait()
                expect(code == 0, f"training left alone ended with exit code {code}: {life.last_words()}")
        return self._alone[key]

    def live(self, life: Life, mode: Mode, seen: Counter[str], rng: Random, startup: float) -> bool:
        """A start, hit once unless it comes to the end of the run before; returns whether it did."""
        aim = "save" if seen["times hit"] % 2 else rng.choice(mode.aims)
        if seen["times hit"] >= self.config.kills or not life.reach(aim, rng, startup):
            code = life.wait()
            expect(code == 0, f"it ended by itself with exit code {code}: {life.last_words()}")
            return True
        try:
            mode.strike(life, rng)
        except ValueError:
            if life.process.returncode != 0:
                raise
        if life.process.returncode == 0:  # it was done before it was hit
            return True
        done, newest = life.step(), life.newest()
        seen["times hit"] += 1
        seen["aimed at a save"] += aim == "save"
        seen["during a save"] += bool(life.writes())  # what it wrote when it was killed is left
        seen["steps done again"] += max(0, done - newest)
        seen["checkpoints looked at"] += runs.check_whole(life.run_dir)
        hit = f"{mode.strike.__name__} {seen['times hit']}: {life.run_dir.name}, aimed at {aim}"
        print(f"{hit}, step {done}, newest checkpoint {newest}, left: {runs.leftovers(life.run_dir)}", flush=True)
        return False


def main(argv: Sequence[str]) -> int:
    config, _ = from_flags(TortureConfig, argv)
    work = Path(config.run_dir).resolve()
    if work.exists():
        raise ValueError(f"{work} is there already: remove it, or give --run_dir a new directory")
    work.mkdir(parents=True)
    torture, problems = Torture(config, work), 0
    for name in MODES if config.mode == "all" else [config.mode]:
        seen, problem = torture.run(name)
        print(f"{name}: {', '.join(f'{what} {times}' for what, times in seen.items())}", flush=True)
        if problem:
            problems += 1
            print(f"NOT as promised: {problem}; the runs are kept in {work}", file=sys.stderr)
    if not problems:
        print("all as promised")
        shutil.rmtree(work)
    return bool(problems)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleans up, as Ctrl-C does
    run(main)
