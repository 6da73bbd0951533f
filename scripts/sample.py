"""Samples a data set: `python -m scripts.sample MODEL_PATH [--flag value ...]` (see sample_ddbm.sh, docs/sampling.md).

Writes, in the order of the data set, `samples_NxHxWxC_nfeK.npz` and `reference_NxHxWxC.npz` (`arr_0`: uint8 NHWC; the
reference also `source` and `mask`), `grid.png` (source | sample | target) and `sampling.json`.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from datasets import Batch, PairedData, batches_of
from datasets.images import READER
from ddbm.bridges.samplers import SAMPLERS
from ddbm.config import SampleConfig
from ddbm.files import npz, stores
from ddbm.files.checkpoint import MANIFEST
from ddbm.files.storage import named, write_whole
from ddbm.model import BridgeModel, Samples, load, plan_of, sample, sampling_group
from ddbm.ranks import distributed
from ddbm.ranks.distributed import out_of_memory, pick_device
from ddbm.settings import choose, from_flags, values
from evaluations.images import file_name, order_digest, to_bytes

from . import common
from .common import TABLES, find_checkpoint, header_of, locked, open_split, refuse_conflict, refuse_shape, run, say
from .pictures import draw_trajectory, evenly, grid
from .sampling_store import PART, RECORD, WRITTEN, Store, finished, missing

SWITCHES = {"--restart": "throw away what a sampling, finished or not, has written into out_dir"}
MARKED = 8  # pairs
say_once = cache(tqdm.write)


def own_values(settings: SampleConfig) -> dict[str, Any]:
    """The settings that are the sampler's own."""
    return {name: getattr(settings, name) for name in choose(SAMPLERS, settings.sampler, "sampler").settings}


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
    others = {name for sampler in SAMPLERS.values() for name in sampler.settings} - used.keys()
    for f in fields(settings):
        if f.name in others and getattr(settings, f.name) != f.default:
            raise ValueError(f"--{f.name} means nothing to sampler {settings.sampler}: leave it out")
    plan_of(model, settings.sampler, settings.nfe, settings.grid, settings.symmetrize, acting, **used).check()


def describe(settings: SampleConfig, data_dir: str) -> str:
    """A short name of all settings that change the samples; data_dir: where the checkpoint's data lies."""
    used = [f"{name}{value:g}" for name, value in own_values(settings).items() if name != "order" or value]
    first = f"first{settings.num_samples}" if settings.num_samples else ""
    words = (settings.symmetrize, settings.group, settings.weights, settings.precision, "tf32" * settings.tf32, first)
    extra = [word for word in words if word not in ("none", "", "ema", "fp32")]
    if settings.data_dir and (other := stores.full(settings.data_dir)) != data_dir:
        extra.append(f"{Path(other).name}-{hashlib.sha256(other.encode()).hexdigest()[:6]}")
    budget = "_".join(filter(None, [f"nfe{settings.nfe}", settings.grid]))
    return "_".join([settings.split, settings.sampler, budget, *used, f"seed{settings.seed}", *extra])


def marks(data: PairedData) -> dict[str, float]:
    """The means of a few pairs, which tell when pictures were replaced by others of their names."""
    items = {data.names[i]: data.get(i, None) for i in evenly(len(data), MARKED)}
    images = {f"{side} {name}": getattr(item, side) for name, item in items.items() for side in ("source", "target")}
    return {f"mean of {name}": round(image.mean().item(), 4) for name, image in images.items()}


def checkpoint_digest(path: Path) -> str:
    """Of the manifest, which has the digests of the other files."""
    return hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()


