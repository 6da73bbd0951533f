"""What the entry points share: tables of names, data sets, checkpoints."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets import DATASETS, Batch, PairedData, open_data
from ddbm.bridges.grids import GRIDS
from ddbm.bridges.paths import SCHEDULES
from ddbm.bridges.samplers import SAMPLERS
from ddbm.config import DataConfig, Header
from ddbm.files import checkpoint, npz, stores
from ddbm.files.folders import locked as locked
from ddbm.files.folders import make_directory as make_directory
from ddbm.model import SYMMETRIZE, BridgeModel, ImageShape
from ddbm.networks.backbones import BACKBONES
from ddbm.networks.layers import LAYERS
from ddbm.ranks import distributed
from ddbm.ranks.entry import run as run
from ddbm.settings import differences, from_dict
from ddbm.symmetry.groups import GROUPS
from evaluations.images import NAMES, ORDER, order_digest

TABLES: Mapping[str, Sequence[str]] = {
    "schedule": list(SCHEDULES),
    "backbone": list(BACKBONES),
    "layers": list(LAYERS),
    "group": list(GROUPS),
    "augment": list(GROUPS),
    "sampler": list(SAMPLERS),
    "grid": list(GRIDS),
    "symmetrize": list(SYMMETRIZE),
}


def say(text: str) -> None:
    """Prints on rank 0."""
    if distributed.is_main():
        print(text)


def find_checkpoint(text: str | Path) -> Path:
    """The checkpoint that a path or an address of a store names, or of a run the newest whole one."""
    return checkpoint.find(text, say)


def open_split(
    config: DataConfig, split: str, data_dir: str = "", like: Header | None = None, sources: bool = False
) -> PairedData:
    """A part of a model's data, or of the other pairs in `data_dir`; says what it fell back on.

    split: "auto" is test, or all of other pairs where they have no splits; like: the checkpoint's header; sources:
    other pairs may come without targets.
    """
    (data,) = open_splits(config, split, data_dir=data_dir, like=like, sources=sources)
    return data


def open_splits(
    config: DataConfig,
    *splits: str,
    data_dir: str = "",
    like: Header | None = None,
    quiet: bool = False,
    sources: bool = False,
) -> list[PairedData]:
    """Several parts; what holds for more than one of them is said once."""
    trained = "" if config.dataset in DATASETS or not config.data_dir else stores.full(config.data_dir)
    settings = asdict(config)
    if other := bool(data_dir) and stores.full(data_dir) != trained:
        settings |= {"data_dir": data_dir, "dataset": "paired"}
    said: list[str] = []
    opened: list[PairedData] = []
    for split in splits:
        part = "test" if split == "auto" and not other else split
        opened.append(open_data(split=part, like=like, sources=sources and other, **settings))
        place, _, text = opened[-1].notice.partition(": ")
        fresh = [sentence for sentence in text.split("; ") if sentence and sentence not in said]
        said += fresh
        if fresh and not quiet:
            say(f"note: {place}: {'; '.join(fresh)}")
    return opened


def given_folder(data_dir: str) -> str:
    """The folder of pairs that a flag names, or else the environment; "" if neither does."""
    return data_dir or os.environ.get("DATA_DIR", "")


def from_anywhere(codec: str) -> str:
    """Where a codec lies, found from any directory, too; a name in the hub's cache, pixels and nothing as they are."""
    return stores.full(codec) if codec and Path(codec).exists() else codec


def own_folder(config: DataConfig) -> DataConfig:
    """The data with the folder that is given; refuses one for a data set without a folder."""
    place = given_folder(config.data_dir)
    if place and config.dataset in DATASETS:
        raise ValueError(
            f"dataset {config.dataset} comes without a folder, found DATA_DIR {place}: leave it out (unset DATA_DIR), "
            "or give these pairs another name by --dataset, such as my_pairs"
        )
    return replace(config, data_dir=place)


def header_of(path: Path) -> Header:
    """What a checkpoint says of itself."""
    return from_dict(Header, checkpoint.read_header(path, "model"), str(path / "config.json"))


def shape_of(data: PairedData) -> ImageShape:
    """What a model must be made for to be used with this data."""
    return ImageShape(data.target_channels, data.source_channels, *data.size, data.num_classes)


def refuse_shape(data: PairedData, wanted: ImageShape) -> None:
    """Raises ValueError, naming what differs, for data that a model of this shape was not made for."""
    if differing := differences(asdict(wanted), asdict(shape_of(data))):
        raise ValueError(
            f"these pairs do not fit the model (model -> pairs, {'; '.join(differing)}): convert them; a "
            "model trained with --image_size N takes any size"
        )


def refuse_conflict(model: BridgeModel, group: str) -> None:
    """Raises ValueError for a group other than that of symmetric layers; plain layers may be sampled under any."""
    own = model.group.name
    if group and model.config.model.layers != "plain" and group != own:
        raise ValueError(
            f"--group {group} was asked for, but the checkpoint's {model.config.model.layers} layers have {own}: "
            "leave --group out"
        )


def inside(batch: Batch) -> Tensor:
    """Where both images of the pairs are defined, bool `[B, 1, H, W]`."""
    return torch.ones_like(batch.target[:, :1], dtype=torch.bool) if batch.mask is None else batch.mask


def add_order(writer: npz.Writer, names: Sequence[str]) -> None:
    """What an npz says of the order of its rows."""
    writer.add(NAMES, np.array(names))
    writer.add(ORDER, np.array(order_digest(names)))


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)
