"""Samples a data set: `python -m scripts.sample MODEL_PATH [--flag value ...]` (see sample_ddbm.sh, docs/sampling.md).

Writes, in the order of the data set, `samples_NxHxWxC_nfeK.npz` and `reference_NxHxWxC.npz` (`arr_0`: uint8 NHWC; the
reference also `source` and `mask`), `grid.png` (source | sample | target) and `sampling.json`. Of sources without
targets it writes `sources_NxHxWxC.npz` in the reference's place.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from datasets import Batch, PairedData, batches_of
from datasets.images import READER
from datasets.writing import form_of
from ddbm.bridges.samplers import SAMPLERS
from ddbm.config import SampleConfig, SamplerConfig
from ddbm.files import npz, stores
from ddbm.files.checkpoint import MANIFEST
from ddbm.files.storage import write_whole
from ddbm.model import BridgeModel, Samples, load, plan_of, sample, sampling_group
from ddbm.ranks import distributed
from ddbm.ranks.distributed import out_of_memory, pick_device
from ddbm.settings import choose, from_flags, values
from ddbm.symmetry.frames import seed_of
from evaluations.images import order_digest, to_bytes

from . import common
from .common import TABLES, find_checkpoint, header_of, locked, open_split, refuse_conflict, refuse_shape, run, say
from .pictures import draw_trajectory, evenly
from .sampling_files import beside, files, strip_name, write_grid, write_pngs, write_reference, write_samples
from .sampling_store import PART, RECORD, WRITTEN, Store, finished, missing

SWITCHES = {"--restart": "throw away what a sampling, finished or not, has written into out_dir"}
MARKED = 8  # pairs
say_once = cache(tqdm.write)


def own_values(settings: SamplerConfig) -> dict[str, Any]:
    """The settings that are the sampler's own. Raises ValueError for others that are not at their defaults."""
    own = choose(SAMPLERS, settings.sampler, "sampler").settings
    others = {name for sampler in SAMPLERS.values() for name in sampler.settings} - {*own}
    for f in fields(settings):
        if f.name in others and getattr(settings, f.name) != f.default:
            raise ValueError(f"--{f.name} means nothing to sampler {settings.sampler}: leave it out")
    return {name: getattr(settings, name) for name in own}


def agree(model: BridgeModel, settings: SampleConfig) -> None:
    """Refuses a data set or schedule other than the checkpoint's, and settings the sampler does not have."""
    config = model.config
    for name, own in (("dataset", config.data.dataset), ("schedule", config.bridge.schedule)):
        asked = getattr(settings, name)
        if asked and asked != own:
            raise ValueError(f"{name} {asked} was asked for, but the checkpoint was trained with {own}: say {own}")
    acting = sampling_group(model, settings.symmetrize, settings.group)
    acting.check_size(model.images.height, model.images.width)
    refuse_conflict(model, settings.group)
    if settings.png and model.images.target_channels not in (1, 3):
        raise ValueError(f"--png writes grey or RGB, the samples have {model.images.target_channels} channels")
    used = own_values(settings)
    plan_of(model, settings.sampler, settings.nfe, settings.grid, settings.symmetrize, acting, **used).check()


def describe(settings: SampleConfig, data_dir: str) -> str:
    """A short name of all settings that change the samples; data_dir: where the checkpoint's data lies."""
    used = [f"{name}{value:g}" for name, value in own_values(settings).items() if name != "order" or value]
    first = f"first{settings.num_samples}" if settings.num_samples else ""
    draws = f"draws{settings.draws}" if settings.draws > 1 else ""
    speed = (settings.precision, "tf32" * settings.tf32)
    words = (settings.symmetrize, settings.group, settings.weights, *speed, first, draws)
    extra = [word for word in words if word not in ("none", "", "ema", "fp32")]
    if settings.data_dir and (other := stores.full(settings.data_dir)) != data_dir:
        extra.append(f"{Path(other).name}-{hashlib.sha256(other.encode()).hexdigest()[:6]}")
    budget = "_".join(filter(None, [f"nfe{settings.nfe}", settings.grid]))
    return "_".join([settings.split, settings.sampler, budget, *used, f"seed{settings.seed}", *extra])


