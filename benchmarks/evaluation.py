"""What does an evaluation cost? `python -m benchmarks.evaluation`: time and memory for 2,500 and 10,000 images of 64².

Writes npz files of smooth random images, and scores them in a process of its own for every set of metrics: those of
pairs, Fréchet and kernel distance of raw features, and Inv-FID under H on raw features, for which every image is seen
twice. Memory is the largest resident set, and how much of it came after the program was loaded; the features are what
the metrics hold of them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from ddbm.files import npz
from evaluations.evaluator import evaluate
from evaluations.images import load_images
from evaluations.raw import FEATURES

SETS = {  # metrics, group, and the sets whose features are held whole
    "mse, psnr, ssim": (("mse", "psnr", "ssim"), "none", 0),
    "fd_raw, kd_raw": (("fd_raw", "kd_raw"), "none", 2),
    "inv_fd_raw_max, H": (("inv_fd_raw_max",), "H", 0),
}
PART = 500  # images made at once


def images(count: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """Smooth random images, uint8 [PART, size, size, 3]."""
    rng = np.random.default_rng(seed)
    for start in range(0, count, PART):
        coarse = rng.integers(0, 256, (min(PART, count - start), size // 8, size // 8, 3), dtype=np.uint8)
        yield coarse.repeat(8, axis=1).repeat(8, axis=2)


def write(path: Path, count: int, size: int, seed: int) -> None:
    def fill(writer: npz.Writer, aside: Path) -> None:
        writer.stream("arr_0", (count, size, size, 3), np.uint8, images(count, size, seed))

    npz.write(path, fill)


def resident(field: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at most (ru_maxrss would count the parent, too)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def measure(folder: str, name: str) -> tuple[float, float, float]:
    """Seconds, peak memory and its growth in MiB, in a process that does nothing else."""
    metrics, group, _ = SETS[name]
    small = np.zeros((16, 64, 64, 3), np.uint8)
    evaluate(small, small, metrics, group=group)  # whatever is loaded once
    before = resident("VmRSS")
    start = time.perf_counter()
    reference, sample = (load_images(Path(folder) / f"{side}.npz") for side in ("reference", "sample"))
    evaluate(reference, sample, metrics, group=group)
    return time.perf_counter() - start, resident("VmHWM"), resident("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[2500, 10000])
    parser.add_argument("--size", type=int, default=64)
    arguments = parser.parse_args()
    print(f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| images | files, MiB | metrics | s | peak memory, MiB | of it after loading | features held, MiB |")
    print("|---|---|---|---|---|---|---|")
    for count in arguments.images:
        shape = (count, arguments.size, arguments.size, 3)
        with tempfile.TemporaryDirectory() as folder:
            for seed, side in enumerate(("reference", "sample")):
                write(Path(folder) / f"{side}.npz", count, arguments.size, seed)
            files = 2 * np.prod(shape) / 2**20
            for name, (_, _, held) in SETS.items():
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    seconds, peak, growth = pool.submit(measure, folder, name).result()
                kept = held * count * FEATURES * 4 / 2**20
                print(
                    f"| {count} | {files:.0f} | {name} | {seconds:.1f} | {peak:.0f} | {growth:.0f} | {kept:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
