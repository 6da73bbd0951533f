"""Which sampler, and how many evaluations: `python -m benchmarks.samplers [RUN] [--flag value ...]`.

Without RUN: a mixture of Gaussians whose denoiser is known, the sliced Wasserstein distance of samples to the truth for
every sampler, path and grid. With RUN, a trained run: its validation images by every sampler, scored. Prints a table a
path or metric, where (n) says that n evaluations were spent instead.
"""

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from datasets import eval_batches
from ddbm import load, sample
from ddbm.bridges.bridge import Bridge
from ddbm.bridges.grids import GRIDS
from ddbm.bridges.samplers import plan
from ddbm.config import BridgeConfig
from ddbm.ranks.distributed import pick_device
from ddbm.settings import Settings, choose, from_flags, setting
from evaluations.evaluator import evaluate
from evaluations.images import to_bytes
from scripts.common import find_checkpoint, open_split, run

BUDGETS = (3, 5, 10, 20, 50, 119)
OWN = "own"  # a sampler's grid where none is named
BRIDGES = {  # of the mixture
    "vp": BridgeConfig(schedule="vp"),
    "ve": BridgeConfig(schedule="ve"),
    "linear": BridgeConfig(schedule="linear"),
    "i2sb": BridgeConfig(schedule="i2sb"),
    "i2sb, OT": BridgeConfig(schedule="i2sb", ot=True),
    "linear, noise on the source": BridgeConfig(schedule="linear", source_noise=0.1),
}
WAYS: dict[str, dict[str, Any]] = {
    "heun": {"sampler": "heun"},
    "dbim 1": {"sampler": "dbim", "order": 1},
    "dbim 1, eta 1": {"sampler": "dbim", "eta": 1.0},
    "dbim 2": {"sampler": "dbim", "order": 2},
    "dbim 3": {"sampler": "dbim", "order": 3},
    "dbmsolver": {"sampler": "dbmsolver"},
    "ecsi": {"sampler": "ecsi"},
    "ecsi, churn 1": {"sampler": "ecsi", "churn": 1.0},
    "euler_maruyama": {"sampler": "euler_maruyama"},
}
POINTS, PROJECTIONS = 20_000, 128
Solve = Callable[..., tuple[dict[str, float], int]]  # budget, grid, a sampler and its settings -> scores, evaluations


@dataclass(frozen=True)
class BenchConfig(Settings):
    """The benchmark"""

    num_images: int = setting(64, "RUN: validation images", above=0)
    metrics: tuple[str, ...] = setting(("psnr", "ssim"), "RUN: metrics")
    grids: tuple[str, ...] = setting((), f"grids, or {OWN}; empty: all of the mixture, {OWN} of RUN")
    samplers: tuple[str, ...] = setting((), "which; empty: all")
    seeds: int = setting(3, "mixture: draws of the noise", above=0)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")


@dataclass(frozen=True)
class Mixture:
    """x_T ~ N(0, 0.5² I) in the plane; x_0 given x_T: one of four Gaussians whose means turn with x_T."""

    bridge: Bridge
    seeds: int = 1
    deviation: float = 0.08

    def means(self, x_T: Tensor) -> Tensor:
        """`[4, B, 2, 1, 1]`."""
        turned = torch.stack([-x_T[:, 1], x_T[:, 0]], 1)
        return torch.stack([0.5 * x_T + 0.4, 0.5 * turned - 0.4, -0.3 * x_T + 0.2 * turned, 0.8 * x_T - 0.6])

    def target(self, x_T: Tensor, generator: torch.Generator) -> Tensor:
        """A true x_0 for every x_T."""
        which = torch.randint(4, (len(x_T),), generator=generator)
        return self.means(x_T)[which, torch.arange(len(x_T))] + self.deviation * draw(x_T, generator)

    def denoise(self, x: Tensor, t: Tensor, x_T: Tensor) -> Tensor:
        """E[x_0 | x_t, x_T]: the components' posterior means by their posterior weights."""
        a, b, c = (v.reshape(-1, 1, 1, 1) for v in self.bridge.coefficients(t))
        means, variance = self.means(x_T), b**2 * self.deviation**2 + c**2
        residual = x - a * x_T - b * means
        squares = residual.square().sum(2, keepdim=True)
        weights = torch.where(variance > 0, -squares / (2 * variance), 0.0).softmax(0)
        slope = torch.where(variance > 0, b * self.deviation**2 / variance, 0.0)
        return (weights * (means + slope * residual)).sum(0)

    def solve(self, **how: Any) -> tuple[dict[str, float], int]:
        """Sliced Wasserstein distance of pairs (x_0, x_T) to true ones, the median over seeds."""
        values, planned, spent = [], plan(bridge=self.bridge, **how), 0
        for seed in range(self.seeds):
            generator = torch.Generator().manual_seed(seed)
            x_T = 0.5 * torch.randn(POINTS, 2, 1, 1, dtype=torch.float64, generator=generator)
            true, denoise = self.target(x_T, generator), partial(self.denoise, x_T=x_T)
            x_0, spent = planned.run(denoise, x_T, partial(draw, generator=generator))
            found, wanted = (torch.cat([x, x_T], 1).flatten(1) for x in (x_0, true))
            values.append(1000 * sliced_wasserstein(found, wanted, generator))
        return {"sliced Wasserstein distance x 1000": statistics.median(values)}, spent