def seed_of_draw(settings: SampleConfig, number: int) -> int:
    """The seed of one of the draws of every image: of the first the one that is given, of others one made of both."""
    return seed_of(settings.seed, number) if number else settings.seed


def marks(data: PairedData) -> dict[str, float]:
    """The means of a few pairs, which tell when pictures were replaced by others of their names."""
    items = {data.names[i]: data.get(i, None) for i in evenly(len(data), MARKED)}
    sides = ("source", "target") if data.targets else ("source",)
    images = {f"{side} {name}": getattr(item, side) for name, item in items.items() for side in sides}
    return {f"mean of {name}": round(image.mean().item(), 4) for name, image in images.items()}


def checkpoint_digest(path: Path) -> str:
    """Of the manifest, which has the digests of the other files."""
    return hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()


class Task(NamedTuple):
    """What is sampled, and where to."""

    checkpoint: Path
    model: BridgeModel
    data: PairedData
    mirror: stores.Mirror
    store: Store


class Begun(NamedTuple):
    """What is to be done of it."""

    header: dict[str, Any]  # what the images depend on
    known: dict[str, Any]  # what a finished sampling of them says of itself; empty if there is none
    settings: SampleConfig  # with as many pictures as that had
    length: int  # images, no fewer than that had
    done: bool  # that was all


def main(argv: Sequence[str]) -> int:
    settings, extra = from_flags(SampleConfig, argv, {"model_path": "checkpoint, or run"}, SWITCHES, TABLES)
    settings = replace(
        settings, data_dir=common.given_folder(settings.data_dir), codec=common.from_anywhere(settings.codec)
    )
    world = distributed.world_of(os.environ)
    device = pick_device(settings.device, settings.tf32, world)
    distributed.start(world, device, settings.rendezvous_timeout)
    path = distributed.from_main(lambda: find_checkpoint(extra.model_path))
    model = load(stores.address(path), settings.weights, device, settings.codec)
    agree(model, settings)
    model.precision = settings.precision
    if settings.compile != "none":
        model.network.compile(mode=settings.compile)
    data = open_split(model.config.data, settings.split, settings.data_dir, header_of(path), sources=True)
    settings = replace(settings, split=data.split)
    refuse_shape(data, model.images)
    name = f"{path.name}_{describe(settings, model.config.data.data_dir)}"
    mirror = stores.Mirror(settings.out_dir or f"{stores.address(path.parent.parent)}/samples/{name}")
    with ExitStack() as stack:
        distributed.from_main(lambda: stack.enter_context(locked(mirror.path, "out_dir")))
        store = Store(mirror.path, (len(data), *data.size, data.target_channels), settings.draws)
        task = Task(path, model, data, mirror, store)
        begun = distributed.from_main(lambda: begin(task, settings, extra.restart))
        if begun.done:
            more = 0 < settings.num_samples < begun.length
            surplus = f", more than the {settings.num_samples} asked for" if more else ""
            say(f"{mirror.place} is finished: {begun.length} images{surplus}; --restart samples them anew")
            say("\n".join(f"{mirror.place}/{begun.known[name]}" for name in ("samples", beside(begun.known))))
            return 0
        ours = slice(distributed.rank(), None, distributed.size())  # this rank's share of a sequence
        nfe = sample_all(task, begun, ours)
        write(task, begun, nfe, ours)
        distributed.barrier()  # srun would end the others soon after the first
    return 0


