"""What does training cost beside its steps? `python -m benchmarks.training`: averages, log, checkpoints, DDP; on a CPU.

A bare step is forward, loss, backward, clipping and AdamW at the quickstart's settings (args.sh). All else runs through
the trainer's and the loop's own code, in turns with bare steps in one process. What happens once in n steps is timed
with the steps beside which a thread writes for it, and what these take longer is shared among the n. Reading data and
validation are no part of it. Then two ranks: with and without exchange of gradients, and against one with all threads.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets import Batch
from ddbm.config import Config
from ddbm.files import checkpoint
from ddbm.model import BridgeModel, ImageShape
from ddbm.ranks import distributed
from ddbm.training import loop
from ddbm.training.stopping import Stop
from ddbm.training.trainer import Trainer
from scripts.train import parse

from .layers import step_time

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


def preset(dataset: str, schedule: str = "vp") -> Config:
    """The settings that `train_ddbm.sh DATASET SCHEDULE` trains with."""
    arrays = " ".join(f'"${{{name}[@]}}"' for name in ("PAPER", f"SCHEDULE_{schedule}", f"DATASET_{dataset}"))
    script = f"source '{ROOT / 'args.sh'}'; printf '%s\\n' {arrays}"
    flags = subprocess.run(["bash", "-c", script], check=True, capture_output=True, text=True).stdout.splitlines()
    return parse([*flags, "--dataset", dataset])[0]


def make(config: Config) -> Trainer:
    size = int(config.data.image_size)
    return Trainer(config, BridgeModel(config, ImageShape(3, 3, size, size, 0)), CPU)


def pairs(count: int, config: Config) -> Any:
    """Random pairs; reading real ones is another question (loader.py)."""
    size = int(config.data.image_size)
    target, source = torch.rand(2, count, 3, size, size) * 2 - 1
    return Batch(target, source, torch.arange(count), None, None)


def join(rank: int, ranks: int, port: int) -> None:
    """Enters a group of ranks, as one that torchrun started does."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.start(distributed.World(rank, ranks, rank, "torchrun"), CPU, timeout=120)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


# -------------------------------------------------------------------------------------------------------- one by one


def every_step(plain: Trainer, parallel: Trainer, rounds: int) -> tuple[float, float]:
    """Seconds of a bare step, and those that DDP adds to it."""
    variants, batch, times = {"bare": plain, "DDP": parallel}, pairs(plain.share, plain.config), []
    averages = plain.averages, parallel.averages
    plain.averages = parallel.averages = {}
    for number in range(rounds + 1):  # the first one is not counted
        order = list(variants)[:: -1 if number % 2 else 1]
        times.append({name: step_time(variants[name], batch) for name in order})
    plain.averages, parallel.averages = averages
    bare = statistics.median(row["bare"] for row in times[1:])
    return bare, bare * (statistics.median(row["DDP"] / row["bare"] for row in times[1:]) - 1)


def now_and_then(trainer: Trainer, run_dir: Path, rounds: int) -> dict[str, float]:
    """Seconds that an update of the averages, a line of the log, a snapshot and a checkpoint add to the run."""
    batch, extra = pairs(trainer.share, trainer.config), dict[str, list[float]]()
    with checkpoint.Writer() as writer:
        run, recent = loop.Run(trainer, lambda: [], run_dir, None, None, writer, Stop()), loop.Recent(trainer)

        def update() -> None:
            for average in trainer.averages.values():
                average.update(trainer.model.network, average.every)

        events: dict[str, tuple[int, Callable[[], None]]] = {  # with the steps beside which a thread writes
            "averages": (0, update),
            "log": (0, lambda: run.write(recent.record())),
            "snapshots": (1, lambda: trainer.snapshot(run_dir, writer)),
            "checkpoints": (4, lambda: trainer.save(run_dir, writer)),
        }

        def seconds(steps: int, event: Callable[[], None]) -> float:
            start = time.perf_counter()
            event()
            for _ in range(steps):
                step_time(trainer, batch)
            writer.wait()
            return time.perf_counter() - start

        for _ in range(rounds + 1):
            for name, (steps, event) in events.items():
                recent.losses = [torch.zeros(())] * trainer.settings.log_interval
                without = seconds(steps, lambda: None)
                extra.setdefault(name, []).append(seconds(steps, event) - without)
    return {name: statistics.median(values[1:]) for name, values in extra.items()}


# ------------------------------------------------------------------------------------------------------ all together


