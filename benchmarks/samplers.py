"""Which sampler, and how many evaluations: `python -m benchmarks.samplers [RUN] [--flag value ...]`.

Without RUN: a mixture of Gaussians whose denoiser is known, the sliced Wasserstein distance of samples to the truth for
every sampler and grid. With RUN, a trained run: its validation images by every sampler, scored. Prints a table a
schedule or metric, where (n) says that n evaluations were spent instead, and writes a plot.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from datasets import eval_batches
from ddbm import load, sample
from ddbm.bridges.bridge import Bridge
from ddbm.bridges.grids import GRIDS
from ddbm.bridges.samplers import SAMPLERS, Plan, plan
from ddbm.config import BridgeConfig
from ddbm.ranks.devices import pick_device
from ddbm.settings import Settings, from_flags, setting
from evaluations.evaluator import evaluate
from evaluations.metrics import METRICS
from scripts.common import find_checkpoint, open_split, run, to_bytes

BUDGETS = (5, 10, 20, 50, 119)
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
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
TRUTH = "truth itself"
Rows = dict[str, list[tuple[int, float]]]  # sampler -> evaluations spent and score, for every budget


@dataclass(frozen=True)
class BenchConfig(Settings):
    """The benchmark"""

    num_images: int = setting(64, "RUN: validation images", above=0)
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

    def distance(self, seeds: int, planned: Plan | None = None) -> tuple[float, int]:
        """1000 times the distance of pairs (x_0, x_T) to true ones, the median over seeds, and the evaluations spent.

        x_0 is drawn as planned, or truly.
        """
        values, spent = [], 0
        for seed in range(seeds):
            generator = torch.Generator().manual_seed(seed)
            noise = partial(draw, generator=generator)
            x_T = 0.5 * torch.randn(POINTS, 2, 1, 1, dtype=torch.float64, generator=generator)
            true = self.target(x_T, generator)
            if planned is None:
                x_0 = self.target(x_T, generator)
            else:
                x_0, spent = planned.run(partial(self.denoise, x_T=x_T), x_T, noise)
            found, wanted = (torch.cat([x, x_T], 1).flatten(1) for x in (x_0, true))
            values.append(1000 * sliced_wasserstein(found, wanted, generator))
        return statistics.median(values), spent


def draw(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, dtype=like.dtype, generator=generator)


def sliced_wasserstein(x: Tensor, y: Tensor, generator: torch.Generator) -> float:
    """Root mean square over random directions of the Wasserstein-2 distance of projections; x, y `[N, D]`."""
    directions = torch.randn(x.shape[1], PROJECTIONS, dtype=x.dtype, generator=generator)
    directions /= directions.norm(dim=0)
    sorted_x, sorted_y = ((points @ directions).sort(0).values for points in (x, y))
    return (sorted_x - sorted_y).square().mean().sqrt().item()


def mixture(schedule: str, seeds: int) -> Rows:
    """For every sampler and grid, where a star marks the sampler's own; ode with what it needs."""
    pair = Mixture(Bridge(BridgeConfig(schedule=schedule)))
    truth, _ = pair.distance(seeds)
    rows: Rows = {TRUTH: [(nfe, truth) for nfe in BUDGETS]}
    for way, (sampler, settings) in tqdm({**WAYS, "ode": ("ode", {})}.items(), desc=schedule):
        own = pair.bridge.path.grid or SAMPLERS[sampler].grid
        for grid in [own] if sampler == "ode" else GRIDS:
            for nfe in (ODE,) if sampler == "ode" else BUDGETS:
                value, spent = pair.distance(seeds, plan(sampler, pair.bridge, nfe, grid, **settings))
                rows.setdefault(f"{way}, {grid}{' *' * (grid == own)}", []).append((spent, value))
    return rows


def trained(path: str, settings: BenchConfig) -> tuple[dict[str, Rows], str]:
    """Rows for every metric, and the name of the run."""
    checkpoint, device = find_checkpoint(path), pick_device(settings.device)
    model = load(checkpoint, device=device)
    batches = eval_batches(open_split(model.config.data, "val"), batch_size=settings.num_images)
    batch = next(batches).to(device)
    target = to_bytes(batch.target)
    print(f"{checkpoint}, {len(target)} validation images")
    panels: dict[str, Rows] = {name: {way: [] for way in WAYS} for name in settings.metrics}
    for way, (sampler, own) in tqdm(WAYS.items()):
        for nfe in BUDGETS:
            samples = sample(
                model, batch.source, sampler=sampler, nfe=nfe, index=batch.index.tolist(), mask=batch.mask,
                label=batch.label, **own,
            )  # fmt: skip
            scores = evaluate(target, to_bytes(samples.x_0), settings.metrics)["metrics"]
            for name, rows in panels.items():
                rows[way].append((samples.nfe, float(scores[name]["mean"])))
    return panels, checkpoint.parent.parent.name


def show(title: str, rows: Rows) -> None:
    print(f"\n{title}\n\n| sampler | {' | '.join(map(str, BUDGETS))} |\n|{'---|' * (1 + len(BUDGETS))}")
    for way, row in rows.items():
        cells = [f"{score:.4g}" + f" ({spent})" * (spent != n) for (spent, score), n in zip(row, BUDGETS, strict=False)]
        print(f"| {way} | {' | '.join(cells)} |")


def plot(panels: dict[str, Rows], quantity: str, path: Path) -> None:
    """A panel a title, a curve a sampler, evaluations from left to right; distances are logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(5.5 * len(panels), 4.2), squeeze=False)
    for panel, (title, rows) in zip(axes[0], panels.items(), strict=True):
        for way, row in rows.items():
            style = {"color": "black", "linestyle": ":"} if way == TRUTH else {"marker": "o", "markersize": 3}
            panel.plot(*zip(*row, strict=True), label=way, **style)
        panel.set(title=title, xlabel="network evaluations", ylabel=quantity, xscale="log")
        positive = all(score > 0 for row in rows.values() for _, score in row)
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
    if path:
        panels, name, quantity = *trained(path, settings), ""
    else:
        panels = {schedule: mixture(schedule, settings.seeds) for schedule in ("vp", "ve")}
        name, quantity = "mixture", "sliced Wasserstein distance x 1000"
    for title, rows in panels.items():
        show(f"{title} {quantity}", rows)
    if not path:  # the samplers' own grids alone
        panels = {
            title: {way: row for way, row in rows.items() if way == TRUTH or (way.endswith("*") and len(row) > 1)}
            for title, rows in panels.items()
        }
    plot(panels, quantity, Path(settings.plot or f"samplers_{name}.png"))
    return 0


if __name__ == "__main__":
    run(main)
