"""What does it cost? `python -m benchmarks.cost [SUBJECT] [--flag value ...]`: time and memory, case against case.

    network   a training step and one evaluation of plain, tied and regular networks, and of another's (--peer)
    loader    batches from the loader, against training steps with as many
    sampling  images by `sample`, against the network's evaluations alone and a naive loop, with random weights
    loop      steps by `loop.train`, with averages, log and checkpoints, against bare steps

All cases take turns, so that other work on the machine favours none: medians, and the extremes of the ratios to the
first case of a table. The share of a network is its floating point operations in that time over those of a product
of two large matrices; not of symmetric ones, which do with fewer. Memory, with --memory true, is the peak of a
process that does one case alone.
"""

import importlib
import importlib.util
import itertools
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from datasets import Augmentation, Batch, open_data, train_batches
from ddbm import sample
from ddbm.bridges.samplers import plan
from ddbm.config import Config, ImageShape, parse_size
from ddbm.model import BridgeModel
from ddbm.networks.convolutions import folded
from ddbm.networks.unet import multipliers
from ddbm.ranks.distributed import pick_device
from ddbm.ranks.entry import keep_freed_memory
from ddbm.settings import Settings, choose, from_flags, setting
from ddbm.symmetry.frames import Noise
from ddbm.symmetry.groups import IDENTITY
from ddbm.training import loop
from ddbm.training.objectives import objective_of
from ddbm.training.trainer import Trainer
from scripts.common import run
from scripts.import_checkpoint import preset_flags
from scripts.train import parse

NFE = 20  # of sampling
SIZE = {"cpu": 2048, "cuda": 8192}  # of the matrices whose product the networks are compared with
WIDE = "--channel_mult 1,2,3,4 --num_res_blocks 2 --attention_resolutions 32,16,8 --num_head_channels 64 --batch_size 8"
SIZES = {
    "the quickstart's network": "",
    "64 channels": f"--model_channels 64 {WIDE}",
    "128 channels": f"--model_channels 128 {WIDE}",
}
Work = Callable[[], object]
Key = TypeVar("Key")


class Case(NamedTuple):
    name: str
    make: Callable[[], Work]
    table: str = ""
    counted: bool = False  # its floating point operations


Cases = Iterator[Case]


@dataclass(frozen=True)
class CostConfig(Settings):
    """The benchmark"""

    rounds: int = setting(5, "rounds, in which every case has a turn", above=0)
    count: int = setting(32, "images (sampling), batches (loader) or steps (loop) of a turn", above=0)
    memory: bool = setting(False, "whether memory is measured too")
    profile: bool = setting(False, "whether PyTorch's profiler says where the time of every network goes")
    preset: str = setting("", "settings of args.sh, DATASET_SCHEDULE; default histology_vp, for network in three sizes")
    flags: str = setting("", "flags of training after these, such as '--group C4'")
    peer: str = setting("", "checkout of DiffusionBridge (thu-ml), whose ddbm/unet.py is measured too")


def interleaved(works: Mapping[Key, Work], rounds: int) -> dict[Key, np.ndarray]:
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


