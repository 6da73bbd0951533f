"""Which sampler, and how many evaluations: `python -m benchmarks.samplers [RUN] [--flag value ...]`.

Without RUN: a mixture of Gaussians whose denoiser is known, the sliced Wasserstein distance of samples to the truth for
every sampler and grid. With RUN, a trained run: its validation images by every sampler, scored. Prints tables and
writes a plot.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets import eval_batches
from ddbm import load, sample
from ddbm.bridges.bridge import Bridge
from ddbm.bridges.grids import GRIDS
from ddbm.bridges.samplers import SAMPLERS, solve
from ddbm.config import BridgeConfig
from ddbm.ranks.devices import pick_device
from ddbm.settings import Settings, from_flags, setting
from evaluations.evaluator import evaluate
from evaluations.metrics import METRICS
from scripts.common import find_checkpoint, open_split, run, to_bytes

BUDGETS = (5, 10, 20, 50, 119)
WAYS: dict[str, tuple[str, dict[str, float]]] = {
    "heun": ("heun", {}),
    "dbim 1": ("dbim", {"order": 1}),
    "dbim 1, eta 1": ("dbim", {"eta": 1.0}),
    "dbim 2": ("dbim", {"order": 2}),
    "dbim 3": ("dbim", {"order": 3}),
    "dbmsolver": ("dbmsolver", {}),
    "ecsi": ("ecsi", {}),
    "ecsi, churn 1": ("ecsi", {"churn": 1.0}),
    "euler_maruyama": ("euler_maruyama", {}),
}
ODE = 1000  # evaluations the adaptive flow may take
POINTS, PROJECTIONS = 20_000, 128


@dataclass(frozen=True)
class BenchConfig(Settings):
    """The benchmark"""

    num_images: int = setting(64, "RUN: validation images", above=0)
    batch_size: int = setting(64, "RUN: images at once", above=0)
    metrics: tuple[str, ...] = setting(("psnr", "ssim"), "RUN: metrics")
    seeds: int = setting(3, "mixture: draws of the noise", above=0)
    plot: str = setting("", "where the plot goes; default samplers_mixture.png or samplers_RUN.png here")
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")


@dataclass(frozen=True)
class Mixture:
    """x_T ~ N(0, 0.5² I) in the plane; x_0 given x_T: one of four Gaussians whose means turn with x_T."""

    bridge: Bridge
    deviation: float = 0.08

    def means(self, x_T: Tensor) -> Tensor:
        """`[4, B, 2, 1, 1]`."""
        turned = torch.stack([-x_T[:, 1], x_T[:, 0]], 1)
        return torch.stack([0.5 * x_T + 0.4, 0.5 * turned - 0.4, -0.3 * x_T + 0.2 * turned, 0.8 * x_T - 0.6])

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """x_0 and x_T, float64 `[count, 2, 1, 1]`."""
        x_T = 0.5 * torch.randn(count, 2, 1, 1, dtype=torch.float64, generator=generator)
        return self.target(x_T, generator), x_T

    def target(self, x_T: Tensor, generator: torch.Generator) -> Tensor:
        """A true x_0 for every x_T."""
        which = torch.randint(4, (len(x_T),), generator=generator)
        noise = torch.randn(x_T.shape, dtype=x_T.dtype, generator=generator)
        return self.means(x_T)[which, torch.arange(len(x_T))] + self.deviation * noise

    def denoise(self, x: Tensor, t: Tensor, x_T: Tensor) -> Tensor:
        """E[x_0 | x_t, x_T]: the components' posterior means by their posterior weights."""
        a, b, c = (v.reshape(-1, 1, 1, 1) for v in self.bridge.coefficients(t))
        means, variance = self.means(x_T), b**2 * self.deviation**2 + c**2
        residual = x - a * x_T - b * means
        squares = residual.square().sum(2, keepdim=True)
        weights = torch.where(variance > 0, -squares / (2 * variance), 0.0).softmax(0)
        slope = torch.where(variance > 0, b * self.deviation**2 / variance, 0.0)
        return (weights * (means + slope * residual)).sum(0)


def sliced_wasserstein(x: Tensor, y: Tensor, generator: torch.Generator) -> float:
    """Root mean square over random directions of the Wasserstein-2 distance of projections; x, y `[N, D]`."""
    directions = torch.randn(x.shape[1], PROJECTIONS, dtype=x.dtype, generator=generator)
    directions /= directions.norm(dim=0)
    sorted_x, sorted_y = ((points @ directions).sort(0).values for points in (x, y))
    return (sorted_x - sorted_y).square().mean().sqrt().item()


def on_mixture(schedule: str, seeds: int) -> Iterator[tuple[str, str, int, float]]:
    """(way, grid, evaluations, median distance of (x_0, x_T) to the truth) for every way, grid and budget."""
    pair = Mixture(Bridge(BridgeConfig(schedule=schedule)))

    def distance(draw: Callable[[Tensor, torch.Generator], Tensor]) -> float:
        values = []
        for seed in range(seeds):
            generator = torch.Generator().manual_seed(seed)
            x_0, x_T = pair.draw(POINTS, generator)
            found, true = (torch.cat([x, x_T], 1).flatten(1) for x in (draw(x_T, generator), x_0))
            values.append(sliced_wasserstein(found, true, generator))
        return statistics.median(values)

    yield "truth itself", "", 0, distance(pair.target)
    for way, (sampler, own) in {**WAYS, "ode": ("ode", {})}.items():
        adaptive = SAMPLERS[sampler].adaptive
        for grid in list(GRIDS)[: 1 if adaptive else None]:
            for nfe in (ODE,) if adaptive else BUDGETS:
                drawing = Sampling(pair, sampler, nfe, grid, own)
                value = distance(drawing)
                yield way, grid, drawing.spent, value


