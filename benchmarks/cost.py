"""What does it cost? `python -m benchmarks.cost SUBJECT [--flag value ...]`: time and memory, case against case.

    layers      a training step with tied and regular layers, against plain ones
    loader      what the loader reads, against what a step takes
    sampling    `sample`, against a naive loop, with random weights
    evaluation  sets of metrics, of two files of smooth random images of 64²
    training    what happens beside the steps, with all that a thread writes for it
    loop        steps by `loop.train`, with averages, log and checkpoints, against bare steps
    ranks       steps with gradients exchanged by DDP, against those without; in a launcher:
                `python -m scripts.torchrun --standalone --nproc_per_node 2 -m benchmarks.cost ranks`

The cases of a table take turns, so that other work on the machine favours none: medians, and the extremes of the ratios
to the first case. Memory is the peak of a process that does one case alone, and how much of it came with the work. A
bare step is forward, loss, backward, clipping and AdamW.
"""

import itertools
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from datasets import Batch, open_data, train_batches
from ddbm import sample
from ddbm.bridges.samplers import plan
from ddbm.config import Config, ImageShape, parse_size
from ddbm.files import checkpoint
from ddbm.model import BridgeModel
from ddbm.ranks import distributed
from ddbm.ranks.devices import pick_device
from ddbm.settings import Settings, choose, from_flags, setting
from ddbm.symmetry.frames import Noise
from ddbm.symmetry.groups import GROUPS, IDENTITY
from ddbm.training import loop
from ddbm.training.stopping import Stop
from ddbm.training.trainer import Trainer
from evaluations.evaluator import evaluate
from evaluations.images import load_images
from scripts.common import run, say
from scripts.import_checkpoint import preset_flags
from scripts.train import parse

MIB = 2**20
NFE = 20  # of sampling
WIDER = {"C4": 2, "D4": 2.75}  # times as many channels give regular layers about the parameters of plain ones
METRICS = {"mse,psnr,ssim": "none", "fd_raw,kd_raw": "none", "inv_fd_raw_max": "H"}  # with their group
Work = Callable[[], object]


@dataclass(frozen=True)
class CostConfig(Settings):
    """The benchmark"""

    rounds: int = setting(0, "rounds; 0: the subject's own number")
    counts: tuple[int, ...] = setting(
        (), "images (sampling, evaluation), batches (loader) or steps (loop), a table for each; default: the subject's"
    )
    preset: str = setting("histology_vp", "settings of args.sh, DATASET_SCHEDULE")
    flags: str = setting("", "flags of training after these, such as '--group C4'")


# -------------------------------------------------------------------------------------------------------------- engine


@dataclass(frozen=True)
class Case:
    """make: gets all ready, warms up, and returns what is timed; images: that it works through, for a speed.

    every: it happens once in so many of the first case; notes: more columns.
    """

    make: Callable[[], Work]
    images: int = 0
    every: int = 1
    notes: dict[str, str] = field(default_factory=dict)


Cases = Mapping[str, Case]


def warm(work: Work) -> Work:
    work()
    return work


