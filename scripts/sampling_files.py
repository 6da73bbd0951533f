"""The files that a sampling writes: its arrays, its pictures, and how they are called."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets import Batch, PairedData, batches_of
from datasets.images import Picture
from datasets.writing import write_pixels
from ddbm.config import SampleConfig
from ddbm.files import npz
from ddbm.files.storage import named, write_whole
from ddbm.ranks import distributed
from evaluations.images import file_name, to_bytes

from . import common
from .pictures import evenly, grid

AT_ONCE = 64  # images whose draws are copied into an npz at a time
ON_GRID = 32  # images


def files(record: dict[str, Any], settings: SampleConfig, data: PairedData) -> list[str]:
    """The files and folders (ending in /) that a sampling writes beside its record."""
    if not record:
        return []
    pngs = [record["samples"].removesuffix("npz").rstrip(".") + "/"] if settings.png else []
    strips = [strip_name(i, data) for i in range(min(settings.trajectory, record["count"]))]
    return [record["samples"], record[beside(record)], "grid.png", *pngs, *strips]


def beside(record: dict[str, Any]) -> str:
    """What a record calls the file of that which was sampled from: the reference, or sources without targets."""
    return "sources" if "sources" in record else "reference"


def strip_name(index: int, data: PairedData) -> str:
    """The picture of the way to a sample."""
    return f"trajectory_{file_name(index, data.names[index])}.png"


def write_reference(path: Path, data: PairedData, count: int, settings: SampleConfig) -> None:
    """Writes targets, where there are any, sources and masks.

    The data is read for each, as an npz takes one array after the other.
    """

    def fill(writer: npz.Writer, _: Path) -> None:
        steps = [range(i, min(i + settings.batch_size, count)) for i in range(0, count, settings.batch_size)]
        arrays: dict[str, tuple[int, type, Callable[[Batch], np.ndarray]]] = {
            "source": (data.source_channels, np.uint8, lambda batch: to_bytes(batch.source)),
            "mask": (1, bool, lambda batch: common.inside(batch).permute(0, 2, 3, 1).numpy()),
        }
        if data.targets:
            arrays = {"arr_0": (data.target_channels, np.uint8, lambda batch: to_bytes(batch.target)), **arrays}
        for key, (channels, kind, part) in arrays.items():
            batches = batches_of(data, steps, settings.workers)
            writer.stream(key, (count, *data.size, channels), kind, map(part, batches))
        common.add_order(writer, data.names[:count])

    npz.write(path, fill)


def write_samples(path: Path, images: np.ndarray, names: Sequence[str], reference: Path) -> None:
    """Writes the draws of all images, uint8 `[K, N, H, W, C]`: the first as `arr_0`, all as `draws` where K > 1.

    reference: the file beside it, whose `mask` is written too, if not all of it is True.
    """

    def fill(writer: npz.Writer, _: Path) -> None:
        writer.add("arr_0", images[0])
        common.add_order(writer, names)
        if len(images) > 1:
            parts = (images[:, i : i + AT_ONCE].swapaxes(0, 1) for i in range(0, len(names), AT_ONCE))
            writer.stream("draws", (len(names), len(images), *images.shape[2:]), np.uint8, parts)
        if not all(part.all() for part in npz.rows(reference, "mask", AT_ONCE)):
            shape = (len(names), *images.shape[2:4], 1)
            writer.stream("mask", shape, bool, npz.rows(reference, "mask", AT_ONCE))

    npz.write(path, fill)


def write_pngs(folder: Path, images: np.ndarray, data: PairedData, reference: Path, ours: slice) -> None:
    """Writes this rank's share of the images, uint8 `[N, H, W, C]`, each as a file; what was there is gone.

    reference: the file beside the samples, whose `mask` becomes alpha.
    """
    distributed.from_main(lambda: shutil.rmtree(folder, ignore_errors=True))  # of an earlier sampling
    with named(folder):
        folder.mkdir(exist_ok=True)
    numbers = range(len(images))[ours]
    masks = npz.rows(reference, "mask", 1, numbers.start, numbers.step) if numbers else []
    for i, seen in zip(numbers, masks, strict=True):
        picture = Picture(images[i], None if seen.all() else seen[0, ..., 0])
        with named(place := folder / file_name(i, data.names[i])):
            write_pixels(place, picture)


def write_grid(path: Path, images: np.ndarray, data: PairedData) -> None:
    """Draws source | sample | target of some of the images, uint8 `[N, H, W, C]`; no target where there are none."""
    chosen = evenly(len(images), ON_GRID)
    batch = next(batches_of(data, [chosen]))
    columns = [to_bytes(batch.source), images[chosen], *([to_bytes(batch.target)] if data.targets else [])]
    picture = Image.fromarray(grid(columns))
    write_whole(path, lambda file: picture.save(file, "PNG"))
