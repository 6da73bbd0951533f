"""The numbers of a report: samples and baselines against the target, and what more evaluations buy."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from datasets import train_batches
from ddbm.config import Config
from ddbm.files import npz
from ddbm.symmetry.groups import GROUPS
from evaluations.baselines import LinearMap
from evaluations.cache import open_cache
from evaluations.evaluator import evaluate
from evaluations.images import Images
from evaluations.metrics import METRICS, resolve

from ..common import open_split, to_bytes
from .runs import Run, SampleSet, open_set, other_pairs, set_folders

DEFAULT = "mse,psnr,ssim"
ALWAYS = ("psnr", "ssim")  # the verdict, and best and worst, are by these
FIT_PIXELS = 1_000_000  # training pixels the linear baseline is fitted on
SOURCE, LINEAR = "source itself", "linear map 7×7"

Scores = Mapping[str, dict[str, Any]]  # by metric, as `evaluate` has them
Measure = Callable[[Images, np.ndarray | Images], dict[str, Any]]  # what `evaluate` gives of a reference and samples


class Spent(NamedTuple):
    """How samples of the pairs that are shown were drawn, and what that gave."""

    way: str
    samples: SampleSet
    scores: Scores


def measure_by(metrics: str, group: str, device: str) -> Measure:
    """Scores images by the metrics asked for, psnr and ssim always; what cannot be computed is listed with the reason.

    Raises ValueError for unknown metrics.
    """
    names = list(dict.fromkeys([*filter(None, metrics.split(",")), *ALWAYS]))
    resolve(names, "inception", group)
    return partial(evaluate, metrics=names, device=device, group=group, cache=open_cache(None), strict=False)


def baselines(run: Run, measure: Measure) -> tuple[dict[str, Scores], list[str]]:
    """Scores of the source itself and of the linear map, by their names; and notes."""
    shown, notes = run.shown, []
    source, channels = shown.images("source"), shown.reference.shape[-1]
    answers = {SOURCE: source}
    if source.shape[-1] != channels:  # their mean, repeated
        answers[SOURCE] = source.mean(-1, keepdims=True).round().astype(np.uint8).repeat(channels, -1)
    try:
        mask = npz.read(shown.folder / shown.record["reference"], "mask")["mask"]
        answers[LINEAR] = np.where(mask, linear_map(run.config).predict(source), 128).astype(np.uint8)
    except (ValueError, OSError) as error:
        notes.append(f"the linear map is not there, as it could not be fitted: {error}")
    return {name: measure(shown.reference, images)["metrics"] for name, images in answers.items()}, notes


def linear_map(config: Config) -> LinearMap:
    """7x7 source pixels -> target pixel, by least squares on training pairs as the training saw them."""
    data = open_split(config.data, "train")
    elements = GROUPS[config.train.augment].elements
    sources, targets, pixels = [], [], 0
    for batch in train_batches(data, batch_size=min(64, len(data)), seed=config.train.seed, elements=elements):
        sources.append(to_bytes(batch.source))
        targets.append(to_bytes(batch.target))
        pixels += batch.target[:, 0].numel()
        if pixels >= FIT_PIXELS:
            break
    return LinearMap.fit(np.concatenate(sources), np.concatenate(targets), window=7)


def spent(shown: Sequence[tuple[Run, Scores]], measure: Measure) -> tuple[list[Spent], list[str]]:
    """All samples that the runs have of the pairs shown of the first; and which were left out, and why."""
    found, left_out = [], []
    for run, own in shown:
        prefix = f"{run.name}: " if len(shown) > 1 else ""
        for folder in set_folders(run.path):
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


def best_and_worst(scores: Scores, count: int) -> tuple[str, list[int], list[int]]:
    """The metric of ranking, ssim where there is one, and the positions of best and worst, the most so first."""
    metric = "ssim" if "ssim" in scores else "psnr"
    values = [(value, i) for i, value in enumerate(scores[metric]["per_image"]) if value is not None]
    ranked = [i for _, i in sorted(values, key=lambda pair: (-pair[0], pair[1]))]
    count = min(count, max(1, len(ranked) // 2))
    return metric, ranked[:count], ranked[: -count - 1 : -1]


def mean(scores: Scores, metric: str) -> float | None:
    return scores.get(metric, {}).get("mean")


def better(metric: str, every: Sequence[Scores]) -> list[int]:
    """The positions of the best value, several where they are equal; of none where nothing is to be compared."""
    values = [mean(scores, metric) for scores in every]
    known = [value for value in values if value is not None]
    best = (max if METRICS[metric].higher_is_better else min)(known, default=None)
    return [i for i, value in enumerate(values) if value == best is not None] if len(known) > 1 else []


def verdict(own: Scores, others: Mapping[str, Scores]) -> str:
    """Whether it learned: The samples beat the source itself by PSNR (+0.52 dB), not by SSIM (-0.010); they ..."""
    said = []
    for name, scores in others.items():
        won: list[str] = []
        lost: list[str] = []
        for metric, form in (("psnr", "PSNR ({:+.2f} dB)"), ("ssim", "SSIM ({:+.3f})")):
            a, b = mean(own, metric), mean(scores, metric)
            if a is not None and b is not None:
                (won if a > b else lost).append(form.format(a - b))
        if won:
            said.append(f"beat the {name} by {' and '.join(won)}" + (f", not by {lost[0]}" if lost else ""))
        elif lost:
            said.append(f"do NOT beat the {name} by {' nor by '.join(lost)}")
    return f"The samples {'; they '.join(said)}." if said else "The samples could not be compared with the baselines."