def together(plain: Trainer, whole: Trainer, run_dir: Path, steps: int) -> float:
    """What `loop.train` adds to bare steps, as a share of them, over the last `steps` steps of the quickstart.

    Bare steps take their turns between those of the run, but not while it writes: that it pays for itself. Of
    steps with and without averages the medians count, of those that log or write the sum.
    """
    batch, settings = pairs(plain.share, plain.config), whole.settings
    shares: dict[str, list[float]] = {"plain": [], "averaging": [], "writing": []}
    intervals = settings.log_interval, settings.save_interval, settings.snapshot_interval
    plain.averages = {}

    def batches() -> Iterator[Any]:
        threads, bare = threading.active_count(), 0.0  # tqdm has one
        while True:
            writing = threading.active_count() > threads
            if not writing:
                bare = step_time(plain, batch)
            start = time.perf_counter()
            yield batch
            share = (time.perf_counter() - start) / bare - 1
            writing = writing or any(whole.step % n == 0 for n in intervals)
            averaging = whole.step % settings.ema_interval == 0
            shares["writing" if writing else "averaging" if averaging else "plain"].append(share)

    whole.step = settings.total_steps - steps - 1  # the last one ends the run and is not timed
    loop.train(whole, batches(), lambda: [batch], run_dir)
    alike = [shares[name] for name in ("plain", "averaging") if shares[name]]
    assert sum(map(len, alike)) + len(shares["writing"]) == steps
    return (sum(len(kind) * statistics.median(kind) for kind in alike) + sum(shares["writing"])) / steps


# --------------------------------------------------------------------------------------------------------- two ranks


def rank_of_two(rank: int, port: int, config: Config, threads: int, rounds: int, results: Any) -> None:
    """One of two processes; rank 0 puts the median seconds of a step of every variant into `results`."""
    half = replace(config, train=replace(config.train, batch_size=config.train.batch_size // 2))
    one, alone = make(config), make(half)  # before there is a group: without DDP
    join(rank, 2, port)
    both = make(config)
    variants = {"one": one, "no exchange": alone, "DDP": both}
    batches = {name: pairs(trainer.share, config) for name, trainer in variants.items()}
    times = np.zeros((rounds + 1, len(variants)))
    for row in times:
        for column, (name, trainer) in enumerate(variants.items()):
            trainer.averages = {}
            torch.set_num_threads(threads if name == "one" else max(1, threads // 2))
            distributed.barrier()
            if rank == 0 or name != "one":
                row[column] = step_time(trainer, batches[name])
    slower = np.maximum(*distributed.gather(times[1:]))
    if rank == 0:
        results.put(dict(zip(variants, np.median(slower, 0).tolist(), strict=True)))
    distributed.barrier()
    distributed.stop()


def two_ranks(config: Config, threads: int, rounds: int) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    results, port = context.Queue(), free_port()
    ranks = [context.Process(target=rank_of_two, args=(r, port, config, threads, rounds, results)) for r in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
        assert rank.exitcode == 0, "a rank ended with an error"
    return results.get()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40, help="timings of steps; of rarer things a quarter")
    parser.add_argument("--steps", type=int, default=200, help="timed steps of all together")
    arguments = parser.parse_args()
    config, threads = preset("histology"), torch.get_num_threads()
    s = config.train
    config = replace(config, train=replace(s, val_interval=10 * s.total_steps))
    print(f"{platform.machine()} CPU, {threads} threads, torch {torch.__version__}")

    plain = make(config)
    join(0, 1, free_port())
    parallel = make(config)
    with tempfile.TemporaryDirectory() as parts, tempfile.TemporaryDirectory() as whole:
        bare, exchange = every_step(plain, parallel, arguments.rounds)
        added = {"DDP": exchange} | now_and_then(plain, Path(parts), max(2, arguments.rounds // 4))
        all_of_it = together(plain, parallel, Path(whole), arguments.steps)
    distributed.stop()

    widths = len(s.ema_rate) + len(s.ema_sigma_rel)
    rows = {
        "averages": (s.ema_interval, f"{widths} averages"),
        "snapshots": (s.snapshot_interval, f"of {len(s.ema_sigma_rel)} averages, in float16"),
        "log": (s.log_interval, "JSONL, CSV, TensorBoard"),
        "checkpoints": (s.save_interval, "state copied, written by a thread"),
        "DDP": (1, "one rank, gloo"),
    }
    print("| | ms each time | once in ... steps | ms a step | of the bare step |\n|---|---|---|---|---|")
    print(f"| bare step | {bare * 1e3:.1f} | 1 | {bare * 1e3:.1f} | 100 % |")
    for name, (every, what) in rows.items():
        share = added[name] / every
        print(f"| {name}: {what} | {added[name] * 1e3:.1f} | {every} | {share * 1e3:.2f} | {share / bare:.2%} |")
    total = sum(added[name] / every for name, (every, _) in rows.items())
    print(f"| sum | | | {total * 1e3:.2f} | {total / bare:.2%} |")
    print(f"| all together, by the loop, {arguments.steps} steps | | | | {all_of_it:.2%} |", flush=True)

    found = two_ranks(config, threads, max(2, arguments.rounds // 2))
    one, alone, both = found["one"], found["no exchange"], found["DDP"]
    print(
        f"two ranks of {max(1, threads // 2)} threads, {s.batch_size // 2} images each: {both:.3f} s a step, "
        f"{both / alone - 1:.1%} more than without exchange ({alone:.3f} s), {both / one:.2f} of the step of one rank "
        f"with {threads} threads and {s.batch_size} images ({one:.3f} s)"
    )


if __name__ == "__main__":
    main()
