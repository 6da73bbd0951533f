"""Which way to symmetry pays? `python -m benchmarks.study`: histology, equal training time, several seeds.

Each way to train gets the steps that fit into the time of `--steps` plain steps; the step times are medians of steps
that take turns in one process, so that other work on the machine favours none. Each is a training run in `--out`. Then,
on the validation patches: the loss, PSNR and SSIM against the target, and the equivariance error of the sampler under
D4 with noise that turns with the source; each also with averaging and canonical frames on top. Prints means and
standard deviations over seeds; every number stays in `--out`. Stopped or killed, the same command goes on.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets import eval_batches
from ddbm import load, sample
from ddbm.files.storage import write_whole
from ddbm.model import SYMMETRIZE
from ddbm.settings import Settings, from_flags, setting, to_dict
from ddbm.symmetry.averaging import equivariance_error
from ddbm.symmetry.groups import GROUPS
from ddbm.training import logger
from evaluations.evaluator import evaluate
from scripts import train
from scripts.common import open_split, run, to_bytes

from .cost import interleaved, make_trainer, stepping

GROUP = "D4"
COMMON = (
    "--dataset histology --schedule vp --image_size 32 --model_channels 32 --channel_mult 1,2,3 --num_res_blocks 1 "
    "--attention_resolutions 8 --num_head_channels 32 --dropout 0 --batch_size 16 --lr 1e-3 --lr_warmup_steps 50 "
    "--optimizer adam --ema_sigma_rel ,"
)
WAYS = {
    "plain": "--layers plain --group none",
    "plain + augment": f"--layers plain --group none --augment {GROUP}",
    "tied": f"--layers tied --group {GROUP}",
    "regular": f"--layers regular --group {GROUP}",
    "plain + Reg": f"--layers plain --group {GROUP} --regularization_weight 1",
}
TURNED = 2  # validation patches on which the equivariance error is measured


@dataclass(frozen=True)
class StudyConfig(Settings):
    """The study"""

    steps: int = setting(400, "plain steps whose time every way gets", above=0)
    seeds: int = setting(3, "trainings of every way", above=0)
    nfe: int = setting(10, "evaluations of dbim (times |G| with averaging)", above=0)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    out: str = setting("workdir/study", "directory of the study")


def flags_of(way: str, settings: StudyConfig) -> list[str]:
    return [*COMMON.split(), *WAYS[way].split(), "--device", settings.device]


def step_times(settings: StudyConfig, rounds: int = 9) -> dict[str, float]:
    """Median seconds of a step of every way."""
    steps = {way: stepping(make_trainer(train.parse(flags_of(way, settings))[0])) for way in WAYS}
    return {way: float(np.median(times)) for way, times in interleaved(steps, rounds).items()}


def measure(run_dir: Path, settings: StudyConfig) -> dict[str, Any]:
    """The validation loss of a finished run, and for every way to sample PSNR, SSIM, equivariance error and budget."""
    model = load(run_dir).to(train.pick_device(settings.device))
    data = open_split(model.config.data, "val")
    batch = next(iter(eval_batches(data, batch_size=len(data)))).to(next(model.parameters()).device)
    found: dict[str, Any] = {"loss": [r["val_loss"] for r in logger.read(run_dir / "log.jsonl") if "val_loss" in r][-1]}
    for symmetrize in SYMMETRIZE:
        nfe = settings.nfe * (len(GROUPS[GROUP]) if symmetrize == "average" else 1)

        def draw(source: Tensor, symmetrize: str = symmetrize, nfe: int = nfe) -> Tensor:
            how = dict(sampler="dbim", order=1, nfe=nfe, symmetrize=symmetrize, group=GROUP)
            indices = torch.arange(len(source)).split(16)
            parts = zip(source.split(16), indices, strict=True)
            return torch.cat([sample(model, part, index=index.tolist(), **how).x_0 for part, index in parts])  # type: ignore[arg-type]

        scores = evaluate(to_bytes(batch.target), to_bytes(draw(batch.source)), ("psnr", "ssim"))["metrics"]
        error = torch.stack(list(equivariance_error(draw, batch.source[:TURNED], GROUPS[GROUP]).values())).mean()
        means = {name: scores[name]["mean"] for name in ("psnr", "ssim")}
        found[symmetrize] = {"nfe": nfe, **means, "error": error.item()}
    return found


def table(results: dict[str, list[dict[str, Any]]], steps: dict[str, int]) -> str:
    """Markdown: mean ± standard deviation over seeds."""

    def over_seeds(values: Sequence[float], form: str) -> str:
        spread = f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else ""
        return f"{np.mean(values):{form}}{spread}"

    lines = ["| training | steps | sampling | NFE | validation loss | PSNR (dB) | SSIM | equivariance error |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for way, seeds in results.items():
        for symmetrize in SYMMETRIZE:
            cells = [found[symmetrize] for found in seeds]
            lines.append(
                f"| {way} | {steps[way]} | {symmetrize} | {cells[0]['nfe']} "
                f"| {over_seeds([found['loss'] for found in seeds], '.4f')} "
                f"| {over_seeds([c['psnr'] for c in cells], '.2f')} | {over_seeds([c['ssim'] for c in cells], '.3f')} "
                f"| {np.mean([c['error'] for c in cells]):.1e} |"
            )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    settings, _ = from_flags(StudyConfig, argv)
    out, own = Path(settings.out), to_dict(settings) | {"out": ""}
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "study.json").exists():
        write_whole(out / "study.json", json.dumps({"settings": own, "seconds": step_times(settings)}).encode())
    begun = json.loads((out / "study.json").read_text())
    if begun["settings"] != own:
        raise ValueError(f"{out} holds a study with {begun['settings']}: give the same flags, or another --out")
    seconds, results = begun["seconds"], {way: list[dict[str, Any]]() for way in WAYS}
    print("seconds a step: " + ", ".join(f"{way} {value:.3f}" for way, value in seconds.items()), flush=True)
    steps = {way: round(settings.steps * seconds["plain"] / seconds[way]) for way in WAYS}
    for seed in range(settings.seeds):
        for way in WAYS:
            run_dir = out / f"{way.replace(' + ', '_')}_{seed}"
            if not (run_dir / "study.json").exists():
                flags = ["--total_steps", str(steps[way]), "--seed", str(seed), "--run_dir", str(run_dir)]
                if code := train.main([*flags_of(way, settings), *flags]):
                    return code
                write_whole(run_dir / "study.json", json.dumps(measure(run_dir, settings)).encode())
            results[way].append(json.loads((run_dir / "study.json").read_text()))
    print(table(results, steps))
    return 0


if __name__ == "__main__":
    run(main)