def main(argv: Sequence[str]) -> int:
    settings, extra = from_flags(SampleConfig, argv, {"model_path": "checkpoint, or run"}, SWITCHES, TABLES)
    settings = replace(settings, data_dir=common.given_folder(settings.data_dir))
    world = distributed.world_of(os.environ)
    device = pick_device(settings.device, settings.tf32, world)
    distributed.start(world, device, settings.rendezvous_timeout)
    path = distributed.from_main(lambda: find_checkpoint(extra.model_path))
    model = load(stores.address(path), settings.weights, device)
    agree(model, settings)
    model.precision = settings.precision
    if settings.compile != "none":
        model.network.compile(mode=settings.compile)
    data = open_split(model.config.data, settings.split, settings.data_dir, header_of(path))
    settings = replace(settings, split=data.split)
    refuse_shape(data, model.images)
    count = min(settings.num_samples or len(data), len(data))
    name = f"{path.name}_{describe(settings, model.config.data.data_dir)}"
    mirror = stores.Mirror(settings.out_dir or f"{stores.address(path.parent.parent)}/samples/{name}")
    ours = slice(distributed.rank(), None, distributed.size())  # this rank's share of a sequence
    with ExitStack() as stack:
        distributed.from_main(lambda: stack.enter_context(locked(mirror.path, "out_dir")))
        out, store = mirror.path, Store(mirror.path, (len(data), *data.size, data.target_channels))

        def begin() -> tuple[dict[str, Any], dict[str, Any], SampleConfig, int, bool]:
            """What the images depend on, what a finished sampling of them says, and whether that is all asked for.

            Also the settings and the number of images, no less than what the folder had.
            """
            place = settings.data_dir or model.config.data.data_dir
            header = {  # what the images depend on
                "checkpoint": path.name,
                "checkpoint_digest": checkpoint_digest(path),
                "data_dir": stores.full(place) if place else "",
                "pairs": order_digest(data.names),
                "reader": READER,
                "marks": marks(data),
                **values(settings, deciding=True),
            }
            if extra.restart or not store.folder.exists():  # an older version left what it had in a store
                mirror.fetch(".parts/*", RECORD)
            if extra.restart:
                old = sorted(filter(WRITTEN.fullmatch, mirror.names()), key=lambda name: name == RECORD)
                mirror.remove(old)
            known: dict[str, Any] = {}
            try:
                known = finished(out, header, data.names)
            except ValueError:
                if not store.count():
                    raise  # else go on with what an older version began in the same folder
            had, most = known.get("settings", {}), max(count, known.get("count", 0))
            strips = max(settings.trajectory, had.get("trajectory", 0))
            asked = replace(settings, png=settings.png or had.get("png", False), trajectory=strips)
            if known and "reader" not in known.get("depends_on", {}):
                del header["reader"], header["marks"]
            there = mirror.names()
            parts = {name: sum(other.startswith(name) for other in there) for name in files(known, asked, data)}
            whole = all(n == (most if name[-1] == "/" else 1) for name, n in parts.items())
            done = whole and known.get("count") == most
            header = header if done else store.begin(header, extra.restart)
            if "reader" not in header:
                say("note: an older version sampled this, and may have read other values: --restart samples it anew")
            if done:
                return header, known, asked, most, True
            mirror.remove(name for name in mirror.names() if re.fullmatch(rf".parts/{PART.pattern}", name))
            if known and known["samples"] in there and not store.count():  # now with more images, or pictures of them
                mirror.fetch(known["samples"])
                for number, images in enumerate(npz.rows(out / known["samples"], "arr_0", size := settings.batch_size)):
                    store.write(size * number, images, int(known["nfe"]))
            return header, known, asked, most, False

        header, known, settings, count, done = distributed.from_main(begin)
        if done:
            beyond = f", more than the {settings.num_samples} asked for" if 0 < settings.num_samples < count else ""
            say(f"{mirror.place} is finished: {count} images{beyond}; --restart samples them anew")
            say("\n".join(f"{mirror.place}/{known[name]}" for name in ("samples", "reference")))
            return 0
        nfe = sample_all(store, model, data, count, settings, ours)
        images, digest = np.load(store.samples, mmap_mode="r")[:count], order_digest(data.names[:count])
        shape = "x".join(map(str, images.shape))
        names = {"samples": f"samples_{shape}_nfe{nfe}.npz", "reference": f"reference_{shape}.npz"}
        if settings.png:
            folder = out / names["samples"].removesuffix(".npz")
            distributed.from_main(lambda: shutil.rmtree(folder, ignore_errors=True))  # of an earlier sampling
            with named(folder):
                folder.mkdir(exist_ok=True)
            for i in range(count)[ours]:
                with named(place := folder / f"{file_name(i, data.names[i])}.png"):
                    Image.fromarray(images[i].squeeze(-1) if images.shape[-1] == 1 else images[i]).save(place, "PNG")
        for i in range(min(settings.trajectory, count))[ours]:
            way = out / f"trajectory_{file_name(i, data.names[i])}.png"
            if not (known and way.exists()):
                batch = next(batches_of(data, [[i]]))
                draw_trajectory(way, model.bridge, draw(model, batch, settings, trajectory=True), batch)
        distributed.barrier()
        if distributed.is_main():
            write_reference(out / names["reference"], data, count, settings)
            npz.write(
                out / names["samples"],
                lambda writer, _: writer.add("arr_0", images),
                lambda writer, _: common.add_order(writer, data.names[:count]),
            )
            chosen = evenly(count, 32)
            batch = next(batches_of(data, [chosen]))
            picture = Image.fromarray(grid([to_bytes(batch.source), images[chosen], to_bytes(batch.target)]))
            write_whole(out / "grid.png", lambda file: picture.save(file, "PNG"))
            record = {
                **names, "checkpoint": path.name, "checkpoint_digest": header["checkpoint_digest"],
                "dataset": model.config.data.dataset, "split": settings.split, "count": count, "order_digest": digest,
                "nfe": nfe, "settings": asdict(settings), "depends_on": header,
            }  # fmt: skip
            record["files"] = files(record, settings, data)
            write_whole(out / RECORD, json.dumps(record, indent=2).encode())
            if known:  # of fewer images, or with other pictures
                kept = (RECORD, *record["files"])
                mirror.remove(n for n in mirror.names() if WRITTEN.fullmatch(n) and not n.startswith(kept))
            mirror.send()
            if (more := store.count() - count) > 0:
                print(f"note: {more} images more of an unfinished sampling are kept in {store.folder}")
            else:
                store.remove()
            print(*(stores.address(out / name) for name in (*names.values(), "grid.png")), sep="\n")
        distributed.barrier()  # srun would end the others soon after the first
    return 0


