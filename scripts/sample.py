"""Samples a data set: `python -m scripts.sample MODEL_PATH [--flag value ...]` (see sample_ddbm.sh, docs/sampling.md).

MODEL_PATH is a checkpoint or a run's directory; everything about the model comes from it. Writes, in the order of the
data set, `samples_NxHxWxC_nfeK.npz` and `reference_NxHxWxC.npz` (`arr_0`: uint8 NHWC; the reference also `source` and
`mask`), `grid.png` (source | sample | target) and `sampling.json`. Outside the mask all images are mid-grey.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets import PairedData
from ddbm.bridges.samplers import SAMPLERS
from ddbm.config import Config, SampleConfig
from ddbm.files.checkpoint import MANIFEST
from ddbm.files.storage import location, remove_tree, write_whole
from ddbm.model import BridgeModel, check_budget, load, sampler_settings, sampling_group
from ddbm.ranks import distributed
from ddbm.ranks.devices import pick_device
from ddbm.settings import from_flags
from evaluations.images import order_digest

from .common import (
    TABLES,
    find_checkpoint,
    open_split,
    refuse_conflict,
    run,
    say,
    to_bytes,
)
from .lock import locked
from .pictures import evenly, file_name, grid
from .sample_draw import Drawer, batches, draw, own_values, prepare
from .sample_store import Part, Parts, chosen, in_order, missing, read, whole, write_file
from .trajectory import draw_trajectory

T = TypeVar("T")
SWITCHES = {"--restart": "throw away the images of an unfinished sampling in out_dir"}
# what changes no image but for rounding, or says where things are
FREE = (
    "dataset", "schedule", "data_dir", "num_samples", "batch_size", "device", "workers", "out_dir", "png", "trajectory",
    "compile", "channels_last", "rendezvous_timeout",
)  # fmt: skip
IN_GRID = 32


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
    others = {name for sampler in SAMPLERS for name in sampler_settings(sampler)} - set(
        sampler_settings(settings.sampler)
    )
    for f in fields(settings):
        if f.name in others and getattr(settings, f.name) != f.default:
            raise ValueError(f"--{f.name} means nothing to sampler {settings.sampler}: leave it out")
    used = own_values(settings)
    check_budget(model, settings.sampler, settings.nfe, settings.symmetrize, acting, settings.grid, **used)


def open_sources(config: Config, settings: SampleConfig, model: BridgeModel) -> PairedData:
    """The data to sample; its channels and size must be those the model was made for."""
    own = config.data if not settings.data_dir else replace(config.data, data_dir=settings.data_dir)
    data = open_split(own, settings.split)
    found = (data.target_channels, data.source_channels, *data.size, data.num_classes)
    images = model.images
    expected = (images.target_channels, images.source_channels, images.height, images.width, images.num_classes)
    if found != expected:
        raise ValueError(
            f"the data has (target channels, source channels, height, width, classes) {found}, "
            f"the model was trained on {expected}"
        )
    return data


def describe(settings: SampleConfig, data_dir: str) -> str:
    """A short name of all settings that change the samples; data_dir: where the checkpoint's data lies."""
    used = [f"{name}{value:g}" for name, value in own_values(settings).items() if name != "order" or value]
    used = [f"nfe{settings.nfe}", *([settings.grid] if settings.grid else []), *used]
    extra = [v for v in (settings.symmetrize, settings.group, settings.weights) if v not in ("none", "", "ema")]
    extra += [] if settings.precision == "fp32" else [settings.precision]
    extra += ["tf32"] if settings.tf32 else []
    extra += [f"first{settings.num_samples}"] if settings.num_samples else []
    other = location(settings.data_dir or data_dir).expanduser().resolve()
    if settings.data_dir and str(other) != data_dir:
        extra.append(f"{other.name}-{hashlib.sha256(str(other).encode()).hexdigest()[:6]}")
    return "_".join([settings.split, settings.sampler, *used, f"seed{settings.seed}", *extra])


def checkpoint_digest(path: Path) -> str:
    """Of the manifest, which has the digests of the other files."""
    return hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()


def header_of(path: Path, settings: SampleConfig, model: BridgeModel, data: PairedData) -> dict[str, Any]:
    """What the images depend on."""
    place = settings.data_dir or model.config.data.data_dir
    return {
        "checkpoint": path.name,
        "checkpoint_digest": checkpoint_digest(path),
        "data_dir": str(location(place).expanduser().resolve()) if place else "",
        "pairs": order_digest(data.names),
        **{name: value for name, value in asdict(settings).items() if name not in FREE},
    }


def main(argv: Sequence[str]) -> int:
    arguments = {"model_path": "checkpoint, or directory of a run"}
    settings, extra = from_flags(SampleConfig, argv, arguments, SWITCHES, TABLES)
    world = distributed.world_of(os.environ)
    device = distributed.device_of(str(pick_device(settings.device, settings.tf32)), world)
    distributed.start(world, device, settings.rendezvous_timeout)
    path = distributed.from_main(lambda: find_checkpoint(extra.model_path))
    model = load(path, settings.weights, device)
    agree(model, settings)
    prepare(model, settings)
    data = open_sources(model.config, settings, model)
    count = min(settings.num_samples or len(data), len(data))
    default = path.parent.parent / "samples" / f"{path.name}_{describe(settings, model.config.data.data_dir)}"
    asked = location(settings.out_dir) if settings.out_dir else default
    with ExitStack() as stack:
        distributed.from_main(lambda: stack.enter_context(locked(asked, "out_dir")))
        return write_samples(asked, path, model, data, count, settings, extra.restart)


