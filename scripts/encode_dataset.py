"""Encodes a data set once: `python -m scripts.encode_dataset --dataset NAME --codec PATH --out DIR [--flag value ...]`.

Both sides of every pair and of its copies under --augment, as arrays (datasets/latents.py); trained on by
`scripts.train --packed DIR`. Killed at any moment, the same command goes on.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from datasets import Batch, PairedData, batches_of
from datasets.latents import RECORD, Pack, read_pack
from ddbm.codecs import Codec, open_codec
from ddbm.config import PARTS, DataConfig
from ddbm.files import stores
from ddbm.files.canvas import make_rows, write_rows
from ddbm.files.storage import write_whole
from ddbm.model import autocast
from ddbm.networks.convolutions import folded
from ddbm.ranks.distributed import pick_device
from ddbm.settings import from_flags, setting, to_dict
from ddbm.symmetry.groups import GROUPS
from ddbm.translation.tiles import encoded_by

from .common import TABLES, locked, open_split, own_folder, run, say, shape_of
from .training import marks

PROBED = 4  # pairs


@dataclass(frozen=True)
class EncodeConfig(DataConfig):
    """The data, and how they are encoded."""

    codec: str = setting("", "autoencoder: the run that trained one, or an AutoencoderKL; needed")
    augment: str = setting("none", "group under which copies are turned, before they are encoded")
    latents: str = setting(
        "mode", "mode, or sample: with standard deviations, twice as large", choices=("mode", "sample")
    )
    out: str = setting("", "folder to write to; needed")
    split: str = setting("train", "part of the data", choices=PARTS[:4])
    whole: int = setting(1024, "pixels a side of the largest images that are not cut into tiles", above=0)
    batch_size: int = setting(16, "images at once", above=0)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    precision: str = setting("fp32", "arithmetic of the encoder", choices=("fp32", "bf16"))
    workers: int = setting(0, "processes that read the data")


class Encoder:
    """What a codec makes of pairs, as the arrays of a pack."""

    def __init__(self, codec: Codec, settings: EncodeConfig, device: torch.device) -> None:
        self.codec, self.settings, self.device = codec.to(device), settings, device

    def moments(self, x: Tensor) -> Tensor:
        """Means of the latents and, where they are asked for, standard deviations, along the channels."""
        with autocast(x.device, self.settings.precision):
            mean, std = self.codec.distribution(x)
        return torch.cat([mean, std], 1) if self.settings.latents == "sample" else mean

    def side(self, x: Tensor) -> np.ndarray:
        if max(x.shape[2:]) > self.settings.whole:
            return encoded_by(self.moments, self.codec, x.numpy(), 1 + (self.settings.latents == "sample"))
        return self.moments(x.to(self.device)).cpu().numpy()

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> dict[str, np.ndarray]:
        """By the names of the arrays, the copies along the second axis."""
        copies = [batch.turned(g) for g in GROUPS[self.settings.augment].elements]
        rows = {side: np.stack([self.side(getattr(copy, side)) for copy in copies], 1) for side in ("target", "source")}
        if batch.mask is not None:
            rows["mask"] = np.stack([self.codec.mask(copy.mask).numpy() for copy in copies if copy.mask is not None], 1)
        else:
            rows["mask"] = np.ones((*rows["target"].shape[:2], 1, *rows["target"].shape[3:]), bool)
        return rows if batch.label is None else rows | {"label": batch.label.numpy()}


def described(config: DataConfig, settings: EncodeConfig, codec: Codec, data: PairedData) -> Pack:
    """The pack of these settings, of which nothing is done."""
    images, group = shape_of(data), GROUPS[settings.augment]
    latents = codec.shape(images)
    channels = latents.target_channels * (1 + (settings.latents == "sample"))
    return Pack(
        codec.digest, config, images, marks(data, "train"), group.name, group.elements, settings.latents,
        settings.precision, settings.whole, (len(data), len(group), channels, latents.height, latents.width),
    )  # fmt: skip


def begin(out: Path, pack: Pack) -> Pack:
    """Takes up what is there of this pack, or makes its files. Raises ValueError where the folder holds another."""
    if (out / RECORD).exists():
        found = read_pack(out)
        if differing := found.apart(pack, "group", "latents", "precision", "whole"):
            raise ValueError(
                f"{out} holds latents by another codec, of other data or with other settings ({'; '.join(differing)}): "
                "use those to go on, or give another --out"
            )
        if found.done:
            return found
    elif others := [path.name for path in sorted(out.iterdir()) if not path.name.startswith(".")]:
        raise ValueError(f"{out} holds something else already, such as {others[0]}: choose another --out")
    keep(out, pack)
    for side in ("target", "source"):
        make_rows(out / f"{side}.npy", pack.shape)
    make_rows(out / "mask.npy", (*pack.shape[:2], 1, *pack.shape[3:]), bool)
    if pack.images.num_classes:
        make_rows(out / "label.npy", pack.shape[:1], np.int64)
    return pack


def keep(out: Path, pack: Pack) -> Pack:
    """Writes what the pack says of itself, which counts from then on."""
    write_whole(out / RECORD, json.dumps(to_dict(pack), indent=2).encode())
    return pack


def encode(encoder: Encoder, data: PairedData, pack: Pack, out: Path) -> Pack:
    """Encodes what is missing."""
    settings, copies, length = encoder.settings, 2 * pack.shape[1], len(data)
    starts = range(pack.done, length, settings.batch_size)
    parts = [range(start, min(start + settings.batch_size, length)) for start in starts]
    seen = sys.stderr.isatty()  # else it is a file, where every update would stay
    with folded(encoder.codec), tqdm(
        total=copies * length, initial=copies * pack.done, unit="image", desc=f"encoding {settings.split}",
        dynamic_ncols=True, mininterval=0.1 if seen else 30,
    ) as bar:  # fmt: skip
        for part, batch in zip(parts, batches_of(data, parts, settings.workers), strict=True):
            rows = encoder(batch)
            for name, values in rows.items():
                write_rows(out / f"{name}.npy", part.start, values, length)
            pack = keep(out, replace(pack, done=part.stop, masked=pack.masked or not rows["mask"].all()))
            bar.update(copies * len(part))
    return pack


def at_random(data: PairedData) -> bool:
    """Whether training would see other crops of the pairs every time."""
    few = range(0, len(data), -(-len(data) // PROBED))
    pairs = [(data.get(i, None), data.get(i, np.random.default_rng(i))) for i in few]
    return any(not torch.equal(fixed.source, cut.source) for fixed, cut in pairs)


def main(argv: Sequence[str]) -> int:
    settings, _ = from_flags(EncodeConfig, argv, tables=TABLES)
    config = own_folder(DataConfig(**{f.name: getattr(settings, f.name) for f in fields(DataConfig)}))
    if not settings.codec or not settings.out:
        raise ValueError("--codec, what encodes, and --out, the folder to write to, are needed: give both")
    if settings.degrade:
        raise ValueError(f"latents are encoded once: leave --degrade {settings.degrade} out")
    if stores.is_store(settings.out):
        raise ValueError(f"--out {settings.out} must be a folder of this machine")
    data = open_split(config, settings.split)
    GROUPS[settings.augment].check_size(*data.size)
    codec = open_codec(settings.codec, shape_of(data))
    if not codec.digest:
        raise ValueError(f"--codec {settings.codec} makes no latents: give an autoencoder")
    if at_random(data):
        say("note: training cuts these pairs at random; their latents are those of one fixed crop each")
    out = Path(settings.out).expanduser()
    with locked(out, "out"):
        pack = begin(out, described(config, settings, codec, data))
        missing = len(data) - pack.done
        if missing:
            pack = encode(Encoder(codec, settings, pick_device(settings.device)), data, pack, out)
        if not pack.masked:
            (out / "mask.npy").unlink(missing_ok=True)
    size = sum(path.stat().st_size for path in out.glob("*.npy")) / 2**30
    copies = f"{pack.shape[1]} copies each, " if pack.shape[1] > 1 else ""
    say(f"{out} {'holds' if missing else 'is finished, it holds'} {len(data)} pairs, {copies}{size:.2f} GiB")
    return 0


if __name__ == "__main__":
    run(main)