def files(record: dict[str, Any], settings: SampleConfig, data: PairedData) -> list[str]:
    """The files and folders (ending in /) that a sampling writes beside its record."""
    if not record:
        return []
    pngs = [record["samples"].removesuffix("npz").rstrip(".") + "/"] if settings.png else []
    drawn = range(min(settings.trajectory, record["count"]))
    strips = [f"trajectory_{file_name(i, data.names[i])}.png" for i in drawn]
    return [record["samples"], record["reference"], "grid.png", *pngs, *strips]


def sample_all(
    store: Store, model: BridgeModel, data: PairedData, count: int, settings: SampleConfig, ours: slice
) -> int:
    """Samples what is missing of the first `count` images, of its batches a share; the most evaluations of an image."""
    runs = missing(distributed.from_main(store.evaluations)[:count], settings.batch_size)
    if kept := count - sum(map(len, runs)):
        say(f"{kept} of {count} images were sampled before and are kept")
    with tqdm(
        total=count, initial=kept, unit="image", desc=f"sampling {settings.split}", dynamic_ncols=True,
        disable=not distributed.is_main(),
    ) as bar:  # fmt: skip
        for batch in batches_of(data, runs[ours], settings.workers):
            for start, samples in drawn(model, batch, settings):
                store.write(start, to_bytes(samples.x_0), samples.nfe)
                if not bar.disable:
                    bar.update(store.count(count) - bar.n)  # of all ranks
        distributed.barrier()
        bar.update(count - bar.n)
    evaluations = distributed.from_main(store.evaluations)[:count]
    if gaps := missing(evaluations, settings.batch_size):
        raise ValueError(
            f"image {gaps[0][0]} is gone from {store.folder}: out_dir must be one folder that all ranks see, and "
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


def write_reference(path: Path, data: PairedData, count: int, settings: SampleConfig) -> None:
    """Writes targets, sources and masks; the data is read for each, as an npz takes one array after the other."""

    def fill(writer: npz.Writer, _: Path) -> None:
        steps = [range(i, min(i + settings.batch_size, count)) for i in range(0, count, settings.batch_size)]
        arrays: dict[str, tuple[int, type, Callable[[Batch], np.ndarray]]] = {
            "arr_0": (data.target_channels, np.uint8, lambda batch: to_bytes(batch.target)),
            "source": (data.source_channels, np.uint8, lambda batch: to_bytes(batch.source)),
            "mask": (1, bool, lambda batch: common.inside(batch).permute(0, 2, 3, 1).numpy()),
        }
        for key, (channels, kind, part) in arrays.items():
            batches = batches_of(data, steps, settings.workers)
            writer.stream(key, (count, *data.size, channels), kind, map(part, batches))
        common.add_order(writer, data.names[:count])

    npz.write(path, fill)


if __name__ == "__main__":
    run(main)