def write_samples(
    out: Path, path: Path, model: BridgeModel, data: PairedData, count: int, settings: SampleConfig, restart: bool
) -> int:
    """Samples the first `count` images of the data into the locked folder `out`; path: the model's checkpoint."""
    header = header_of(path, settings, model, data)
    store = Parts(out)
    parts = sample_all(store, header, restart, model, data, count, settings)
    names, nfe = names_of(parts, count)
    if settings.png:
        folder = out / names["samples"].removesuffix(".npz")
        distributed.from_main(lambda: make_anew(folder))
        for part in ours(parts):
            write_pngs(folder, read(part, "sample", count), data.names, part.start)
    for i in ours(range(min(settings.trajectory, count))):
        show_trajectory(out, model, data, i, settings)
    distributed.barrier()
    if distributed.is_main():
        digest = order_digest(data.names[:count])
        write_arrays(out, parts, count, names, digest)
        record = {
            **names,
            "checkpoint": path.name,
            "checkpoint_digest": header["checkpoint_digest"],
            "dataset": model.config.data.dataset,
            "split": settings.split,
            "count": count,
            "order_digest": digest,
            "nfe": nfe,
            "settings": asdict(settings),
        }
        write_whole(out / "sampling.json", json.dumps(record, indent=2).encode())
        if (more := store.images(len(data)) - count) > 0:
            print(f"note: {more} images more of an unfinished sampling are kept in {store.folder}")
        else:
            store.remove()
        for name in (*names.values(), "grid.png"):
            print(out / name)
    distributed.barrier()  # srun would end the others soon after the first
    return 0


def ours(things: Sequence[T]) -> Sequence[T]:
    """This rank's share."""
    return things[distributed.rank() :: distributed.size()]


def sample_all(
    store: Parts,
    header: dict[str, Any],
    restart: bool,
    model: BridgeModel,
    data: PairedData,
    count: int,
    settings: SampleConfig,
) -> list[Part]:
    """Samples what is missing of the first `count` images, this rank its share; returns the parts of all."""
    runs = missing(distributed.from_main(lambda: store.begin(header, restart)), count, settings.batch_size)
    kept = count - sum(map(len, runs))
    if kept:
        say(f"{kept} of {count} images were sampled before and are kept")
    drawer = Drawer(model, settings)
    with tqdm(
        total=count, initial=kept, unit="image", desc=f"sampling {settings.split}", dynamic_ncols=True,
        disable=not distributed.is_main(),
    ) as bar:  # fmt: skip
        for batch in batches(data, ours(runs), settings):
            images, nfe = drawer(batch)
            arrays = {"sample": images, "target": to_bytes(batch.target), "source": to_bytes(batch.source)}
            if batch.mask is not None:
                arrays["mask"] = batch.mask.permute(0, 2, 3, 1).numpy()
            store.write(int(batch.index[0]), arrays, nfe)
            if not bar.disable:
                bar.update(store.images(count) - bar.n)  # of all ranks
        distributed.barrier()
        bar.update(count - bar.n)
    parts = [part for part in distributed.from_main(store.found) if part.start < count]
    if gaps := missing(parts, count, settings.batch_size):
        raise ValueError(
            f"image {gaps[0][0]} is gone from {store.folder}: out_dir must be one folder that all ranks see, and "
            "that no other sampling writes to"
        )
    return parts


def names_of(parts: Sequence[Part], count: int) -> tuple[dict[str, str], int]:
    """The names of both npz files, and the evaluations that an image took, at most."""

    def look() -> tuple[dict[str, str], int]:
        shape = "x".join(map(str, (count, *read(parts[0], "sample", count).shape[1:])))
        nfe = max(int(read(part, "nfe", count)) for part in parts)
        return {"samples": f"samples_{shape}_nfe{nfe}.npz", "reference": f"reference_{shape}.npz"}, nfe

    return distributed.from_main(look)


def show_trajectory(out: Path, model: BridgeModel, data: PairedData, index: int, settings: SampleConfig) -> None:
    """Samples an image again, alone, and draws its way."""
    batch = next(batches(data, [range(index, index + 1)], settings))
    samples = draw(model, batch, settings, trajectory=True)
    assert samples.trajectory is not None
    name = file_name(index, data.names[index])
    draw_trajectory(out, name, model.bridge, samples.trajectory, batch.source, samples.x_0, batch.target)


def write_arrays(out: Path, parts: Sequence[Part], count: int, names: dict[str, str], digest: str) -> None:
    """Writes both npz files, whose key `order_digest` says that they belong together, and the grid."""
    order = np.array(digest)
    reference = {"arr_0": "target", "source": "source", "mask": "mask"}
    for name, arrays in (("reference", reference), ("samples", {"arr_0": "sample"})):
        content = {key: in_order(parts, of, count) for key, of in arrays.items()} | {"order_digest": whole(order)}
        write_file(out / names[name], content)
    shown = evenly(count, IN_GRID)
    picture = Image.fromarray(grid([chosen(parts, side, shown) for side in ("source", "sample", "target")]))
    write_whole(out / "grid.png", lambda file: picture.save(file, "PNG"))


def make_anew(folder: Path) -> None:
    """An empty folder, in the place of one that an earlier sampling wrote."""
    if folder.is_dir():
        remove_tree(folder, "")  # no file makes it count
    folder.mkdir()


def write_pngs(folder: Path, images: np.ndarray, names: Sequence[str], start: int) -> None:
    """A file for every image `[H, W, C]`, the first of them number `start`."""
    for i, image in enumerate(images, start):
        path = folder / f"{file_name(i, names[i])}.png"
        try:
            with path.open("wb") as file:
                Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, "PNG")
        except OSError as error:
            raise OSError(f"cannot write {path}: {error.strerror or error}") from error


if __name__ == "__main__":
    run(main)
