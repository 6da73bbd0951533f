"""What do symmetric layers cost? `python -m benchmarks.layers`: time of a training step, parameters and memory.

Steps of all networks alternate in one process, and the median of the ratios to the plain network's step is the figure
to quote. Memory is the largest resident set of a process that trains that network alone (on a GPU: of its allocator).
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from ddbm.config import Config, ModelConfig, TrainConfig
from ddbm.model import BridgeModel, ImageShape
from ddbm.training.trainer import Trainer

# name -> (image size, batch size, model settings, channels of a regular D4 network with as many parameters)
NETWORKS: dict[str, tuple[int, int, ModelConfig, int]] = {
    "quickstart": (32, 16, ModelConfig(32, (1, 2, 3, 4), 1, (8,), 32), 88),
    "wide": (32, 4, ModelConfig(128, (1, 2), 1, (16,), 64), 352),
}


class Pairs:
    """A batch of random pairs, without masks and labels."""

    mask = label = None

    def __init__(self, batch: int, size: int, device: torch.device) -> None:
        self.target, self.source = torch.rand(2, batch, 3, size, size, device=device) * 2 - 1
        self.index = torch.arange(batch)

    def to(self, device: torch.device) -> Pairs:
        return self


def variants(name: str, group: str) -> dict[str, ModelConfig]:
    """The networks compared: plain, tied, regular at equal channels and (D4) at equal parameters."""
    plain, wide = NETWORKS[name][2], NETWORKS[name][3]
    found = {"plain": plain} | {kind: replace(plain, layers=kind, group=group) for kind in ("tied", "regular")}
    if group == "D4":
        found["regular_wide"] = replace(
            plain, layers="regular", group=group, model_channels=wide, num_head_channels=wide
        )
    return found


def make(name: str, settings: ModelConfig, device: torch.device) -> Trainer:
    size, batch_size = NETWORKS[name][:2]
    config = Config(model=settings, train=TrainConfig(batch_size=batch_size, ema_sigma_rel=()))
    return Trainer(config, BridgeModel(config, ImageShape(3, 3, size, size, 0)), device)


def step_time(trainer: Trainer, batch: Pairs) -> float:
    """Seconds of one training step."""
    start = time.perf_counter()
    trainer.train_step(batch).item()
    return time.perf_counter() - start


def memory(name: str, settings: ModelConfig, device: torch.device) -> float:
    """MiB a process of its own needs for two training steps."""
    size, batch_size = NETWORKS[name][:2]
    trainer, batch = make(name, settings, device), Pairs(batch_size, size, device)
    for _ in range(2):
        step_time(trainer, batch)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()  # ru_maxrss would count the parent, too
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def compare(name: str, group: str, steps: int, device: torch.device) -> None:
    """Prints one line for every network."""
    size, batch_size = NETWORKS[name][:2]
    chosen = variants(name, group)
    trainers = {kind: make(name, settings, device) for kind, settings in chosen.items()}
    batch = Pairs(batch_size, size, device)
    for trainer in trainers.values():
        step_time(trainer, batch)
    times = [{kind: step_time(trainer, batch) for kind, trainer in trainers.items()} for _ in range(steps)]
    for kind, trainer in trainers.items():
        ratios = [row[kind] / row["plain"] for row in times]
        parameters = sum(p.numel() for p in trainer.model.parameters())
        kernels = sum(p.numel() for n, p in trainer.model.named_parameters() if "embed" not in n and p.ndim > 1)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            needed = pool.apply(memory, (name, chosen[kind], device))
        print(
            f"{name:<12}{group:<7}{kind:<14}{parameters / 1e6:>8.2f} M{kernels / 1e6:>9.2f} M{needed:>9.0f} MiB"
            f"{statistics.median(row[kind] for row in times):>9.4f}"
            f"{statistics.median(ratios):>9.3f}{min(ratios):>7.2f}{max(ratios):>7.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=15, help="timed steps of each network")
    parser.add_argument("--groups", nargs="+", default=["C4", "D4"])
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    print(f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    columns = f"{'parameters':>10}{'kernels':>11}{'memory':>13}{'step s':>9}{'/ plain':>9}{'min':>7}{'max':>7}"
    print(f"{'network':<12}{'group':<7}{'layers':<14}{columns}")
    for name in NETWORKS:
        for group in arguments.groups:
            compare(name, group, arguments.steps, device)


if __name__ == "__main__":
    main()