def flops_of(work: Work) -> float:
    """Floating point operations, those of attention as if its weights were multiplied out and kept."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def peak(number: int, subject: str, config: Config, settings: CostConfig) -> float:
    """MiB that this process, or the GPU's allocator, held at most in a case."""
    keep_freed_memory()
    work = next(itertools.islice(SUBJECTS[subject](config, settings), number, None)).make()
    for _ in range(2):  # the first step makes the optimiser's state
        work()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()  # ru_maxrss would count the parent, too
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def main(argv: Sequence[str]) -> int:
    argv = argv if argv and not argv[0].startswith("--") else ["network", *argv]
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "100000")  # several networks have more than it keeps
    settings, extra = from_flags(CostConfig, argv, {"subject": f"one of {', '.join(SUBJECTS)}"})
    subject = choose(SUBJECTS, extra.subject, "subject")
    config = parse([*preset_flags(settings.preset or "histology_vp"), *settings.flags.split()])[0]
    cases = list(subject(config, settings))
    device, precision = pick_device(config.train.device, config.train.tf32), config.train.precision
    size, kind = SIZE[device.type], {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    a, b = torch.randn(2, size, size, device=device, dtype=kind)
    works = {number: case.make() for number, case in enumerate(cases)}
    flops = {number: flops_of(works[number]) for number, case in enumerate(cases) if case.counted}
    times = interleaved({-1: lambda: a @ b} | works, settings.rounds)
    rate = 2 * size**3 / np.median(times[-1])
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    print(f"\n{' '.join(argv)}: {machine}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"product of {size}x{size} {precision}: {rate / 1e9:.0f} GFLOP/s")
    for table, group in itertools.groupby(enumerate(cases), lambda numbered: numbered[1].table):
        first, *others = group
        shares = any(case.counted for _, case in (first, *others))
        columns = ["case", "s", "/ first", "from", "to", *["share"] * shares, *["MiB"] * settings.memory]
        print(f"\n{table}\n\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
        for number, case in (first, *others):
            ratios, median = times[number] / times[first[0]], np.median(times[number])
            cells = [f"{n:.4g}" for n in (median, np.median(ratios), ratios.min(), ratios.max())]
            cells += [f"{flops[number] / median / rate:.0%}" if case.counted else "–"] * shares
            if settings.memory:
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                    cells.append(f"{alone.submit(peak, number, extra.subject, config, settings).result():.0f}")
            print(f"| {' | '.join([case.name, *cells])} |", flush=True)
    for number, case in enumerate(cases if settings.profile else ()):
        with torch.profiler.profile() as profiler:
            works[number]()
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        print(f"\n{case.table}, {case.name}\n{profiler.key_averages().table(sort_by=by, row_limit=12)}")
    return 0


# ------------------------------------------------------------------------------------------------------------ subjects


def make_model(config: Config, network: nn.Module | None = None) -> BridgeModel:
    """For images with three channels on both sides; with another's network, where given."""
    size = parse_size(config.data.image_size)
    if size is None:
        raise ValueError("the preset names no size of images: add --flags '--image_size N'")
    model = BridgeModel(config, ImageShape(3, 3, *size, 0))
    if network is not None:
        model.network = network  # type: ignore[assignment]
    return model


def batch_of(model: BridgeModel, count: int, device: torch.device) -> Batch:
    """Random pairs."""
    target, source = torch.rand(2, count, 3, model.images.height, model.images.width, device=device) * 2 - 1
    return Batch(target, source, torch.arange(count), None, None)


def make_trainer(config: Config, network: nn.Module | None = None) -> tuple[Trainer, Batch]:
    """With a batch of random pairs."""
    device = pick_device(config.train.device, config.train.tf32)
    model = make_model(config, network)
    trainer = Trainer(config, model, objective_of(config.train, model), device)
    return trainer, batch_of(model, trainer.share, device)


def stepping(config: Config, steps: int = 1, bare: bool = False, network: nn.Module | None = None) -> Work:
    """Training steps: forward, loss, backward, clipping, AdamW and, unless bare, averages."""
    trainer, batch = make_trainer(config, network)
    trainer.averages = {} if bare else trainer.averages
    return lambda: [trainer.train_step(batch).item() for _ in range(steps)]


def evaluating(config: Config, network: nn.Module | None = None) -> Work:
    """One call of the denoiser as `sample` makes it, its kernels laid out before."""
    device = pick_device(config.train.device, config.train.tf32)
    model = make_model(config, network).to(device).eval()
    model.precision = config.train.precision
    batch, t = batch_of(model, config.train.batch_size, device), model.bridge.time(model.bridge.T / 2)
    kept = folded(model.network)
    kept.__enter__()  # to the end of the process

    @torch.inference_mode()
    def evaluate(kept: object = kept) -> Tensor:
        return model.denoiser(batch.source)(batch.target, t)

    return evaluate


def network(config: Config, settings: CostConfig) -> Cases:
    """The steps are bare, so that another's network does the same beside its own work."""
    for size, flags in {settings.preset: ""}.items() if settings.preset else SIZES.items():
        parsed = parse([*preset_flags(settings.preset or "histology_vp"), *flags.split(), *settings.flags.split()])[0]
        group = parsed.model.group if parsed.model.group != "none" else "D4"
        ways = {kind: (kind, "none" if kind == "plain" else group) for kind in ("plain", "tied", "regular")}
        configs = {
            name: replace(parsed, model=replace(parsed.model, layers=kind, group=named))
            for name, (kind, named) in ways.items()
        }
        for what, work in (("training step", partial(stepping, bare=True)), ("evaluation", evaluating)):
            for name, theirs in (("peer, dense attention", True), ("peer", False)) if settings.peer else ():
                make = partial(with_peer, work, settings.peer, configs["plain"], theirs)
                yield Case(name, make, f"{size}: {what}", True)
            for name, own in configs.items():
                yield Case(name, partial(work, own), f"{size}: {what}", name == "plain")


def with_peer(work: Callable[..., Work], path: str, config: Config, dense: bool) -> Work:
    return work(config, network=peer(Path(path), config, dense))


def peer(path: Path, config: Config, dense: bool) -> nn.Module:
    """The U-Net of a checkout of DiffusionBridge in our size.

    dense: queries, keys and values are copied as PyTorch's fused kernels want them; as published they are views.
    """
    model, name = make_model(config), f"peer_{dense}"
    if not (path / "ddbm" / "unet.py").is_file():
        raise ValueError(f"--peer {path} is no checkout of DiffusionBridge: it has no ddbm/unet.py")
    spec = importlib.util.spec_from_file_location(
        name, path / "ddbm" / "__init__.py", submodule_search_locations=[str(path / "ddbm")]
    )
    assert spec is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)  # theirs is named ddbm, too
    unet: ModuleType = importlib.import_module(f"{name}.unet")
    if dense:

        def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (x[None].contiguous() for x in (q, k, v))
            return F.scaled_dot_product_attention(q, k, v)[0]

        unet.F = SimpleNamespace(scaled_dot_product_attention=attention, interpolate=F.interpolate)  # type: ignore[attr-defined]
    s = config.model
    built: nn.Module = unet.UNetModel(
        image_size=model.images.height, in_channels=3, model_channels=s.model_channels, out_channels=3,
        num_res_blocks=s.num_res_blocks, dropout=s.dropout, channel_mult=multipliers(s, model.images),
        attention_resolutions=[model.images.height // side for side in s.attention_resolutions],
        num_head_channels=s.num_head_channels, use_scale_shift_norm=True, resblock_updown=True, condition_mode="concat",
    )  # fmt: skip
    built.blocks = []  # type: ignore[assignment]  # what FSDP would gather
    built.normalise_weights = lambda: None  # type: ignore[assignment]  # after a step
    return built


def loader(config: Config, settings: CostConfig) -> Cases:
    count = settings.count
    yield Case("steps", lambda: stepping(config, count))
    augmentation, size = Augmentation.of(config.train, config.data), config.train.batch_size

    def reading(workers: int) -> Work:
        data = open_data(split="train", **asdict(config.data))
        batches = train_batches(data, batch_size=size, seed=0, augmentation=augmentation, workers=workers)
        return lambda: list(itertools.islice(batches, count))

    for workers in (0, 1, 2):
        yield Case(f"loader, {workers} workers", partial(reading, workers))


def sampling(config: Config, settings: CostConfig) -> Cases:
    model = make_model(config).to(device := pick_device(config.train.device, config.train.tf32)).eval()
    sources = batch_of(model, settings.count, device).source

    @torch.inference_mode()
    def alone() -> None:
        network, times = model.conditioned(sources), torch.zeros(len(sources), device=device)
        with folded(model.network):
            for _ in range(NFE):
                network(sources, times)

    def naive() -> None:  # with gradients
        for x_T in sources.split(1):
            plan("dbim", model.bridge, NFE).run(model.denoiser(x_T), x_T, Noise(0, [0], [IDENTITY]))

    yield Case("the network alone", lambda: alone)
    yield Case("sample", lambda: lambda: sample(model, sources, nfe=NFE))
    yield Case("one at a time", lambda: lambda: [sample(model, source, nfe=NFE) for source in sources.split(1)])
    yield Case("naive loop", lambda: naive)


def looping(config: Config, settings: CostConfig) -> Cases:
    """The last steps of a run; the checkpoint and the validation, of one batch, at its end are counted."""
    count = settings.count

    def looped() -> Work:
        trainer, batch = make_trainer(config)

        def by_loop() -> None:
            trainer.step = config.train.total_steps - count
            with tempfile.TemporaryDirectory() as run_dir:
                loop.train(trainer, itertools.repeat(batch), lambda: [batch], Path(run_dir))

        return by_loop

    yield Case("bare", lambda: stepping(config, count, bare=True))
    yield Case("loop", looped)


SUBJECTS = {"network": network, "loader": loader, "sampling": sampling, "loop": looping}


if __name__ == "__main__":
    run(main)
