"""What commands that train share: where a run begins, what it is remembered by, and how it ends (`main`)."""

import argparse
import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from datasets import Augmentation, PairedData, eval_batches, train_batches
from datasets.base import Pairs
from ddbm.files import checkpoint, stores
from ddbm.files.storage import read_json, write_whole
from ddbm.files.stores import Mirror
from ddbm.ranks import distributed
from ddbm.ranks.distributed import pick_device
from ddbm.settings import from_flags, to_dict
from ddbm.symmetry.groups import GROUPS
from ddbm.training import averages, loop
from ddbm.training.objectives import Objective
from ddbm.training.trainer import VALIDATION_BATCH, Trainer

from .common import find_checkpoint, locked, open_splits, own_folder, say

C = TypeVar("C")  # a config with sections `data` and `train`

EXTRA = {
    "--resume": "checkpoint or run that a new run begins from; started again it goes on with its own newest one",
    "--begin_from": "the same, but only its weights, such as published ones: step 0, other data, bridge and settings",
}
GOES_ON = (
    "log.jsonl",
    "run.json",
    "config.json",
    "codec.json",
    "best.json",
    "wandb_id",
    f"*{checkpoint.MANIFEST}",
)  # of a run
SWITCHES = {"--restart": "begin anew; what is in run_dir is moved to run_dir.old1, .old2, ..."}
ROOT = Path(__file__).resolve().parent.parent
STATUS = "git --git-dir=.git --no-optional-locks -c core.fsmonitor=false status --porcelain=v2 --branch -uno".split()
PACKAGES = {"ddbm", "torch", "torchvision", "numpy", "safetensors"}


class Built(NamedTuple):
    """What a command makes of its settings and data.

    config: the settings, no longer open where they depended on the data or the machine; what: the model in words;
    described: what else the header of a checkpoint says; report: measures before and after the training; prepare: what
    a new run does before its first step; pairs: what batches are made of, if not of the data's own pairs.
    """

    config: Any
    model: Any
    objective: Objective
    what: str
    evaluation: loop.Evaluation | None = None
    described: dict[str, Any] | None = None
    report: Callable[[Trainer, Path], None] = lambda training, run_dir: None
    prepare: Callable[[], None] = lambda: None
    pairs: Pairs | None = None


@dataclass(frozen=True)
class Program:
    """A command that trains: all in which it differs from others.

    module: its name; name: of a config's run, in workdir/; build: from config and further words, training and
    validation pairs, and the device.
    """

    module: str
    parse: Callable[[Sequence[str]], tuple[Any, argparse.Namespace]]
    name: Callable[[Any], str]
    build: Callable[[Any, argparse.Namespace, PairedData, PairedData, torch.device], Built]


def move_aside(run_dir: Path) -> None:
    """Gives an old run another name, so that a new one can begin; refuses what is no run."""
    if any(p.name != ".lock" for p in run_dir.iterdir()) and not (run_dir / "config.json").is_file():
        raise ValueError(f"{run_dir} is not the directory of a run: --restart leaves it alone")
    number = 1
    while (old := run_dir.with_name(f"{run_dir.name}.old{number}")).exists():
        number += 1
    run_dir.rename(old)
    print(f"moved {run_dir} to {old}")


# the checkpoint to begin from, None for step 0; of a new run its origin, another run's checkpoint or nothing
Start = tuple[Path | None, dict[str, Any] | None]


def starting_point(mirror: Mirror, resume: str, weights_alone: bool) -> Start:
    """Where to begin; nothing that exists is ever trained over, and no two runs are mixed.

    A run that began from `resume` goes on with its own newest checkpoint. Of a run in a store that one is fetched.
    """
    run_dir = mirror.path
    mirror.fetch(*GOES_ON)
    checkpoint.put_back(run_dir / "checkpoints")
    newest = checkpoint.latest(run_dir, say, lambda path: mirror.fetch(*GOES_ON, f"checkpoints/{path.name}/*"))
    damaged = newest is None and bool(checkpoint.steps(run_dir))
    if not resume:
        if damaged:
            raise ValueError(f"no checkpoint of {run_dir} is whole: --restart begins anew and keeps what is there")
        return newest, {} if newest is None else None
    place, origin = stores.full(resume), origin_of(run_dir)
    if newest is not None and place == origin.get("given"):
        return newest, None
    chosen = find_checkpoint(resume)
    if stores.full(stores.address(chosen)).startswith(f"{stores.full(mirror.place)}/"):
        if weights_alone:
            raise ValueError(f"{chosen} is of {run_dir} itself: choose another --run_dir to begin from its weights")
        if newest is not None and checkpoint.read_header(newest)["step"] > checkpoint.read_header(chosen)["step"]:
            raise ValueError(f"{run_dir} already has {newest.name}, later than {chosen}: choose another --run_dir")
        return chosen, None
    digest = hashlib.sha256((chosen / checkpoint.MANIFEST).read_bytes()).hexdigest()
    if newest is not None and digest == origin.get("sha256"):
        return newest, None
    if newest is not None or damaged:
        begun = f"began from {origin['given']}" if origin else "has checkpoints of its own"
        raise ValueError(
            f"{run_dir} {begun}, and {chosen} is another run's: choose another --run_dir, or leave the checkpoint out"
        )
    return chosen, {"given": place, "checkpoint": stores.address(chosen), "sha256": digest}


