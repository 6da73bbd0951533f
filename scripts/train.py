"""Trains a bridge: `python -m scripts.train --dataset NAME --schedule NAME [--flag value ...]` (see train_ddbm.sh)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from datasets import PairedData, eval_batches, train_batches
from ddbm import checkpoint, trainer
from ddbm.config import Config
from ddbm.groups import GROUPS
from ddbm.model import BridgeModel, ImageShape
from ddbm.settings import from_flags, to_dict

from .common import TABLES, make_directory, open_split, pick_device, run, write_whole

EXTRA = {
    "--resume": "checkpoint or run to continue from (default: the newest of run_dir)",
}
SWITCHES = {"--restart": "begin anew; what is in run_dir is moved to run_dir.old1, .old2, ..."}


def warn(message: str) -> None:
    print(f"warning: {message}")


def starting_point(run_dir: Path, resume: str, restart: bool) -> Path | None:
    """The checkpoint to begin from, or None for a new run; nothing that exists is ever trained over."""
    if restart:
        if resume:
            raise ValueError("--restart begins anew and cannot be combined with a checkpoint")
        if run_dir.exists():
            if run_dir.is_file() or (any(run_dir.iterdir()) and not (run_dir / "config.json").is_file()):
                raise ValueError(f"{run_dir} is not the directory of a run: --restart leaves it alone")
            number = 1
            while (old := run_dir.with_name(f"{run_dir.name}.old{number}")).exists():
                number += 1
            run_dir.rename(old)
            print(f"moved {run_dir} to {old}")
        return None
    newest = checkpoint.latest(run_dir, warn)
    if not resume:
        if newest is None and checkpoint.steps(run_dir):
            raise ValueError(f"no checkpoint of {run_dir} is whole: --restart begins anew and keeps what is there")
        return newest
    chosen = checkpoint.find(Path(resume), warn)
    if newest is not None and newest.name > chosen.name:
        raise ValueError(f"{run_dir} already has {newest.name}, later than {chosen}: choose another --run_dir")
    return chosen


def image_shape(data: PairedData) -> ImageShape:
    return ImageShape(data.target_channels, data.source_channels, *data.size, data.num_classes)


def main(argv: Sequence[str]) -> int:
    config, extra = from_flags(Config, argv, EXTRA, SWITCHES, TABLES)
    settings = config.train
    if config.data.data_dir:  # so that the run finds its data from any directory
        here = str(Path(config.data.data_dir).expanduser().resolve())
        config = replace(config, data=replace(config.data, data_dir=here))
    if config.model.layers != "plain" and config.model.group == "none":
        raise ValueError(f"--layers {config.model.layers} needs a group: add --group, such as D4")
    device = pick_device(settings.device)
    data, held_out = open_split(config.data, "train"), open_split(config.data, "val")
    augment = GROUPS[settings.augment]
    augment.check_size(*data.size)
    torch.manual_seed(settings.seed)
    model = BridgeModel(config, image_shape(data))

    run_dir = Path(settings.run_dir or f"workdir/{config.data.dataset}_{config.bridge.schedule}")
    training = trainer.Trainer(config, model, device)
    start = starting_point(run_dir, extra.resume, extra.restart)
    if start is not None:
        changed = training.restore(start)
        if training.step >= settings.total_steps:
            print(
                f"{run_dir} is finished: {training.step} of {settings.total_steps} steps are done. "
                "Raise --total_steps to go on, or give --restart to begin anew"
            )
            return 0
        print(f"continuing {start}" + (f" with other settings: {'; '.join(changed)}" if changed else ""))
    make_directory(run_dir)
    header = json.dumps(to_dict(config), indent=2).encode()
    write_whole(run_dir / "config.json", lambda file: file.write(header))

    parameters = sum(p.numel() for p in model.network.parameters())
    print(
        f"{config.data.dataset}: {len(data)} training and {len(held_out)} validation pairs of "
        f"{data.size[0]}x{data.size[1]}; {config.model.layers} layers, group {config.model.group}, "
        f"{parameters / 1e6:.2f} M parameters; {device}"
    )
    batches = train_batches(
        data,
        batch_size=settings.batch_size,
        seed=settings.seed,
        start_step=training.step,
        elements=augment.elements,
        workers=settings.workers,
    )
    stopped = trainer.train(training, batches, lambda: eval_batches(held_out, batch_size=settings.batch_size), run_dir)
    if stopped:
        print(f"stopped and saved at step {training.step}; the same command continues")
        return 128 + stopped
    print(f"finished {training.step} steps: {run_dir}")
    return 0


if __name__ == "__main__":
    run(main)