def begin(task: Task, settings: SampleConfig, restart: bool) -> Begun:
    """Takes up what is there of this sampling; ValueError where the folder holds another one."""
    _, model, data, mirror, store = task
    place = settings.data_dir or model.config.data.data_dir
    deciding = values(settings, deciding=True)
    if settings.draws == 1:  # as in samplings of older versions
        del deciding["draws"]
    header = {
        "checkpoint": task.checkpoint.name,
        "checkpoint_digest": checkpoint_digest(task.checkpoint),
        "data_dir": stores.full(place) if place else "",
        "pairs": order_digest(data.names),
        "reader": READER,
        "marks": marks(data),
        **deciding,
    }
    if restart or not store.folder.exists():  # an older version left what it had in a store
        mirror.fetch(".parts/*", RECORD)
    if restart:
        mirror.remove(sorted(filter(WRITTEN.fullmatch, mirror.names()), key=lambda name: name == RECORD))
    known: dict[str, Any] = {}
    try:
        known = finished(mirror.path, header, data.names)
    except ValueError:
        if not store.count():
            raise  # else go on with what an older version began in the same folder
    if known and not data.targets and "reference" in known:
        raise ValueError(
            f"{mirror.path} holds samples with their targets, and {place} has none now: put them back, give another "
            "--out_dir, or --restart to replace it"
        )
    had, count = known.get("settings", {}), min(settings.num_samples or len(data), len(data))
    count, strips = max(count, known.get("count", 0)), max(settings.trajectory, had.get("trajectory", 0))
    asked = replace(settings, png=settings.png or had.get("png", False), trajectory=strips)
    if known and "reader" not in known.get("depends_on", {}):
        del header["reader"], header["marks"]
    there = mirror.names()
    parts = {name: sum(other.startswith(name) for other in there) for name in files(known, asked, data)}
    whole = all(n == (count if name[-1] == "/" else 1) for name, n in parts.items())
    done = whole and known.get("count") == count and (beside(known) == "reference") == data.targets
    header = header if done else store.begin(header, restart)
    if "reader" not in header:
        say("note: an older version sampled this, and may have read other values: --restart samples it anew")
    if not done:
        mirror.remove(name for name in mirror.names() if re.fullmatch(rf".parts/{PART.pattern}", name))
        if known and known["samples"] in there and not store.count():  # now with more images, or pictures of them
            keep(task, known, settings.batch_size)
    return Begun(header, known, asked, count, done)


def keep(task: Task, known: dict[str, Any], size: int) -> None:
    """Puts the images of a finished sampling back among those that need not be sampled, `size` at a time."""
    _, _, _, mirror, store = task
    mirror.fetch(known["samples"])
    path = mirror.path / known["samples"]
    for number, images in enumerate(npz.rows(path, "draws" if store.draws > 1 else "arr_0", size)):
        for draw in range(store.draws):
            drawn = images[:, draw] if store.draws > 1 else images
            store.write(size * number, drawn, int(known["nfe"]), draw)


def levels(checkpoint: Path) -> dict[str, Any]:
    """What 0 and 255 of the samples were in the files that the model was trained on, and of which type; how these were
    fitted.
    """
    header = header_of(checkpoint)
    form = form_of(header)
    return {"kind": form.kind, "black": form.black, "white": form.white, "fit": header.config.data.fit}


def sample_all(task: Task, begun: Begun, ours: slice) -> int:
    """Samples what is missing, of its batches a share; the most evaluations of an image."""
    _, model, data, _, store = task
    settings, count, draws = begun.settings, begun.length, store.draws
    there = distributed.from_main(store.evaluations).reshape(draws, -1)[:, :count]
    runs = [(draw, run) for draw in range(draws) for run in missing(there[draw], settings.batch_size)]
    if kept := draws * count - sum(len(run) for _, run in runs):
        say(f"{kept} of {draws * count} {'images' if draws == 1 else 'draws'} were sampled before and are kept")
    with tqdm(
        total=draws * count, initial=kept, unit="image", desc=f"sampling {settings.split}", dynamic_ncols=True,
        disable=not distributed.is_main(),
    ) as bar:  # fmt: skip
        batches = batches_of(data, [run for _, run in runs[ours]], settings.workers)
        for (draw, _), batch in zip(runs[ours], batches, strict=True):
            for start, samples in drawn(model, batch, replace(settings, seed=seed_of_draw(settings, draw))):
                store.write(start, to_bytes(samples.x_0), samples.nfe, draw)
                if not bar.disable:
                    bar.update(store.count(count) - bar.n)  # of all ranks
        distributed.barrier()
        bar.update(draws * count - bar.n)
    evaluations = distributed.from_main(store.evaluations).reshape(draws, -1)[:, :count]
    if (evaluations == 0).any():
        gap = int((evaluations == 0).any(0).argmax())
        raise ValueError(
            f"image {gap} is gone from {store.folder}: out_dir must be one folder that all ranks see, and "
            "that no other sampling writes to"
        )
    return int(evaluations.max())