def draw(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, dtype=like.dtype, generator=generator)


def sliced_wasserstein(x: Tensor, y: Tensor, generator: torch.Generator) -> float:
    """Root mean square over random directions of the Wasserstein-2 distance of projections; x, y `[N, D]`."""
    directions = torch.randn(x.shape[1], PROJECTIONS, dtype=x.dtype, generator=generator)
    directions /= directions.norm(dim=0)
    sorted_x, sorted_y = ((points @ directions).sort(0).values for points in (x, y))
    return (sorted_x - sorted_y).square().mean().sqrt().item()


def trained(path: str, settings: BenchConfig) -> Solve:
    """The run's validation images, scored by all metrics."""
    checkpoint, device = find_checkpoint(path), pick_device(settings.device)
    model = load(checkpoint, device=device)
    batch = next(eval_batches(open_split(model.config.data, "val"), batch_size=settings.num_images)).to(device)
    index, target = batch.index.tolist(), to_bytes(batch.target)
    print(f"{checkpoint}, {len(target)} validation images")

    def solve(**how: Any) -> tuple[dict[str, float], int]:
        samples = sample(model, batch.source, index=index, mask=batch.mask, label=batch.label, **how)
        scores = evaluate(target, to_bytes(samples.x_0), settings.metrics)["metrics"]
        return {name: float(scores[name]["mean"]) for name in settings.metrics}, samples.nfe

    return solve


def tables(solve: Solve, ways: Sequence[str], grids: Sequence[str]) -> None:
    """Prints a table for every score."""
    every = list(itertools.product(ways, grids, BUDGETS))
    found = {
        (way, grid, nfe): solve(nfe=nfe, grid="" if grid == OWN else grid, **WAYS[way])
        for way, grid, nfe in tqdm(every)
    }
    for title in next(iter(found.values()))[0]:
        print(f"\n{title}\n\n| sampler | {' | '.join(map(str, BUDGETS))} |\n|{'---|' * (1 + len(BUDGETS))}")
        for way, grid in itertools.product(ways, grids):
            row = [(nfe, *found[way, grid, nfe]) for nfe in BUDGETS]
            cells = [f"{scores[title]:.4g}" + f" ({spent})" * (spent != nfe) for nfe, scores, spent in row]
            print(f"| {way if grid == OWN else f'{way}, {grid}'} | {' | '.join(cells)} |")


def main(argv: Sequence[str]) -> int:
    path = argv[0] if argv and not argv[0].startswith("-") else ""
    settings, _ = from_flags(BenchConfig, argv[bool(path) :])
    ways = settings.samplers or tuple(WAYS)
    for name in ways:
        choose(WAYS, name, "sampler")
    for name in settings.grids:
        choose({OWN: None, **GRIDS}, name, "grid")
    if path:
        tables(trained(path, settings), ways, settings.grids or (OWN,))
    for name, bridge in {} if path else BRIDGES.items():
        print(f"\n{name}")
        tables(Mixture(Bridge(bridge), settings.seeds).solve, ways, settings.grids or tuple(GRIDS))
    return 0


if __name__ == "__main__":
    run(main)
