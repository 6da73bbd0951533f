"""Samples a data set: `python -m scripts.sample MODEL_PATH [--flag value ...]` (see sample_ddbm.sh).

MODEL_PATH is a checkpoint or a run's directory; everything about the model comes from it. Writes, in the order of the
data set, `samples_NxHxWxC_nfeK.npz` and `reference_NxHxWxC.npz` (`arr_0`: uint8 NHWC; the reference also `source` and
`mask`), `grid.png` (source | sample | target) and `sampling.json`. Outside the mask all images are mid-grey.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, fields, replace

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from datasets import Batch, PairedData, eval_batches
from ddbm.config import Config, SampleConfig
from ddbm.model import BridgeModel, check_budget, load, sample, sampler_settings, sampling_group
from ddbm.settings import from_flags
from ddbm.storage import location, write_whole

from .common import (
    TABLES,
    find_checkpoint,
    make_directory,
    open_split,
    pick_device,
    refuse_conflict,
    run,
    to_bytes,
)
from .pictures import grid


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
    own_settings = sampler_settings(settings.sampler)
    for f in fields(settings):
        if (
            f.name in ("churn", "guidance", "eta")
            and getattr(settings, f.name) != f.default
            and f.name not in own_settings
        ):
            raise ValueError(f"--{f.name} means nothing to sampler {settings.sampler}: leave it out")
    used = {name: getattr(settings, name) for name in own_settings if name != "nfe"}
    check_budget(model, settings.sampler, settings.nfe, settings.symmetrize, acting, **used)


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


def draw(model: BridgeModel, batch: Batch, settings: SampleConfig) -> tuple[np.ndarray, int]:
    """Samples of one batch as uint8 NHWC, and the evaluations each took."""
    device = next(model.parameters()).device
    used = {name: getattr(settings, name) for name in sampler_settings(settings.sampler) if name != "nfe"}
    inside = batch.to(device)
    samples = sample(
        model,
        inside.source,
        sampler=settings.sampler,
        nfe=settings.nfe,
        symmetrize=settings.symmetrize,
        group=settings.group,
        seed=settings.seed,
        index=batch.index.tolist(),
        mask=inside.mask,
        label=inside.label,
        **used,
    )
    return to_bytes(samples.x_0), samples.nfe


def describe(settings: SampleConfig, data_dir: str) -> str:
    """A short name of all settings that change the samples; data_dir: where the checkpoint's data lies."""
    used = [f"{name}{getattr(settings, name):g}" for name in sampler_settings(settings.sampler)]
    extra = [v for v in (settings.symmetrize, settings.group, settings.weights) if v not in ("none", "", "ema")]
    extra += [] if settings.precision == "fp32" else [settings.precision]
    extra += [f"first{settings.num_samples}"] if settings.num_samples else []
    other = location(settings.data_dir or data_dir).expanduser().resolve()
    if settings.data_dir and str(other) != data_dir:
        extra.append(f"{other.name}-{hashlib.sha256(str(other).encode()).hexdigest()[:6]}")
    return "_".join([settings.split, settings.sampler, *used, f"seed{settings.seed}", *extra])


def main(argv: Sequence[str]) -> int:
    settings, extra = from_flags(SampleConfig, argv, {"model_path": "checkpoint, or directory of a run"}, tables=TABLES)
    path = find_checkpoint(extra.model_path)
    model = load(path, settings.weights, pick_device(settings.device))
    model.precision = settings.precision
    agree(model, settings)
    data = open_sources(model.config, settings, model)
    count = min(settings.num_samples or len(data), len(data))
    default = path.parent.parent / "samples" / f"{path.name}_{describe(settings, model.config.data.data_dir)}"
    out = make_directory(location(settings.out_dir) if settings.out_dir else default)

    rows: dict[str, list[np.ndarray]] = {"sample": [], "target": [], "source": [], "mask": []}
    nfe = 0
    with tqdm(total=count, unit="image", desc=f"sampling {settings.split}", dynamic_ncols=True) as bar:
        for batch in eval_batches(data, batch_size=settings.batch_size, workers=settings.workers):
            batch = first(batch, count - int(bar.n))
            images, nfe = draw(model, batch, settings)
            rows["sample"].append(images)
            rows["target"].append(to_bytes(batch.target))
            rows["source"].append(to_bytes(batch.source))
            inside = torch.ones_like(batch.target[:, :1], dtype=torch.bool) if batch.mask is None else batch.mask
            rows["mask"].append(inside.permute(0, 2, 3, 1).numpy())
            bar.update(len(images))
            if bar.n >= count:
                break

    samples, target, source, mask = (np.concatenate(rows[name]) for name in ("sample", "target", "source", "mask"))
    shape = "x".join(map(str, samples.shape))
    names = {"samples": f"samples_{shape}_nfe{nfe}.npz", "reference": f"reference_{shape}.npz"}
    write_whole(out / names["reference"], lambda file: np.savez(file, arr_0=target, source=source, mask=mask))
    write_whole(out / names["samples"], lambda file: np.savez(file, arr_0=samples))
    picture = Image.fromarray(grid([source, samples, target]))
    write_whole(out / "grid.png", lambda file: picture.save(file, "PNG"))
    record = {**names, "checkpoint": path.name, "nfe": nfe, "settings": asdict(settings)}
    write_whole(out / "sampling.json", json.dumps(record, indent=2).encode())
    for name in (*names.values(), "grid.png"):
        print(out / name)
    return 0


def first(batch: Batch, count: int) -> Batch:
    """The first `count` rows of a batch."""

    def cut(values: torch.Tensor | None) -> torch.Tensor | None:
        return None if values is None else values[:count]

    return Batch(batch.target[:count], batch.source[:count], batch.index[:count], cut(batch.mask), cut(batch.label))


if __name__ == "__main__":
    run(main)