def drawn(model: BridgeModel, batch: Batch, settings: SampleConfig) -> Iterator[tuple[int, Samples]]:
    """Samples of a batch and the number of its first image; where it does not fit the memory, those of its halves."""
    size = len(batch.index)
    try:
        yield int(batch.index[0]), draw(model, batch, settings)
        return
    except RuntimeError as error:
        if size == 1 or not out_of_memory(error):
            raise
    say_once(f"note: {size} images at once do not fit the memory and are halved; try --batch_size {size // 2}")
    torch.cuda.empty_cache()  # here, where the error no longer holds what had been computed
    for part in (slice(size // 2), slice(size // 2, None)):
        yield from drawn(model, batch.rows(part), settings)


def draw(model: BridgeModel, batch: Batch, settings: SampleConfig, trajectory: bool = False) -> Samples:
    """Samples of one batch."""
    inside = batch.to(next(model.parameters()).device)
    passed = {name: getattr(settings, name) for name in ("sampler", "nfe", "grid", "symmetrize", "group", "seed")}
    return sample(
        model, inside.source, index=batch.index.tolist(), mask=inside.mask, label=inside.label, trajectory=trajectory,
        **passed, **own_values(settings),
    )  # fmt: skip


def write(task: Task, begun: Begun, nfe: int, ours: slice) -> None:
    """Writes all files of a sampling whose images are there; of the pictures a rank its share."""
    _, model, data, mirror, store = task
    _, known, settings, count, _ = begun
    out, images = mirror.path, store.images(count)
    shape = "x".join(map(str, images.shape[1:]))
    side = "reference" if data.targets else "sources"
    names = {"samples": f"samples_{shape}_nfe{nfe}.npz", side: f"{side}_{shape}.npz"}
    if not data.targets:
        names[side] = f"{side}_{count}x{data.size[0]}x{data.size[1]}x{data.source_channels}.npz"
    if distributed.is_main():
        write_reference(out / names[side], data, count, settings)
    distributed.barrier()
    if settings.png:
        write_pngs(out / names["samples"].removesuffix(".npz"), images[0], data, out / names[side], ours)
    for i in range(min(settings.trajectory, count))[ours]:
        way = out / strip_name(i, data)
        if not (known and way.exists()):
            batch = next(batches_of(data, [[i]]))
            draw_trajectory(way, model, draw(model, batch, settings, trajectory=True), batch, data.targets)
    distributed.barrier()
    if not distributed.is_main():
        return
    write_samples(out / names["samples"], images, data.names[:count], out / names[side])
    write_grid(out / "grid.png", images[0], data)
    record = {
        **names, "checkpoint": task.checkpoint.name, "checkpoint_digest": begun.header["checkpoint_digest"],
        "dataset": model.config.data.dataset, "split": settings.split, "count": count,
        "order_digest": order_digest(data.names[:count]), "nfe": nfe, "draws": settings.draws,
        "settings": asdict(settings), "depends_on": begun.header, "levels": levels(task.checkpoint),
    }  # fmt: skip
    record["files"] = files(record, settings, data)
    write_whole(out / RECORD, json.dumps(record, indent=2).encode())
    if known:  # of fewer images, or with other pictures
        kept = (RECORD, *record["files"])
        mirror.remove(n for n in mirror.names() if WRITTEN.fullmatch(n) and not n.startswith(kept))
    mirror.send()
    if (more := store.count() - store.draws * count) > 0:
        print(f"note: {more} images more of an unfinished sampling are kept in {store.folder}")
    else:
        store.remove()
    print(*(stores.address(out / name) for name in (*names.values(), "grid.png")), sep="\n")


if __name__ == "__main__":
    run(main)
