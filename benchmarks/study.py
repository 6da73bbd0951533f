"""What makes better pictures? `python -m benchmarks.study TASK [--flag value ...]`: arms, equal training time, seeds.

TASK: denoising, the quickstart's; staining, histology in patches of 64². An arm is a preset with some flags changed; it
gets the steps that fit into --minutes, by medians of steps that take turns with the first arm's, and one training a
seed, all arms before the next seed. Measured on the validation patches; the table's numbers are means ±
standard deviations over seeds. Results lie in study.json and a plot in study.png, in the study's directory; trained
networks do not stay. Stopped or killed, the same command goes on; --arms, --seeds may grow from one to the next.
"""

import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from datasets import Batch, eval_batches
from ddbm import load, sample, translate
from ddbm.files.storage import write_whole
from ddbm.model import BridgeModel
from ddbm.ranks.distributed import pick_device
from ddbm.settings import Settings, choose, from_flags, setting
from ddbm.symmetry.averaging import equivariance_error
from ddbm.symmetry.groups import GROUPS
from evaluations.evaluator import evaluate
from evaluations.images import to_bytes
from scripts import train
from scripts.common import open_split, run
from scripts.import_checkpoint import preset_flags

from .cost import interleaved, stepping

TASKS = {"denoising": ("denoising", ""), "staining": ("histology", "--image_size 64 --batch_size 8")}
PLAIN = "--layers plain --group none"
DECAY = "--lr 1.5e-3 --lr_decay_steps 100"
ARMS = {  # schedule, flags; the first is what the others are changed from
    "vp": ("vp", ""),
    "ve": ("ve", ""),
    "linear": ("linear", ""),
    "linear 0.25": ("linear", "--gamma_max 0.25"),
    "i2sb": ("i2sb", ""),
    "edm2": ("vp", "--backbone edm2 --lr 1e-2 --lr_decay_steps 100"),
    "decay": ("vp", DECAY),
    "learned": ("vp", "--loss_weighting learned"),
    "lognormal": ("vp", "--time_sampling lognormal"),
    "plain": ("vp", PLAIN),
    "regular": ("vp", "--layers regular"),
    "regular_wide": ("vp", "--layers regular --model_channels 88 --num_head_channels 88"),
    "i2sb, decay": ("i2sb", DECAY),
    "i2sb, learned": ("i2sb", "--loss_weighting learned"),
    "i2sb, lognormal": ("i2sb", "--time_sampling lognormal"),
    "i2sb, regular": ("i2sb", "--layers regular"),
    "linear, decay": ("linear", DECAY),
    "linear, learned": ("linear", "--loss_weighting learned"),
}
BUDGETS = (3, 5, 10, 20)  # evaluations of the sampler at which distances are measured
DRAWS, NFE = 4, 10  # of the mean, and of every sample it is the mean of
ROUNDS = 9  # of timed steps
TURNED = 2  # patches on which the equivariance error is measured
TILE = 32  # pixels a side of what features are measured on
FORMS = {  # of the numbers in the table
    "mse of the estimate at T": ".5f", f"mse of the mean of {DRAWS}": ".5f", "psnr of the mean": ".2f",
    "ssim of the mean": ".3f", "mse of a sample": ".5f", "psnr of a sample": ".2f", "ssim of a sample": ".3f",
    **{f"fd_raw, {nfe}": ".3g" for nfe in BUDGETS}, "equivariance error": ".0e",
}  # fmt: skip
Measure = Callable[[BridgeModel], dict[str, float]]
SHOWN = (f"mse of the mean of {DRAWS}", "fd_raw, 5", "fd_raw, 10")  # in the plot


@dataclass(frozen=True)
class StudyConfig(Settings):
    """The study"""

    minutes: float = setting(6.0, "training time of every arm, on a machine with nothing else to do", above=0)
    seeds: int = setting(3, "trainings of every arm", above=0)
    arms: tuple[str, ...] = setting((), "which arms, besides the first; empty: all")
    out: str = setting("workdir/study", "directory in which the task's own is made")


