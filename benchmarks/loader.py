"""Do data starve the step? `python -m benchmarks.loader`: images/s of the loader against those of the training step.

Histology at 32² with the quickstart's network, and a folder of 256² JPEGs with that of ct_pet, one image a step
(args.sh). The loader does all it does in training: order, reading, scaling, augmentation, batches. Loaders with several
numbers of workers and steps take turns, and the medians are printed. In training without workers a step lasts 1 / ratio
longer; with workers the loader runs beside it.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datasets import PairedData, open_data, train_batches
from ddbm.config import Config
from ddbm.symmetry.groups import GROUPS

from .layers import step_time
from .training import make, pairs, preset

WORKERS = (0, 1, 2)


def write_jpegs(folder: Path, count: int, size: int) -> None:
    """Pairs of files: crops of photographs that ship with scikit-image, and the same crops without colour."""
    from skimage.data import astronaut, chelsea, coffee

    photographs = [Image.fromarray(read()) for read in (astronaut, chelsea, coffee)]
    rng = np.random.default_rng(0)
    for side in ("source", "target"):
        (folder / "train" / side).mkdir(parents=True)
    for n in range(count):
        photograph = photographs[n % len(photographs)]
        left, top = (int(rng.integers(room - size + 1)) for room in photograph.size)
        crop = photograph.crop((left, top, left + size, top + size))
        crop.save(folder / "train" / "target" / f"{n}.jpg", quality=90)
        crop.convert("L").convert("RGB").save(folder / "train" / "source" / f"{n}.jpg", quality=90)


def loader_rate(data: PairedData, config: Config, workers: int, count: int) -> float:
    """Images a second that come out of the loader, once it is at work."""
    s = config.train
    elements = GROUPS[s.augment].elements
    batches = train_batches(data, batch_size=s.batch_size, seed=s.seed, elements=elements, workers=workers)
    for _ in range(1 + 2 * workers):  # what workers read ahead
        next(batches)
    start = time.perf_counter()
    for _ in range(count):
        next(batches)
    return count * s.batch_size / (time.perf_counter() - start)


def compare(name: str, data: PairedData, config: Config, batch_size: int, rounds: int, count: int) -> None:
    """Prints a line for every number of workers; batch_size: of the step, the loader makes those of the settings."""
    small = replace(config, train=replace(config.train, batch_size=batch_size))
    trainer, batch = make(small), pairs(batch_size, small)
    step_time(trainer, batch)
    steps, loaders = list[float](), {workers: list[float]() for workers in WORKERS}
    for _ in range(rounds):
        steps.append(batch_size / step_time(trainer, batch))
        for workers, rates in loaders.items():
            rates.append(loader_rate(data, config, workers, count))
    step = statistics.median(steps)
    for workers, rates in loaders.items():
        rate = statistics.median(rates)
        print(f"| {name} | {workers} | {rate:.0f} | {step:.3g} | {rate / step:.3g} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="timings of every loader and step")
    parser.add_argument("--batches", type=int, default=24, help="batches of one timing of a loader")
    parser.add_argument("--pairs", type=int, default=300, help="pairs of JPEGs")
    arguments = parser.parse_args()
    print(f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| data | workers | loader, images/s | step, images/s | ratio |\n|---|---|---|---|---|")
    for name, batch_size in (("histology", 16), ("ct_pet", 1)):
        config = preset(name)
        with tempfile.TemporaryDirectory() as folder:
            if name != "histology":
                write_jpegs(Path(folder), arguments.pairs, int(config.data.image_size))
                config = replace(config, data=replace(config.data, data_dir=folder))
            data = open_data(split="train", **asdict(config.data))
            compare(name, data, config, batch_size, arguments.rounds, arguments.batches)


if __name__ == "__main__":
    main()
