"""Writes a reference for the evaluator: `python -m scripts.make_reference --dataset NAME [--flag ...] OUT.npz`.

The targets of a split in the order of the data set, `mask` where not all of their pixels are defined, and statistics
of their features (docs/evaluation.md). With --group every target is followed by its turned copies: the reference of FID
against the augmented set.
"""

import json
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from datasets import Batch, eval_batches
from ddbm.config import PARTS, DataConfig
from ddbm.files import npz
from ddbm.ranks.distributed import pick_device
from ddbm.settings import choose, from_flags, setting
from ddbm.symmetry.groups import GROUPS, IDENTITY, act
from evaluations.features import Cache, describe
from evaluations.images import load_images, to_bytes
from evaluations.networks import LAYERS, NETWORKS, Network
from evaluations.references import PROVENANCE, STATISTICS

from .common import add_order, inside, open_split, own_folder, run

EXTRACTORS = {LAYERS[layer].network: NETWORKS[LAYERS[layer].network] for layer in STATISTICS}


@dataclass(frozen=True)
class ReferenceConfig(DataConfig):
    """The data, and the reference made of it."""

    split: str = setting("test", "part of the data", choices=PARTS[:4])
    group: str = setting("none", "every target and its copies under this group", choices=tuple(GROUPS))
    statistics: str = setting(
        "auto", "extractors, apart by commas (raw, inception, dinov2), or auto: raw, and those whose weights are here"
    )
    weights: str = setting("", "folder with the weights of the extractors; also $DDBM_WEIGHTS")
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    batch_size: int = setting(32, "images at a time", above=0)
    workers: int = setting(0, "processes that read the data")


def extractors(words: str, weights: str, device: torch.device) -> list[Network]:
    """Those asked for, downloaded if need be; of auto those that need no download. Raises ValueError."""
    auto, found = words == "auto", []
    for name in EXTRACTORS if auto else dict.fromkeys(word for word in words.split(",") if word):
        try:
            found.append(choose(EXTRACTORS, name, "extractor")(weights or None, device, not auto))
        except FileNotFoundError as error:
            if not auto or (weights and not Path(weights).exists()):
                raise
            print(f"note: no statistics of {name}: {error}")
    return found


def main(argv: Sequence[str]) -> int:
    settings, extra = from_flags(ReferenceConfig, argv, {"out": "the npz to write"})
    config = own_folder(DataConfig(**{f.name: getattr(settings, f.name) for f in fields(DataConfig)}))
    out = Path(extra.out)
    if out.suffix != ".npz" or not out.parent.is_dir():
        raise ValueError(f"cannot write '{extra.out}': name an .npz file in a directory that exists")
    data, group = open_split(config, settings.split), GROUPS[settings.group]
    group.check_size(*data.size)
    shape = (len(data) * len(group), *data.size, data.target_channels)
    usable = shape[0] >= 2 and min(data.size) >= 8 and data.target_channels in (1, 3)
    found = extractors(settings.statistics, settings.weights, pick_device(settings.device)) if usable else []
    # of a turned copy the name with its element, such as `a.png#10`
    names = [name + ("" if g == IDENTITY else "#{}{}".format(*g)) for name in data.names for g in group.elements]
    provenance = {
        "dataset": config.dataset,
        "split": settings.split,
        "group": settings.group,
        "n": shape[0],
        "data": asdict(config) | {"data_dir": Path(config.data_dir).name},
        "extractors": {e.name: {"weights": e.weights, "resizing": e.resizing} for e in found},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }

    masked: list[bool] = []

    def target(batch: Batch) -> torch.Tensor:
        masked.append(not bool(inside(batch).all()))
        return batch.target

    def turned(part: Callable[[Batch], torch.Tensor]) -> Iterator[torch.Tensor]:
        """A part of all pairs, batch by batch, each image followed by its turned copies, [B |G|, C, H, W]."""
        batches = eval_batches(data, batch_size=settings.batch_size, workers=settings.workers)
        for batch in tqdm(batches, f"reading {settings.split}", unit="batch", dynamic_ncols=True):
            yield torch.stack([act(g, part(batch)) for g in group.elements], 1).flatten(0, 1)

    def fill(writer: npz.Writer, _: Path) -> None:
        writer.stream("arr_0", shape, np.uint8, map(to_bytes, turned(target)))
        if any(masked):
            writer.stream("mask", (*shape[:3], 1), bool, (m.permute(0, 2, 3, 1).numpy() for m in turned(inside)))
        add_order(writer, names)
        writer.add(PROVENANCE, np.array(json.dumps(provenance)))

    def add(writer: npz.Writer, aside: Path) -> None:
        """Mean and covariance of every layer that somebody asks for."""
        images = load_images(aside)
        for extractor in found:
            parts = [(layer, IDENTITY) for layer in STATISTICS if LAYERS[layer].network == extractor.name]
            described = describe(images, extractor, parts, Cache(None), batch_size=settings.batch_size)
            for (layer, _), got in described.items():
                for key, array in zip(STATISTICS[layer], (got.mu, got.sigma), strict=True):
                    writer.add(key, array)

    npz.write(out, fill, add)
    kept = ", ".join(e.name for e in found) or "nothing"
    print(f"{out}: {shape[0]} images of {shape[1]} x {shape[2]} px, {shape[3]} channel(s); statistics of {kept}")
    return 0


if __name__ == "__main__":
    run(main)
