"""What does tying cost? Time of a training step with tied layers against plain ones: `python -m benchmarks.tied`.

Steps of the two networks alternate in one process; the median of the ratios is the figure to quote.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time

import torch

from ddbm.config import BridgeConfig, Config, ModelConfig, TrainConfig
from ddbm.model import BridgeModel, ImageShape
from ddbm.trainer import Trainer

# name -> (image size, batch size, model settings): the quickstart's network, and a wider one
SIZES: dict[str, tuple[int, int, ModelConfig]] = {
    "quickstart": (32, 16, ModelConfig(32, (), 1, (8,), 32)),
    "wide": (32, 4, ModelConfig(128, (1, 2, 3), 1, (8,), 64)),
}


class Pairs:
    """A batch of random pairs, without masks and labels."""

    mask = label = None

    def __init__(self, batch: int, size: int, device: torch.device) -> None:
        self.target, self.source = torch.rand(2, batch, 3, size, size, device=device) * 2 - 1

    def to(self, device: torch.device) -> Pairs:
        return self


def step_time(trainer: Trainer, batch: Pairs) -> float:
    """Seconds of one training step."""
    start = time.perf_counter()
    trainer.train_step(batch).item()
    return time.perf_counter() - start


def measure(name: str, group: str, steps: int, device: torch.device) -> tuple[float, float, list[float]]:
    """Median seconds of a plain and of a tied step, and the ratios tied / plain pair by pair."""
    size, batch_size, settings = SIZES[name]
    trainers = []
    for layers in ("plain", "tied"):
        model = ModelConfig(**{**vars(settings), "layers": layers, "group": group})
        config = Config(bridge=BridgeConfig(), model=model, train=TrainConfig(batch_size=batch_size))
        trainers.append(Trainer(config, BridgeModel(config, ImageShape(3, 3, size, size, 0)), device))
    batch = Pairs(batch_size, size, device)
    for trainer in trainers:
        step_time(trainer, batch)
    times = [tuple(step_time(trainer, batch) for trainer in trainers) for _ in range(steps)]
    plain, tied = (statistics.median(column) for column in zip(*times, strict=True))
    return plain, tied, [t / p for p, t in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=15, help="timed steps of each network")
    parser.add_argument("--groups", nargs="+", default=["C2", "C4", "D4"])
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    print(f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'network':<12}{'group':<7}{'plain s':>9}{'tied s':>9}{'tied / plain: median':>22}{'min':>7}{'max':>7}")
    for name in SIZES:
        for group in arguments.groups:
            plain, tied, ratios = measure(name, group, arguments.steps, device)
            ratio = statistics.median(ratios)
            print(f"{name:<12}{group:<7}{plain:>9.4f}{tied:>9.4f}{ratio:>22.3f}{min(ratios):>7.2f}{max(ratios):>7.2f}")


if __name__ == "__main__":
    main()
