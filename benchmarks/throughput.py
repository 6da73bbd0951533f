"""Images a second of sampling against a naive loop: `python -m benchmarks.throughput [--flag value ...]`.

The naive loop samples one image at a time, outside of inference mode, so that kernels are laid out anew at every
evaluation and the graph is kept. The network is the histology preset's with random weights; the ways take turns in one
process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddbm.bridges.samplers import solve
from ddbm.config import Config, DataConfig, ModelConfig
from ddbm.model import BridgeModel, ImageShape, sample
from ddbm.ranks.devices import pick_device
from ddbm.settings import Settings, from_flags, setting
from ddbm.symmetry.frames import Noise
from ddbm.symmetry.groups import IDENTITY
from scripts.common import run


@dataclass(frozen=True)
class BenchConfig(Settings):
    """The benchmark"""

    num_images: int = setting(32, "images a round", above=0)
    nfe: int = setting(20, "evaluations an image", above=0)
    rounds: int = setting(5, "rounds; medians are printed", above=0)
    model_channels: int = setting(32, "channels of the network", above=0)
    size: int = setting(32, "height and width of the images", above=0)
    layers: str = setting("tied", "layers", choices=("plain", "tied", "regular"))
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")


def naive(model: BridgeModel, sources: Tensor, nfe: int) -> Tensor:
    """x_0 of every source, alone and with gradients."""
    images = []
    for i in range(len(sources)):
        x_T, noise = sources[i : i + 1], Noise(0, [i], [IDENTITY])
        images.append(solve("dbim", model.bridge, model.denoiser(x_T), x_T, noise, nfe).detach())
    return torch.cat(images)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def main(argv: Sequence[str]) -> int:
    settings, _ = from_flags(BenchConfig, argv)
    device = pick_device(settings.device)
    network = ModelConfig(
        model_channels=settings.model_channels, num_res_blocks=1, num_head_channels=32, attention_resolutions=(8,),
        layers=settings.layers, group="none" if settings.layers == "plain" else "D4",
    )  # fmt: skip
    torch.manual_seed(0)
    size = settings.size
    model = BridgeModel(Config(data=DataConfig(), model=network), ImageShape(3, 3, size, size, 0)).to(device).eval()
    sources = torch.rand(settings.num_images, 3, size, size, device=device) * 2 - 1
    ways: dict[str, Callable[[], object]] = {
        "naive loop": lambda: naive(model, sources, settings.nfe),
        "sample, one image at a time": lambda: [
            sample(model, sources[i : i + 1], nfe=settings.nfe, index=[i]) for i in range(len(sources))
        ],
        "sample": lambda: sample(model, sources, nfe=settings.nfe),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(settings.rounds + 1):
        for name, work in ways.items():
            taken = seconds(work, device)
            if turn:  # the first warms up
                times[name].append(taken)
    print(f"{len(sources)} images of {size}x{size}, {settings.nfe} evaluations, {settings.layers} layers, {device}\n")
    print("| way | images/s | / naive |\n|---|---|---|")
    for name, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(times["naive loop"], values, strict=True))
        print(f"| {name} | {settings.num_images / statistics.median(values):.1f} | {ratio:.2f} |")
    return 0


if __name__ == "__main__":
    run(main)