def tiles(images: np.ndarray) -> np.ndarray:
    """Images [N, H, W, C] in disjoint squares of TILE pixels."""
    n, height, width, channels = images.shape
    size = min(TILE, height)
    cut = images.reshape(n, height // size, size, width // size, size, channels)
    return cut.swapaxes(2, 3).reshape(-1, size, size, channels)


def measure(model: BridgeModel, batch: Batch) -> dict[str, float]:
    """The numbers of FORMS."""
    truth, found = to_bytes(batch.target), dict[str, float]()

    def draw(source: Tensor, nfe: int = NFE, seed: int = 0) -> Tensor:
        return sample(model, source, nfe=nfe, seed=seed).x_0

    def score(images: Tensor, what: str) -> None:
        metrics = evaluate(truth, to_bytes(images), ("mse", "psnr", "ssim"))["metrics"]
        found.update({f"{name} of {what}": float(metrics[name]["mean"]) for name in metrics})

    score(translate(model, batch.source, answer="mean").mean, "the estimate at T")
    draws = [draw(batch.source, seed=seed) for seed in range(DRAWS)]
    score(draws[0], "a sample")
    score(torch.stack(draws).mean(0), "the mean")
    found[f"mse of the mean of {DRAWS}"] = found["mse of the mean"]
    for nfe in BUDGETS:
        images = to_bytes(draw(batch.source, nfe))
        distance = evaluate(tiles(truth), tiles(images), ("fid",), features="raw")["metrics"]["fd_raw"]
        found[f"fd_raw, {nfe}"] = float(distance["mean"])
    errors = equivariance_error(lambda x: draw(x, BUDGETS[0]), batch.source[:TURNED], GROUPS["D4"])
    found["equivariance error"] = float(torch.stack(list(errors.values())).max())
    return {name: found[name] for name in FORMS}


def table(results: dict[str, Any], forms: dict[str, str] = FORMS) -> str:
    """Arms in lines, numbers in columns."""
    lines = [f"| arm | steps | {' | '.join(forms)} |", "|---" * (2 + len(forms)) + "|"]
    for arm, own in results.items():
        cells = [arm, str(own["steps"])]
        for name, form in forms.items():
            values = [scores[name] for scores in own["seeds"]]
            spread = f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):{form}}{spread}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(results: dict[str, Any], title: str) -> Figure:
    """A dot a training, a line at the mean of an arm; the band is the first arm's spread."""
    figure = Figure(figsize=(4 * len(SHOWN), 0.8 + 0.3 * len(results)), layout="constrained")
    figure.suptitle(title)
    for number, (name, axes) in enumerate(zip(SHOWN, figure.subplots(1, len(SHOWN)), strict=True)):
        values = [[scores[name] for scores in own["seeds"]] for own in results.values()]
        axes.axvspan(min(values[0]), max(values[0]), color="0.9")
        for row, own in enumerate(values):
            axes.plot(own, [row] * len(own), "o", color="tab:blue", alpha=0.6)
            axes.plot(np.mean(own), row, "|", color="black", markersize=14)
        axes.set_yticks(range(len(results)), list(results) if not number else [""] * len(results))
        axes.invert_yaxis()
        axes.set_xlabel(f"{name} ↓")
    return figure


def begin(arms: dict[str, list[str]], study: dict[str, Any]) -> None:
    """Gives every new arm its steps, by its steps' time next to the first arm's."""
    first, results = next(iter(arms)), study["results"]
    if new := [arm for arm in arms if arm not in results]:
        works = {arm: stepping(train.parse(arms[arm])[0]) for arm in dict.fromkeys([first, *new])}
        times = interleaved(works, ROUNDS)
        base = results[first]["seconds"] if first in results else float(np.median(times[first]))
        for arm in new:
            seconds = base * float(np.median(times[arm] / times[first]))
            steps = max(1, round(60 * study["minutes"] / seconds))
            results[arm] = {"flags": arms[arm], "seconds": seconds, "steps": steps, "seeds": []}


def carry_out(out: Path, arms: dict[str, list[str]], minutes: float, seeds: int, measure: Measure) -> dict[str, Any]:
    """Trains every arm, given by its flags, for so long with every seed; the first is timed as the measure of others.

    Returns, and keeps in study.json, of every arm (of earlier calls, too) its flags, the seconds of a step, the steps,
    and under "seeds" the numbers of every training. Raises ValueError for arms with other flags or time than before.
    """
    out.mkdir(parents=True, exist_ok=True)
    file, study = out / "study.json", dict[str, Any](minutes=minutes, results={})
    if file.exists():
        study = json.loads(file.read_text())
        other = [arm for arm, flags in arms.items() if study["results"].get(arm, {}).get("flags", flags) != flags]
        if other or study["minutes"] != minutes:
            what = f"other flags of {', '.join(other)}" if other else f"--minutes {study['minutes']}"
            raise ValueError(f"{out} holds a study with {what}: give the same, or another --out")
    results = study["results"]
    begin(arms, study)
    for seed, arm in itertools.product(range(seeds), arms):
        if seed >= len(results[arm]["seeds"]):
            run_dir, steps = out / f"{arm.replace(' ', '_')}_{seed}", str(results[arm]["steps"])
            own = ["--total_steps", steps, "--save_interval", steps, "--val_interval", steps, "--ema_snapshots", "8"]
            if train.main([*arms[arm], *own, "--seed", str(seed), "--run_dir", str(run_dir)]):
                raise ValueError(f"{run_dir}: the training was stopped; the same command goes on")
            results[arm]["seeds"].append(measure(load(run_dir, device=pick_device("auto"))))
            write_whole(file, json.dumps(study, indent=1).encode())
            shutil.rmtree(run_dir)
    return {arm: own for arm, own in results.items() if own["seeds"]}


def measured(model: BridgeModel) -> dict[str, float]:
    """`measure` on the validation patches of its data."""
    data = open_split(model.config.data, "val")
    return measure(model, next(eval_batches(data, batch_size=len(data))).to(next(model.parameters()).device))


def main(argv: Sequence[str]) -> int:
    settings, extra = from_flags(StudyConfig, argv, {"task": f"one of {', '.join(TASKS)}"})
    dataset, changed = choose(TASKS, extra.task, "task")
    for name in settings.arms:
        choose(ARMS, name, "arm")
    arms = {
        arm: [*preset_flags(f"{dataset}_{schedule}"), *changed.split(), *flags.split()]
        for number, (arm, (schedule, flags)) in enumerate(ARMS.items())
        if not number or arm in (settings.arms or ARMS)
    }
    out = Path(settings.out, extra.task)
    results = carry_out(out, arms, settings.minutes, settings.seeds, measured)
    write_whole(out / "study.png", lambda file: plot(results, extra.task).savefig(file, format="png"))
    print(table(results))
    return 0


if __name__ == "__main__":
    run(main)
