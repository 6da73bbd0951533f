"""The numbers of a report: samples and baselines against the target, what more evaluations buy, equivariance."""

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from datasets import Augmentation, eval_batches, train_batches
from ddbm import load
from ddbm.config import Config
from ddbm.files import npz
from evaluations import baselines as linear
from evaluations.images import Images, to_bytes
from evaluations.metrics import METRICS

from ..check_equivariance import CheckConfig, Pictures, sampled, summary, tested_group
from ..common import open_split
from .runs import Run, SampleSet, open_set, other_pairs, set_folders

FIT_PIXELS = 1_000_000  # training pixels the linear baseline is fitted on
SOURCE, LINEAR = "source itself", "linear map 7×7"

Scores = Mapping[str, dict[str, Any]]  # by metric, as `evaluate` has them
Measure = Callable[[Images, np.ndarray | Images], dict[str, Any]]  # what `evaluate` gives of a reference and samples


class Certificate(NamedTuple):
    """How equivariant samples are, in words and as a line of check_equivariance's table; empty if not measured."""

    words: str
    group: str
    line: dict[str, Any]
    pictures: Pictures


def certify_samples(run: Run, asked: str, device: torch.device, codec: str = "") -> Certificate:
    """The errors of sampling with the settings of the samples; asked: the group, "" the samples' or the model's.

    codec: where that of the run lies; "": where it lay when the samples were drawn.
    """
    settings, count = run.shown.settings, CheckConfig().num_images
    place = "" if run.config.model.codec == "pixels" else codec or settings.codec
    try:
        if run.gone:
            raise ValueError(run.gone)
        model = load(run.checkpoint, settings.weights, device, place)
        group, how = tested_group(model, asked or settings.group)
        data = open_split(run.config.data, "val")
        batch = next(eval_batches(data, batch_size=min(count, len(data))))
        rows, pictures = sampled(model, settings, group, batch)
    except (ValueError, OSError) as error:
        return Certificate(f"equivariance not measured: {error}", "", {}, {})
    (line,) = summary(rows)
    way = f"{run.shown.way}, {settings.nfe} evaluations at most"
    words = f"equivariance error of sampling like this ({way}) under {group.name} ({how}), {len(batch.index)} images"
    return Certificate(f"{words}: mean {line['mean']:.1e}, largest {line['largest']:.1e}", group.name, line, pictures)


class Spent(NamedTuple):
    """How samples of the pairs that are shown were drawn, and what that gave."""

    way: str
    samples: SampleSet
    scores: Scores


def baselines(run: Run, measure: Measure) -> tuple[dict[str, Scores], list[str]]:
    """Scores of the source itself and of the linear map, by their names; and notes."""
    shown, notes = run.shown, []
    source, channels = shown.images("source"), shown.reference.shape[-1]
    answers = {SOURCE: source}
    if source.shape[-1] != channels:  # their mean, repeated
        answers[SOURCE] = source.mean(-1, keepdims=True).round().astype(np.uint8).repeat(channels, -1)
    try:
        mask = npz.read(shown.folder / shown.record["reference"], "mask")["mask"]
        answers[LINEAR] = np.where(mask, linear.predict(linear_map(run.config), source), 128).astype(np.uint8)
    except (ValueError, OSError) as error:
        notes.append(f"the linear map is not there, as it could not be fitted: {error}")
    return {name: measure(shown.reference, images)["metrics"] for name, images in answers.items()}, notes


def linear_map(config: Config) -> np.ndarray:
    """7x7 source pixels -> target pixel, by least squares on training pairs as the training saw them."""
    data, augmentation = open_split(config.data, "train"), Augmentation.of(config.train, config.data)
    size = min(64, len(data))
    batches = train_batches(data, batch_size=size, seed=config.train.seed, augmentation=augmentation)
    seen = list(islice(batches, -(-FIT_PIXELS // (size * data.size[0] * data.size[1]))))
    sources, targets = (np.concatenate([to_bytes(getattr(b, side)) for b in seen]) for side in ("source", "target"))
    return linear.fit(sources, targets)


def spent(
    shown: Sequence[tuple[Run, Scores]], measure: Measure, others: Collection[Path] = ()
) -> tuple[list[Spent], list[str]]:
    """All samples that the runs have of the pairs shown of the first; and which were left out, and why.

    others: folders that are known to be of other pairs.
    """
    found, left_out = [], []
    for run, own in shown:
        prefix = f"{run.name}: " if len(shown) > 1 else ""
        for folder in (folder for folder in set_folders(run.path) if folder not in others):
            try:
                samples = run.shown if folder == run.shown.folder else open_set(folder)
                if reason := other_pairs(shown[0][0].shown, samples):
                    raise ValueError(reason)
                scores = own if samples is run.shown else measure(samples.reference, samples.samples)["metrics"]
            except (ValueError, OSError) as error:
                left_out.append(f"{prefix}{folder.name}: {error}")
                continue
            sampled = samples.record["checkpoint"]
            way = samples.way + ("" if sampled == run.shown.record["checkpoint"] else f", {sampled}")
            found.append(Spent(prefix + way, samples, scores))
    return sorted(found, key=lambda one: (one.way, one.samples.record["nfe"], one.samples.folder)), left_out


def mean(scores: Scores, metric: str, key: str = "mean") -> float | None:
    """Of key "compared" that to rank by, in which identical pairs count."""
    return scores.get(metric, {}).get(key)


def better(metric: str, every: Sequence[Scores]) -> list[int]:
    """The positions of the best value, several where they are equal; of none where nothing is to be compared.

    Metrics of draws depend on how many there are.
    """
    if METRICS[metric].draws:
        return []
    values = np.array([mean(scores, metric, "compared") for scores in every], float)
    if np.count_nonzero(~np.isnan(values)) < 2:
        return []
    best = np.nanmax(values) if METRICS[metric].higher_is_better else np.nanmin(values)
    return np.flatnonzero(values == best).tolist()


def verdict(own: Scores, others: Mapping[str, Scores]) -> str:
    """Whether it learned: beats the source itself: PSNR +0.52 dB, SSIM +0.010; does NOT beat ..."""
    said = []
    for name, scores in others.items():
        forms = {"psnr": "PSNR {:+.2f} dB", "ssim": "SSIM {:+.3f}"}
        pairs = {form: [mean(each, metric, "compared") for each in (own, scores)] for metric, form in forms.items()}
        by = {form: a - b for form, (a, b) in pairs.items() if a is not None and b is not None}
        if by:
            word = "beats" if min(by.values()) > 0 else "does NOT beat" if max(by.values()) <= 0 else "beats in part"
            said.append(f"{word} the {name}: {', '.join(form.format(value) for form, value in by.items())}")
    return "; ".join(said) or "could not be compared with the baselines"
