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
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch

from ddbm.settings import Settings, from_flags, setting
from scripts.common import run as entry
from tests.torture import run
from tests.torture.run import SAVE_INTERVAL, SETTINGS, Life, expect

REG = "--layers tied --group D4 --regularization_weight 0.3"
FSDP = ["--parallel fsdp"] * hasattr(torch.cpu.Stream, "record_event")  # on CPUs not with torch 2.6
MODES = {  # how it is hit, the settings run by run, ranks
    "kill": (run.kill, ["", "--workers 1", REG], 1),
    "term": (run.terminate, ["", "--workers 1", REG], 1),
    "disk": (run.fill_disk, ["", "--workers 1", REG], 1),
    "ranks": (run.kill_one_rank, ["", *FSDP], 2),
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

    def run(self, mode: str) -> Counter[str]:
        """Hits training `kills` times, to the end of the last run; counts what was seen.

        Raises ValueError for what is not as promised.
        """
        (_, variants, ranks), seen, rng = MODES[mode], Counter[str](), Random(f"{self.config.seed} {mode}")
        while seen["times hit"] < self.config.kills:
            number, run_dir = seen["runs"], self.work / f"{mode}_{seen['runs']}"
            own = f"--total_steps {self.config.steps} --seed {self.config.seed + number}"
            flags = [*SETTINGS, *own.split(), *variants[number % len(variants)].split()]
            whole, startup = self.alone(flags, ranks)
            finished = False
            while not finished:
                with Life(run_dir, flags, self.config.steps, ranks) as life:
                    seen["starts"] += 1
                    finished = self.live(life, mode, seen, rng, startup)
            seen["runs"] += 1
            values, differing = run.compare(whole, run_dir, gaps=mode == "disk")
            seen["tensors and values compared"] += values
            expect(not differing, f"{run_dir} is not as {whole}: {len(differing)}, {', '.join(differing[:5])}")
            seen["identical to one left alone"] += 1
            expect(not run.leftovers(run_dir), f"left behind in {run_dir}: {', '.join(run.leftovers(run_dir))}")
            shutil.rmtree(run_dir)
        return seen

    def alone(self, flags: list[str], ranks: int) -> tuple[Path, float]:
        """A run that was left alone, and the seconds until its first step."""
        key = (str(ranks), *flags)
        if key not in self._alone:
            run_dir = self.work / f"alone_{len(self._alone)}"
            with Life(run_dir, flags, self.config.steps, ranks) as life:
                life.until(lambda: life.step() > 0)
                self._alone[key] = run_dir, time.monotonic() - life.begun
                life.ends(0)
        return self._alone[key]

    def live(self, life: Life, mode: str, seen: Counter[str], rng: Random, startup: float) -> bool:
        """A start, hit once unless it comes to the end of the run before; returns whether it did."""
        strike, save = MODES[mode][0], seen["times hit"] % 2 == 1
        at_start = mode in ("kill", "ranks") and rng.random() < 0.25  # a full disk would meet Python's own files there
        aim = "save" if save else "start" if at_start else "steps"
        if seen["times hit"] >= self.config.kills or not life.reach(aim, rng, startup):
            life.ends(0)
            return True
        try:
            strike(life, rng)
        except ValueError:
            if life.process.returncode != 0:
                raise
        if life.process.returncode == 0:  # it was done before it was hit
            return True
        done, newest = life.step(), life.newest()
        seen["times hit"] += 1
        seen["aimed at a save"] += save
        seen["during a save"] += bool(life.writes())  # what it wrote when it was killed is left
        seen["steps done again"] += max(0, done - newest)
        seen["checkpoints looked at"] += run.check_whole(life.run_dir)
        print(f"{mode} {seen['times hit']}: {life.run_dir.name} at {aim}, step {done}, newest {newest}", flush=True)
        return False


def main(argv: list[str]) -> int:
    config, _ = from_flags(TortureConfig, argv)
    work = Path(config.run_dir).resolve()
    if work.exists():
        raise ValueError(f"{work} is there already: remove it, or give --run_dir a new directory")
    work.mkdir(parents=True)
    torture, problems = Torture(config, work), 0
    for mode in MODES if config.mode == "all" else [config.mode]:
        try:
            print(f"{mode}: {', '.join(f'{what} {times}' for what, times in torture.run(mode).items())}", flush=True)
        except ValueError as error:
            problems += 1
            print(f"{mode}: NOT as promised: {error}; the runs are kept in {work}", file=sys.stderr)
    if not problems:
        print("all as promised")
        shutil.rmtree(work)
    return bool(problems)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleans up, as Ctrl-C does
    entry(main)