def interleaved(works: Mapping[str, Work], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of everything in every round, in turns; of several ranks the slowest's."""
    times = np.zeros((rounds, len(works)))
    for row in times:
        for column, work in enumerate(works.values()):
            distributed.barrier()
            begun = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            row[column] = time.perf_counter() - begun
    return dict(zip(works, np.max(distributed.gather(times), 0).T, strict=True))


def columns(case: Case, first: Case, times: np.ndarray, first_times: np.ndarray) -> dict[str, str]:
    """Seconds of a case; and against the first one its time, its share of what the first takes, or its speed."""
    ratios, speed = times / first_times / case.every, {}
    if case.images:
        ratios, speed = case.images / first.images / ratios, {"images/s": case.images / np.median(times)}
    spread = {"/ first": np.median(ratios), "from": ratios.min(), "to": ratios.max()}
    return {name: f"{value:.4g}" for name, value in ({"s": np.median(times)} | speed | spread).items()} | case.notes


def peak(subject: str, config: Config, folder: Path, count: int, name: str) -> dict[str, str]:
    """MiB that this process, or the GPU's allocator, held at most; and how much of it came with the work."""

    def held(most: bool) -> float:  # ru_maxrss would count the parent, too
        if torch.cuda.is_available():
            return (torch.cuda.max_memory_allocated() if most else torch.cuda.memory_allocated()) / MIB
        field = "VmHWM:" if most else "VmRSS:"
        return int(Path("/proc/self/status").read_text().split(field)[1].split()[0]) / 1024

    work = SUBJECTS[subject].cases(config, folder, count)[name].make()
    before = held(most=False)
    work()
    return {"MiB": f"{held(most=True):.0f}", "with the work": f"{held(most=True) - before:.0f}"}


def main(argv: Sequence[str]) -> int:
    settings, extra = from_flags(CostConfig, argv, {"subject": f"one of {', '.join(SUBJECTS)}"})
    subject, machine = choose(SUBJECTS, extra.subject, "subject"), f"{platform.machine()} CPU"
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else machine
    config = parse([*preset_flags(settings.preset), *settings.flags.split()])[0]
    for count in settings.counts or subject.counts:
        with tempfile.TemporaryDirectory() as folder:
            cases = subject.cases(config, Path(folder), count)
            works, first = {name: case.make() for name, case in cases.items()}, next(iter(cases))
            times = interleaved(works, settings.rounds or subject.rounds)
            words = [extra.subject, *([str(count)] if count else []), settings.preset, settings.flags, machine]
            say(f"\n{' '.join(filter(None, words))},")
            say(f"{torch.get_num_threads()} threads, {distributed.size()} ranks, torch {torch.__version__}\n")
            for name, case in cases.items():
                row = {"case": name, **columns(case, cases[first], times[name], times[first])}
                if subject.memory:
                    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                        row |= alone.submit(peak, extra.subject, config, Path(folder), count, name).result()
                if name == first:
                    say(f"| {' | '.join(row)} |\n{'|---' * len(row)}|")
                say(f"| {' | '.join(row.values())} |")
    return 0


# ------------------------------------------------------------------------------------------------------------ subjects


def make_model(config: Config) -> BridgeModel:
    """For images with three channels on both sides."""
    size = parse_size(config.data.image_size)
    if size is None:
        raise ValueError("the preset names no size of images: add --flags '--image_size N'")
    return BridgeModel(config, ImageShape(3, 3, *size, 0))


def make_trainer(config: Config) -> Trainer:
    return Trainer(config, make_model(config), pick_device(config.train.device))


def pairs(model: BridgeModel, count: int, device: torch.device) -> Batch:
    target, source = torch.rand(2, count, 3, model.images.height, model.images.width, device=device) * 2 - 1
    return Batch(target, source, torch.arange(count), None, None)


def stepping(trainer: Trainer, bare: bool = False) -> Work:
    """Training steps on random pairs; bare: without averages."""
    batch, averages = pairs(trainer.model, trainer.share, trainer.device), trainer.averages

    def step() -> None:
        trainer.averages = {} if bare else averages
        trainer.train_step(batch).item()
        trainer.averages = averages

    return warm(step)


def layers(config: Config, folder: Path, count: int) -> Cases:
    own, train = config.model, replace(config.train, ema_sigma_rel=())
    order = len(GROUPS[own.group])
    wide = int(own.model_channels * WIDER.get(own.group, 1)) // order * order
    networks = {"plain": replace(own, layers="plain", group="none")}
    networks |= {kind: replace(own, layers=kind) for kind in ("tied", "regular")}
    networks["regular_wide"] = replace(networks["regular"], model_channels=wide, num_head_channels=wide)

    def case(settings: Config) -> Case:
        parameters = dict(make_model(settings).network.named_parameters())
        kernels = sum(p.numel() for name, p in parameters.items() if "embed" not in name and p.ndim > 1)
        counts = {"parameters": sum(p.numel() for p in parameters.values()), "kernels": kernels}
        notes = {name: f"{number / 1e6:.2f} M" for name, number in counts.items()}
        return Case(lambda: stepping(make_trainer(settings)), notes=notes)

    return {kind: case(replace(config, model=network, train=train)) for kind, network in networks.items()}


def loader(config: Config, folder: Path, count: int) -> Cases:
    elements, size = GROUPS[config.train.augment].elements, config.train.batch_size

    def loading(workers: int) -> Work:
        data = open_data(split="train", **asdict(config.data))
        batches = train_batches(data, batch_size=size, seed=0, elements=elements, workers=workers)
        next(batches)
        return lambda: [next(batches) for _ in range(count)]

    loaders = {f"loader, {workers} workers": Case(partial(loading, workers), count * size) for workers in (0, 1, 2)}
    return {"step": Case(lambda: stepping(make_trainer(config)), size), **loaders}


def sampling(config: Config, folder: Path, count: int) -> Cases:
    device = pick_device(config.train.device)
    model = make_model(config).to(device).eval()
    sources = pairs(model, count, device).source

    def naive() -> None:  # with gradients
        for x_T in sources.split(1):
            plan("dbim", model.bridge, NFE).run(model.denoiser(x_T), x_T, Noise(0, [0], [IDENTITY]))

    def ours(batch: int) -> list[Tensor]:
        return [sample(model, part, nfe=NFE).x_0 for part in sources.split(batch)]

    ways: dict[str, Work] = {"naive loop": naive, "one at a time": partial(ours, 1), "sample": partial(ours, count)}
    return {name: Case(partial(warm, work), count) for name, work in ways.items()}


def evaluation(config: Config, folder: Path, count: int) -> Cases:
    paths = [folder / f"{side}.npz" for side in ("reference", "sample")]
    for seed, path in enumerate(paths):
        if not path.exists():
            coarse = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
            np.savez(path, arr_0=coarse.repeat(8, axis=1).repeat(8, axis=2))
    notes = {"files, MiB": f"{2 * count * 64 * 64 * 3 / MIB:.0f}"}

    def make(metrics: Sequence[str], group: str) -> Work:
        small = np.zeros((16, 64, 64, 3), np.uint8)
        evaluate(small, small, metrics, group=group)  # whatever is loaded once
        return lambda: evaluate(load_images(paths[0]), load_images(paths[1]), metrics, group=group)

    return {names: Case(partial(make, names.split(","), group), notes=notes) for names, group in METRICS.items()}


def training(config: Config, folder: Path, count: int) -> Cases:
    trainer, writer, s = make_trainer(config), checkpoint.Writer(), config.train
    run = loop.Run(trainer, lambda: [], folder, None, None, writer, Stop())

    def update() -> None:
        for average in trainer.averages.values():
            average.update(trainer.model.network, average.every)

    def log() -> None:
        run.losses = [torch.zeros(())] * s.log_interval
        run.write(run.recent())

    def written(submit: Callable[[Path, checkpoint.Writer], None]) -> None:
        submit(folder, writer)
        writer.wait()

    def case(work: Work, every: int) -> Case:
        return Case(partial(warm, work), every=every, notes={"once in": str(every)})

    return {
        "bare step": Case(lambda: stepping(trainer, bare=True), notes={"once in": "1"}),
        f"{len(trainer.averages)} averages": case(update, s.ema_interval),
        "a snapshot of averages": case(partial(written, trainer.snapshot), s.snapshot_interval),
        "a line of the log": case(log, s.log_interval),
        "a checkpoint": case(partial(written, trainer.save), s.save_interval),
    }


def looping(config: Config, folder: Path, count: int) -> Cases:
    """The last steps of a run; the checkpoint and the validation, of one batch, at its end are counted."""
    bare, trainer, rounds = make_trainer(config), make_trainer(config), itertools.count()
    step, batch = stepping(bare, bare=True), pairs(trainer.model, trainer.share, trainer.device)

    def by_loop() -> None:
        run_dir = folder / str(next(rounds))
        run_dir.mkdir()
        trainer.step = config.train.total_steps - count
        loop.train(trainer, itertools.repeat(batch), lambda: [batch], run_dir)

    return {"bare": Case(lambda: lambda: [step() for _ in range(count)]), "loop": Case(lambda: by_loop)}


def ranks(config: Config, folder: Path, count: int) -> Cases:
    world, images = distributed.world_of(os.environ), config.train.batch_size
    if not world.launcher:
        raise ValueError("ranks need a launcher: python -m scripts.torchrun --standalone --nproc_per_node 2 -m ...")
    share = replace(config, train=replace(config.train, batch_size=images // world.size))
    alone = stepping(make_trainer(share), bare=True)  # made before there is a group: without DDP
    distributed.start(world, distributed.device_of(str(pick_device(config.train.device)), world), 120)
    return {"alone": Case(lambda: alone), "DDP": Case(lambda: stepping(make_trainer(config), bare=True))}


class Subject(NamedTuple):
    """cases: of settings, a folder and a count; rounds, counts: unless others are given; memory: is measured."""

    cases: Callable[[Config, Path, int], Cases]
    rounds: int
    counts: Sequence[int] = (0,)
    memory: bool = False


SUBJECTS = {
    "layers": Subject(layers, 15, memory=True),
    "loader": Subject(loader, 5, (100,)),
    "sampling": Subject(sampling, 5, (32,)),
    "evaluation": Subject(evaluation, 1, (2500, 10000), memory=True),
    "training": Subject(training, 10),
    "loop": Subject(looping, 3, (200,)),
    "ranks": Subject(ranks, 20),
}


if __name__ == "__main__":
    run(main)
