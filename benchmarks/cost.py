"""What does it cost? `python -m benchmarks.cost SUBJECT [--flag value ...]`: time and memory, case against case.

    layers    a training step with tied and regular layers, against plain ones
    loader    batches from the loader, against training steps with as many
    sampling  images by `sample`, against a naive loop, with random weights
    loop      steps by `loop.train`, with averages, log and checkpoints, against bare steps

The cases of a table take turns, so that other work on the machine favours none: medians, and the extremes of the ratios
to the first case. Memory, with --memory true, is the peak of a process that does one case alone.
"""

import itertools
import multiprocessing
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from datasets import Batch, open_data, train_batches
from ddbm import sample
from ddbm.bridges.samplers import plan
from ddbm.config import Config, ImageShape, parse_size
from ddbm.model import BridgeModel
from ddbm.ranks.distributed import pick_device
from ddbm.settings import Settings, choose, from_flags, setting
from ddbm.symmetry.frames import Noise
from ddbm.symmetry.groups import GROUPS, IDENTITY
from ddbm.training import loop
from ddbm.training.trainer import Trainer
from scripts.common import run
from scripts.import_checkpoint import preset_flags
from scripts.train import parse

NFE = 20  # of sampling
Work = Callable[[], object]
Cases = Iterator[tuple[str, Work]]


@dataclass(frozen=True)
class CostConfig(Settings):
    """The benchmark"""

    rounds: int = setting(5, "rounds, in which every case has a turn", above=0)
    count: int = setting(32, "images (sampling), batches (loader) or steps (loop) of a turn", above=0)
    memory: bool = setting(False, "whether memory is measured too")
    preset: str = setting("histology_vp", "settings of args.sh, DATASET_SCHEDULE")
    flags: str = setting("", "flags of training after these, such as '--group C4'")


def interleaved(works: Mapping[str, Work], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of everything in every round, in turns; a round before them warms up."""
    times = np.zeros((1 + rounds, len(works)))
    for row in times:
        for column, work in enumerate(works.values()):
            begun = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            row[column] = time.perf_counter() - begun
    return dict(zip(works, times[1:].T, strict=True))


def peak(case: str, subject: str, config: Config, count: int) -> float:
    """MiB that this process, or the GPU's allocator, held at most in a case."""
    work = next(work for name, work in SUBJECTS[subject](config, count) if name == case)
    for _ in range(2):  # the first step makes the optimiser's state
        work()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()  # ru_maxrss would count the parent, too
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def main(argv: Sequence[str]) -> int:
    settings, extra = from_flags(CostConfig, argv, {"subject": f"one of {', '.join(SUBJECTS)}"})
    subject = choose(SUBJECTS, extra.subject, "subject")
    config = parse([*preset_flags(settings.preset), *settings.flags.split()])[0]
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    times = interleaved(dict(subject(config, settings.count)), settings.rounds)
    print(f"\n{' '.join(argv)}: {machine}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    columns = ["case", "s", "/ first", "from", "to", *["MiB"] * settings.memory]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for case, seconds in times.items():
        ratios = seconds / next(iter(times.values()))
        cells = [f"{n:.4g}" for n in (np.median(seconds), np.median(ratios), ratios.min(), ratios.max())]
        if settings.memory:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                cells.append(f"{alone.submit(peak, case, extra.subject, config, settings.count).result():.0f}")
        print(f"| {' | '.join([case, *cells])} |", flush=True)
    return 0


# ------------------------------------------------------------------------------------------------------------ subjects


def make_model(config: Config) -> BridgeModel:
    """For images with three channels on both sides."""
    size = parse_size(config.data.image_size)
    if size is None:
        raise ValueError("the preset names no size of images: add --flags '--image_size N'")
    return BridgeModel(config, ImageShape(3, 3, *size, 0))


def make_trainer(config: Config) -> tuple[Trainer, Batch]:
    """With a batch of random pairs."""
    model, device = make_model(config), pick_device(config.train.device)
    trainer = Trainer(config, model, device)
    target, source = torch.rand(2, trainer.share, 3, model.images.height, model.images.width, device=device) * 2 - 1
    return trainer, Batch(target, source, torch.arange(trainer.share), None, None)


def stepping(config: Config, steps: int = 1, bare: bool = False) -> Work:
    """Training steps: forward, loss, backward, clipping, AdamW and, unless bare, averages."""
    trainer, batch = make_trainer(config)
    trainer.averages = {} if bare else trainer.averages
    return lambda: [trainer.train_step(batch).item() for _ in range(steps)]


def layers(config: Config, count: int) -> Cases:
    train = replace(config.train, ema_sigma_rel=())
    for kind, group in (("plain", "none"), ("tied", config.model.group), ("regular", config.model.group)):
        settings = replace(config, model=replace(config.model, layers=kind, group=group), train=train)
        parameters = sum(parameter.numel() for parameter in make_model(settings).network.parameters())
        yield f"{kind}, {parameters / 1e6:.2f} M parameters", stepping(settings)


def loader(config: Config, count: int) -> Cases:
    yield "steps", stepping(config, count)
    elements, size = GROUPS[config.train.augment].elements, config.train.batch_size

    def read(batches: Iterator[Batch]) -> list[Batch]:
        return list(itertools.islice(batches, count))

    for workers in (0, 1, 2):
        data = open_data(split="train", **asdict(config.data))
        batches = train_batches(data, batch_size=size, seed=0, elements=elements, workers=workers)
        yield f"loader, {workers} workers", partial(read, batches)


def sampling(config: Config, count: int) -> Cases:
    model = make_model(config).to(device := pick_device(config.train.device)).eval()
    sources = torch.rand(count, 3, model.images.height, model.images.width, device=device) * 2 - 1

    def naive() -> None:  # with gradients
        for x_T in sources.split(1):
            plan("dbim", model.bridge, NFE).run(model.denoiser(x_T), x_T, Noise(0, [0], [IDENTITY]))

    yield "naive loop", naive
    yield "one at a time", lambda: [sample(model, source, nfe=NFE) for source in sources.split(1)]
    yield "sample", lambda: sample(model, sources, nfe=NFE)


def looping(config: Config, count: int) -> Cases:
    """The last steps of a run; the checkpoint and the validation, of one batch, at its end are counted."""
    yield "bare", stepping(config, count, bare=True)
    trainer, batch = make_trainer(config)

    def by_loop() -> None:
        trainer.step = config.train.total_steps - count
        with tempfile.TemporaryDirectory() as run_dir:
            loop.train(trainer, itertools.repeat(batch), lambda: [batch], Path(run_dir))

    yield "loop", by_loop


SUBJECTS = {"layers": layers, "loader": loader, "sampling": sampling, "loop": looping}


if __name__ == "__main__":
    run(main)
