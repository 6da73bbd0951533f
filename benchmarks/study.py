"""Which way to symmetry pays? `python -m benchmarks.study`: histology, equal training time, several seeds.

Each way to train gets the steps that fit into the time of `--steps` plain steps, by medians of steps that take turns.
Each is a run in `--out`; measured on the validation patches, also with averaging and canonical frames on top. Prints
means and standard deviations over seeds. Stopped or killed, the same command goes on.
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
from ddbm.ranks.distributed import pick_device
from ddbm.settings import Settings, from_flags, setting, to_dict
from ddbm.symmetry.averaging import equivariance_error
from ddbm.symmetry.groups import GROUPS
from ddbm.training import logger
from evaluations.evaluator import evaluate
from evaluations.images import to_bytes
from scripts import train
from scripts.common import open_split, run

from .cost import interleaved, stepping

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
FORMS = {"loss": ".4f", "psnr": ".2f", "ssim": ".3f", "error": ".1e"}  # of the numbers in the table
TURNED = 2  # validation patches on which the equivariance error is measured


@dataclass(frozen=True)
class StudyConfig(Settings):
    """The study"""

    steps: int = setting(400, "plain steps whose time every way gets", above=0)
    seeds: int = setting(3, "trainings of every way", above=0)
    nfe: int = setting(10, "evaluations of dbim (times |G| with averaging)", above=0)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    out: str = setting("workdir/study", "directory of the study")


def measure(run_dir: Path, settings: StudyConfig) -> dict[str, Any]:
    """The validation loss of a finished run, and for every way to sample PSNR, SSIM, equivariance error and budget."""
    model = load(run_dir, device=(device := pick_device(settings.device)))
    data = open_split(model.config.data, "val")
    batch = next(eval_batches(data, batch_size=len(data))).to(device)
    found: dict[str, Any] = {"loss": [r["val_loss"] for r in logger.read(run_dir / "log.jsonl") if "val_loss" in r][-1]}
    for symmetrize in SYMMETRIZE:
        nfe = settings.nfe * (len(GROUPS[GROUP]) if symmetrize == "average" else 1)

        def draw(source: Tensor, symmetrize: str = symmetrize, nfe: int = nfe) -> Tensor:
            return sample(model, source, sampler="dbim", order=1, nfe=nfe, symmetrize=symmetrize, group=GROUP).x_0

        scores = evaluate(to_bytes(batch.target), to_bytes(draw(batch.source)), ("psnr", "ssim"))["metrics"]
        error = torch.stack(list(equivariance_error(draw, batch.source[:TURNED], GROUPS[GROUP]).values())).mean()
        psnr, ssim = scores["psnr"]["mean"], scores["ssim"]["mean"]
        found[symmetrize] = {"nfe": nfe, "psnr": psnr, "ssim": ssim, "error": error.item()}
    return found


def main(argv: Sequence[str]) -> int:
    settings, _ = from_flags(StudyConfig, argv)
    out, own = Path(settings.out), to_dict(settings) | {"out": ""}
    out.mkdir(parents=True, exist_ok=True)
    flags = {way: [*COMMON.split(), *flags.split(), "--device", settings.device] for way, flags in WAYS.items()}
    if not (out / "study.json").exists():
        times = interleaved({way: stepping(train.parse(flags[way])[0]) for way in WAYS}, 9)
        medians = {way: float(np.median(seconds)) for way, seconds in times.items()}
        write_whole(out / "study.json", json.dumps({"settings": own, "seconds": medians}).encode())
    begun = json.loads((out / "study.json").read_text())
    if begun["settings"] != own:
        raise ValueError(f"{out} holds a study with {begun['settings']}: give the same flags, or another --out")
    seconds, results = begun["seconds"], {way: list[dict[str, Any]]() for way in WAYS}
    print("seconds a step: " + ", ".join(f"{way} {value:.3f}" for way, value in seconds.items()), flush=True)
    steps = {way: str(round(settings.steps * seconds["plain"] / seconds[way])) for way in WAYS}
    for seed in range(settings.seeds):
        for way in WAYS:
            run_dir = out / f"{way.replace(' + ', '_')}_{seed}"
            if not (run_dir / "study.json").exists():
                its = ["--total_steps", steps[way], "--seed", str(seed), "--run_dir", str(run_dir)]
                if code := train.main([*flags[way], *its]):
                    return code
                write_whole(run_dir / "study.json", json.dumps(measure(run_dir, settings)).encode())
            results[way].append(json.loads((run_dir / "study.json").read_text()))
    print(f"| training | steps | sampling | NFE | {' | '.join(FORMS)} |\n{'|---' * (4 + len(FORMS))}|")
    for way, seeds in results.items():
        for symmetrize in SYMMETRIZE:
            cells = [way, steps[way], symmetrize, str(seeds[0][symmetrize]["nfe"])]
            for name, form in FORMS.items():
                values = [(found | found[symmetrize])[name] for found in seeds]
                spread = f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else ""
                cells.append(f"{np.mean(values):{form}}{spread}")
            print(f"| {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    run(main)