@dataclass
class Sampling:
    """Draws x_0 for sources x_T by a sampler, and counts the evaluations."""

    pair: Mixture
    sampler: str
    nfe: int
    grid: str
    settings: dict[str, float]
    spent: int = 0

    def __call__(self, x_T: Tensor, generator: torch.Generator) -> Tensor:
        self.spent = 0

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            self.spent += 1
            return self.pair.denoise(x, t, x_T)

        def noise(like: Tensor) -> Tensor:
            return torch.randn(like.shape, dtype=like.dtype, generator=generator)

        return solve(self.sampler, self.pair.bridge, denoise, x_T, noise, self.nfe, self.grid, **self.settings)


def mixture(settings: BenchConfig) -> None:
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for schedule in ("vp", "ve"):
        print(f"\nmixture, {schedule}: sliced Wasserstein distance x 1000 to the truth; * the sampler's own grid\n")
        print("| sampler | grid | " + " | ".join(f"{n}" for n in BUDGETS) + " |\n|" + "---|" * (2 + len(BUDGETS)))
        table: dict[tuple[str, str], list[tuple[int, float]]] = {}
        for way, grid, spent, value in on_mixture(schedule, settings.seeds):
            table.setdefault((way, grid), []).append((spent, value))
        for (way, grid), row in table.items():
            star = (
                "*"
                if way in WAYS and grid == SAMPLERS[WAYS[way][0]].grid(Bridge(BridgeConfig(schedule=schedule)).schedule)
                else ""
            )
            if len(row) == 1:
                print(f"| {way} | {grid}{star} | {row[0][1] * 1e3:.1f} with {row[0][0]} | " + " | " * len(BUDGETS[1:]))
            else:
                print(f"| {way} | {grid}{star} | " + " | ".join(f"{value * 1e3:.1f}" for _, value in row) + " |")
            if star and len(row) > 1:
                curves.setdefault(schedule, {})[way] = row
        floor = table["truth itself", ""][0][1]
        curves[schedule]["truth itself"] = [(n, floor) for n in BUDGETS]
    plot(curves, "sliced Wasserstein distance", Path(settings.plot or "samplers_mixture.png"))


def trained(path: str, settings: BenchConfig) -> None:
    checkpoint = find_checkpoint(path)
    model = load(checkpoint, device=pick_device(settings.device))
    data = open_split(model.config.data, "val")
    batches, count = [], 0
    for batch in eval_batches(data, batch_size=settings.batch_size):
        batches.append(batch)
        count += len(batch.index)
        if count >= settings.num_images:
            break
    target = np.concatenate([to_bytes(batch.target) for batch in batches])[: settings.num_images]
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {name: {} for name in settings.metrics}
    print(f"{checkpoint}, {len(target)} validation images\n")
    print("| sampler | evaluations | " + " | ".join(settings.metrics) + " |\n|" + "---|" * (2 + len(settings.metrics)))
    for way, (sampler, own) in WAYS.items():
        for nfe in BUDGETS:
            drawn = [
                sample(
                    model, inside.source, sampler=sampler, nfe=nfe, index=batch.index.tolist(), mask=inside.mask,
                    label=inside.label, **own,  # type: ignore[arg-type]
                )
                for batch in batches
                for inside in (batch.to(next(model.parameters()).device),)
            ]  # fmt: skip
            images = np.concatenate([to_bytes(samples.x_0) for samples in drawn])[: settings.num_images]
            scores = evaluate(target, images, settings.metrics)["metrics"]
            for name in settings.metrics:
                curves[name].setdefault(way, []).append((drawn[0].nfe, float(scores[name]["mean"])))
            values = " | ".join(f"{float(scores[name]['mean']):.4g}" for name in settings.metrics)
            print(f"| {way} | {drawn[0].nfe} | {values} |", flush=True)
    plot(curves, "", Path(settings.plot or f"samplers_{checkpoint.parent.parent.name}.png"))


def plot(curves: dict[str, dict[str, list[tuple[int, float]]]], quantity: str, path: Path) -> None:
    """A panel a title, a curve a sampler, evaluations from left to right; distances are logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(curves), figsize=(5.5 * len(curves), 4.2), squeeze=False)
    for panel, (title, lines) in zip(axes[0], curves.items(), strict=True):
        for way, row in lines.items():
            style = {"color": "black", "linestyle": ":"} if way == "truth itself" else {"marker": "o", "markersize": 3}
            panel.plot(*zip(*row, strict=True), label=way, **style)
        panel.set(title=title, xlabel="network evaluations", ylabel=quantity, xscale="log")
        positive = all(value > 0 for row in lines.values() for _, value in row)
        distance = title not in METRICS or not METRICS[title].higher_is_better
        panel.set_yscale("log" if distance and positive else "linear")
        panel.set_xticks(BUDGETS, [str(n) for n in BUDGETS])
        panel.minorticks_off()
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(f"\nplot: {path}")


def main(argv: Sequence[str]) -> int:
    path = argv[0] if argv and not argv[0].startswith("-") else ""
    settings, _ = from_flags(BenchConfig, argv[bool(path) :])
    trained(path, settings) if path else mixture(settings)
    return 0


if __name__ == "__main__":
    run(main)