def origin_of(run_dir: Path) -> dict[str, Any]:
    """The checkpoint of another run that this one began from, as `run.json` remembers it; empty if there is none."""
    try:
        starts = read_json(run_dir / "run.json")["starts"]
        return dict(next(start["origin"] for start in reversed(starts) if "origin" in start))
    except (FileNotFoundError, StopIteration, ValueError, KeyError, TypeError):
        return {}


def provenance(argv: Sequence[str], device: torch.device, ranks: int) -> dict[str, Any]:
    """What a start should be remembered by; argv: the whole command, `["python", "-m", "scripts.train", ...]`."""
    installed = {d.metadata["Name"]: d.version for d in metadata.distributions() if d.metadata["Name"] in PACKAGES}
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(argv),
        "directory": str(Path.cwd()),
        "ranks": ranks,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "versions": {"python": platform.python_version(), "cuda": torch.version.cuda} | installed,
        "git": git_state(ROOT) or {"commit": os.environ.get("DDBM_COMMIT")},  # which a container's image knows
        "hostname": platform.node(),
    }


def write_start(run_dir: Path, start: dict[str, Any]) -> None:
    """Adds a start to `run.json`; a file that cannot be understood is set aside as `run.json.damaged`."""
    path = run_dir / "run.json"
    try:
        starts = [*read_json(path)["starts"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        starts = []
        if path.exists():
            path.replace(path.with_name("run.json.damaged"))
            print(f"warning: {path} is damaged: moved to run.json.damaged", file=sys.stderr)
    write_whole(path, json.dumps({"starts": [*starts, start]}, indent=2).encode())


def git_state(root: Path) -> dict[str, Any] | None:
    """Commit of the checkout at `root`, and whether its tracked files differ; None where there is no such checkout.

    A package installed into an environment inside somebody's checkout is not part of that checkout.
    """
    here = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}  # inside a hook they name another checkout
    try:
        done = subprocess.run(STATUS, cwd=root, env=here, input=b"", capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    commit, *lines = done.stdout.decode(errors="replace").splitlines()  # "# branch.oid COMMIT", "# ...", files
    return {"commit": commit.split()[-1], "dirty": any(not line.startswith("#") for line in lines)}


def refuse_unlike(data: PairedData, held_out: PairedData) -> None:
    """Raises ValueError for validation pairs that the network cannot take, or whose loss would mean something else."""
    for side in ("source", "target"):
        here, there = (getattr(part, f"{side}_channels") for part in (data, held_out))
        if here != there:
            name = held_out.names[held_out.first]
            raise ValueError(
                f"{name} of {held_out.split}: {side} has {there} channels, those of train have {here}; convert files"
            )


def marks(data: PairedData, split: str) -> dict[str, float | str]:
    """What tells the data from others, wherever they lie: how many pairs, their names, and the means of the first."""
    names = hashlib.sha256("\n".join(data.names).encode(errors="surrogateescape")).hexdigest()[:16]
    first = data.get(data.first, None)
    means = {f"{split}_source_mean": first.source.mean().item(), f"{split}_target_mean": first.target.mean().item()}
    return {f"{split}_pairs": len(data), f"{split}_names": names, **means}


def parse(
    cls: type[C], argv: Sequence[str], tables: Mapping[str, Sequence[str]], extra: Mapping[str, str] = EXTRA
) -> tuple[C, argparse.Namespace]:
    """The settings of a command line, the place of its data made whole; extra: flags that are no settings."""
    config, given = from_flags(cls, argv, extra, SWITCHES, tables)
    data = own_folder(config.data)  # type: ignore[attr-defined]
    if data.data_dir:  # so that the run finds its data from any directory
        data = replace(data, data_dir=stores.full(data.data_dir))
    return replace(config, data=data), given  # type: ignore[type-var]


def main(program: Program, argv: Sequence[str]) -> int:
    begun = time.monotonic()
    config, extra = program.parse(argv)
    settings = config.train
    augmentation = Augmentation.of(settings, config.data)
    if bool(extra.restart) + bool(extra.resume) + bool(extra.begin_from) > 1:
        raise ValueError("--restart begins anew, --resume and --begin_from from a checkpoint: give one of them")
    world = distributed.world_of(os.environ)
    device = pick_device(settings.device, settings.tf32, world)
    distributed.start(world, device, settings.rendezvous_timeout)
    data, held_out = open_splits(config.data, "train", "val")
    refuse_unlike(data, held_out)
    GROUPS[settings.augment].check_size(*data.size)
    tolerance = getattr(settings, "align_tolerance", 0)
    if 2 * max(settings.augment_shift, tolerance) >= min(data.size):
        raise ValueError(
            f"--augment_shift {settings.augment_shift}, --align_tolerance {tolerance}: that moves most of an image of "
            f"{data.size[0]}x{data.size[1]} pixels out of sight; give less than half a side"
        )
    torch.manual_seed(settings.seed)
    built = program.build(config, extra, data, held_out, device)
    config, model = built.config, built.model
    mirror = Mirror(settings.run_dir or f"workdir/{program.name(config)}")
    run_dir = mirror.path
    told = marks(data, "train") | marks(held_out, "val")
    training = Trainer(config, model, built.objective, device, told, built.described)
    with ExitStack() as stack:  # rank 0 holds the folder

        def begin() -> Start:
            if extra.restart and mirror.address:
                raise ValueError("--restart moves a local run aside, not one in a store: choose another --run_dir")
            if extra.restart and run_dir.exists():
                with locked(run_dir):
                    move_aside(run_dir)
            stack.enter_context(locked(run_dir))
            return starting_point(mirror, extra.resume or extra.begin_from, bool(extra.begin_from))

        path, origin = distributed.from_main(begin)
        new = origin is not None
        if path is None or (new and extra.begin_from):
            built.prepare()
        if path is not None:
            here = path if path.is_dir() else stores.fetched(stores.address(path))  # on other machines
            weights_alone = new and bool(extra.begin_from)
            changed = training.begin_from(here) if weights_alone else training.restore(here, new)
            owed = distributed.from_main(lambda: any(loop.owed(training, run_dir)))
            if training.step >= settings.total_steps and not owed:
                what = f"nothing to train, {stores.address(path)} is" if new else f"{mirror.place} is finished"
                if not new:
                    built.report(training, run_dir)
                anew = "" if new else ", or give --restart to begin anew"
                done = f"{training.step} of {settings.total_steps} steps are done"
                say(f"{what}: {done}. Raise --total_steps to go on{anew}")
                return 0
            changed = [line for line in changed if not line.startswith("run_dir: ")]  # its name, not a setting
            others = f" with other settings: {'; '.join(changed)}" if changed else ""
            say(f"{'the weights of' if weights_alone else 'continuing'} {stores.address(path)}{others}")
        if distributed.is_main():
            mirror.remove(averages.outdated(mirror.names(), 0 if new else training.step))
            write_whole(run_dir / "config.json", json.dumps(to_dict(config), indent=2).encode())
            started = provenance(["python", "-m", program.module, *argv], device, distributed.size())
            write_start(run_dir, started | {"step": training.step} | ({"origin": origin} if new else {}))

        ranks = "" if distributed.size() == 1 else f" x {distributed.size()} ranks ({settings.parallel})"
        passes = training.share // training.micro
        say(
            f"{config.data.dataset}: {len(data)} training and {len(held_out)} validation pairs of "
            f"{data.size[0]}x{data.size[1]}; {built.what}, "
            f"{sum(p.numel() for p in model.network.parameters()) / 1e6:.2f} M parameters; {device}{ranks}"
            + (f"; a step is {passes} passes of {training.micro} images a rank" if passes > 1 else "")
        )
        built.report(training, run_dir)
        ours = {"rank": distributed.rank(), "ranks": distributed.size()}
        batches = train_batches(
            built.pairs or data, batch_size=settings.batch_size, seed=settings.seed, start_step=training.step,
            augmentation=augmentation,
            workers=settings.workers, skip=config.data.skip_unreadable, **ours,
        )  # fmt: skip
        for part in (data, held_out):
            if part.skipped:
                part.skipped.write_into(run_dir)
        validation = partial(
            eval_batches, held_out, batch_size=settings.microbatch or VALIDATION_BATCH,
            skip=config.data.skip_unreadable, **ours,
        )  # fmt: skip
        finished = loop.train(
            training, batches, validation, run_dir,
            evaluation=built.evaluation, begun=begun, sent=mirror.send,
        )  # fmt: skip
        if finished:
            built.report(training, run_dir)
            if distributed.is_main():
                mirror.send()
    if not finished:
        say(f"stopped and saved at step {training.step}; the same command continues")
        return loop.REQUEUE
    say(f"finished {training.step} steps: {mirror.place}")
    return 0
