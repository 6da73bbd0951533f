"""Which way to symmetry pays? `python -m benchmarks.symmetry`: histology, equal training time, several seeds.

Each way to train gets the steps that fit into the time of `--steps` plain steps; the step times are medians of steps
that alternate in one process, so that other work on the machine does not favour one of them. Then, on the validation
patches: the loss, PSNR and SSIM against the target, and the equivariance error of the sampler under D4 with noise that
turns with the source; each also with averaging and canonical frames on top. Prints a table of means and standard
deviations over seeds, and writes every number to `--out`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from datasets import Batch, eval_batches, open_data, train_batches
from ddbm.config import BridgeConfig, Config, DataConfig, ModelConfig, TrainConfig
from ddbm.model import SYMMETRIZE, BridgeModel, ImageShape, sample
from ddbm.ranks.devices import pick_device
from ddbm.symmetry.averaging import equivariance_error
from ddbm.symmetry.groups import GROUPS
from ddbm.training.trainer import Trainer
from evaluations.evaluator import evaluate
from scripts.common import to_bytes

from .layers import step_time

GROUP = "D4"
PLAIN = ModelConfig(
    model_channels=32,
    channel_mult=(1, 2, 3),
    num_res_blocks=1,
    attention_resolutions=(8,),
    num_head_channels=32,
    dropout=0,
)
TURNED = 2  # validation patches on which the equivariance error is measured


@dataclass(frozen=True)
class Way:
    """A way to train."""

    layers: str = "plain"
    group: str = "none"
    augment: str = "none"
    regularization_weight: float = 0.0


WAYS = {
    "plain": Way(),
    "plain + augment": Way(augment=GROUP),
    "tied": Way("tied", GROUP),
    "regular": Way("regular", GROUP),
    "plain + Reg": Way("plain", GROUP, regularization_weight=1.0),
}


def trainer(way: Way, seed: int, device: torch.device) -> Trainer:
    config = Config(
        data=DataConfig(image_size="32"),
        bridge=BridgeConfig(schedule="vp"),
        model=replace(PLAIN, layers=way.layers, group=way.group),
        train=TrainConfig(
            batch_size=16, lr=1e-3, lr_warmup_steps=50, optimizer="adam", seed=seed, augment=way.augment,
            regularization_weight=way.regularization_weight, ema_sigma_rel=(),
        ),
    )  # fmt: skip
    torch.manual_seed(seed)
    return Trainer(config, BridgeModel(config, ImageShape(3, 3, 32, 32, 0)), device)


def training_batches(way: Way, seed: int) -> Any:
    data = open_data("histology", "train", image_size="32")
    return train_batches(data, batch_size=16, seed=seed, elements=GROUPS[way.augment].elements)


def step_times(device: torch.device, rounds: int = 9) -> dict[str, float]:
    """Median seconds of a step of every way, the steps of all ways taking turns."""
    trainers = {name: trainer(way, 0, device) for name, way in WAYS.items()}
    batch = next(training_batches(WAYS["plain"], 0))
    times = [{name: step_time(t, batch) for name, t in trainers.items()} for _ in range(rounds + 1)][1:]
    return {name: statistics.median(row[name] for row in times) for name in WAYS}


def measure(trained: Trainer, batch: Batch, nfe: int) -> dict[str, dict[str, float]]:
    """For every way to sample: PSNR, SSIM, equivariance error; the budget grows with the price of averaging."""
    model = trained.model.eval()
    model.network = trained.averaged_network()  # type: ignore[assignment]
    found = {}
    for symmetrize in SYMMETRIZE:
        price = len(GROUPS[GROUP]) if symmetrize == "average" else 1

        def run(source: torch.Tensor, symmetrize: str = symmetrize, budget: int = nfe * price) -> torch.Tensor:
            parts = [
                sample(
                    model,
                    part,
                    sampler="dbim",
                    order=1,
                    nfe=budget,
                    symmetrize=symmetrize,
                    group=GROUP,
                    index=index.tolist(),
                ).x_0
                for part, index in zip(source.split(16), torch.arange(len(source)).split(16), strict=True)
            ]
            return torch.cat(parts)

        scores = evaluate(to_bytes(batch.target), to_bytes(run(batch.source)), ("psnr", "ssim"))["metrics"]
        errors = equivariance_error(run, batch.source[:TURNED], GROUPS[GROUP])
        found[symmetrize] = {
            "psnr": scores["psnr"]["mean"],
            "ssim": scores["ssim"]["mean"],
            "error": torch.stack(list(errors.values())).mean().item(),
            "nfe": nfe * price,
        }
    return found


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: mean ± standard deviation over seeds."""

    def over_seeds(values: Sequence[float], form: str) -> str:
        spread = f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else ""
        return f"{np.mean(values):{form}}{spread}"

    lines = ["| training | steps | sampling | NFE | validation loss | PSNR (dB) | SSIM | equivariance error |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name in WAYS:
        rows = [r for r in results if r["way"] == name]
        for symmetrize in SYMMETRIZE if rows else ():
            cells = [r["samples"][symmetrize] for r in rows]
            loss = over_seeds([r["val_loss"] for r in rows], ".4f")
            lines.append(
                f"| {name} | {rows[0]['steps']} | {symmetrize} | {cells[0]['nfe']} | {loss} "
                f"| {over_seeds([c['psnr'] for c in cells], '.2f')} | {over_seeds([c['ssim'] for c in cells], '.3f')} "
                f"| {np.mean([c['error'] for c in cells]):.1e} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="plain steps whose time every way gets")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--nfe", type=int, default=10, help="evaluations of dbim (times |G| with averaging)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("workdir/benchmark_symmetry.json"))
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    validation = open_data("histology", "val", image_size="32")
    batch = next(iter(eval_batches(validation, batch_size=len(validation)))).to(device)

    seconds = step_times(device)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    print(f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("seconds a step: " + ", ".join(f"{name} {value:.3f}" for name, value in seconds.items()), flush=True)
    results: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        for name, way in WAYS.items():
            steps = round(arguments.steps * seconds["plain"] / seconds[name])
            trained = trainer(way, seed, device)
            for pairs in tqdm(islice(training_batches(way, seed), steps), total=steps, desc=f"{name}, seed {seed}"):
                trained.train_step(pairs)
            val_loss = trained.validation_loss([batch])
            samples = measure(trained, batch, arguments.nfe)
            results.append({"way": name, "seed": seed, "steps": steps, "val_loss": val_loss, "samples": samples})
            content = {"machine": machine, "torch": torch.__version__, "step_seconds": seconds, "results": results}
            arguments.out.write_text(json.dumps(content, indent=1))
    print(table(results))


if __name__ == "__main__":
    main()
