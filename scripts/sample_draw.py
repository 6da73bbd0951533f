"""Draws the samples of batches: which images make a batch, and what happens when one does not fit the memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from datasets import Batch, PairedData
from ddbm.config import SampleConfig
from ddbm.model import BridgeModel, Samples, sample, sampler_settings
from ddbm.ranks import distributed
from ddbm.ranks.devices import out_of_memory
from ddbm.training.trainer import convert_to_channels_last

from .common import to_bytes
from .picked import Picked


def prepare(model: BridgeModel, settings: SampleConfig) -> None:
    """Arithmetic, layout and compilation of the network."""
    model.precision = settings.precision
    if settings.channels_last:
        convert_to_channels_last(model.network)
    if settings.compile != "none":
        model.network.compile(mode=settings.compile)


def own_values(settings: SampleConfig) -> dict[str, Any]:
    """The settings that are the sampler's own."""
    return {name: getattr(settings, name) for name in sampler_settings(settings.sampler)}


def draw(model: BridgeModel, batch: Batch, settings: SampleConfig, trajectory: bool = False) -> Samples:
    """Samples of one batch."""
    inside = batch.to(next(model.parameters()).device)
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    return sample(
        model,
        inside.source.contiguous(memory_format=layout),
        sampler=settings.sampler,
        nfe=settings.nfe,
        grid=settings.grid,
        symmetrize=settings.symmetrize,
        group=settings.group,
        seed=settings.seed,
        index=batch.index.tolist(),
        mask=inside.mask,
        label=inside.label,
        trajectory=trajectory,
        **own_values(settings),
    )


class Drawer:
    """Samples batches, from the first that does not fit the memory on in parts half as large."""

    def __init__(self, model: BridgeModel, settings: SampleConfig) -> None:
        self.model, self.settings, self.at_once = model, settings, settings.batch_size

    def __call__(self, batch: Batch) -> tuple[np.ndarray, int]:
        """Samples as uint8 NHWC, and the evaluations each took."""
        images: list[np.ndarray] = []
        nfe = done = 0
        while done < len(batch.index):
            part = rows(batch, done, done + self.at_once)
            try:
                samples = draw(self.model, part, self.settings)
                images.append(to_bytes(samples.x_0))
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                if len(part.index) == 1:
                    raise ValueError(
                        "a single image does not fit the memory: try --precision bf16, or another --device"
                    ) from error
            else:
                nfe, done = max(nfe, samples.nfe), done + len(part.index)
                continue
            self.at_once = len(part.index) // 2  # here, where the error no longer holds what had been computed
            torch.cuda.empty_cache()
            who = f"rank {distributed.rank()}: " if distributed.size() > 1 else ""
            tqdm.write(
                f"note: {who}{len(part.index)} images at once do not fit the memory: going on with {self.at_once}"
            )
        return np.concatenate(images), nfe


def rows(batch: Batch, start: int, stop: int) -> Batch:
    """A part of a batch."""
    return Batch(*(None if values is None else values[start:stop] for values in batch))  # type: ignore[arg-type]


def batches(data: PairedData, runs: Sequence[range], settings: SampleConfig) -> Iterator[Batch]:
    """A batch for every run of images, read ahead as long as the batches are whole."""
    groups: list[list[int]] = []
    for run_ in runs:
        if not groups or len(groups[-1]) % settings.batch_size:
            groups.append([])
        groups[-1] += run_
    for group in groups:
        yield from Picked(data, group).batches(settings.batch_size, settings.workers)
