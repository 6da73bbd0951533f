"""The numbers of a report: samples and baselines against the target, and what more evaluations buy."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from datasets import batches_of
from ddbm.config import DataConfig
from ddbm.files import npz
from evaluations.baselines import LinearMap
from evaluations.images import Images
from evaluations.metrics import METRICS

from ..common import open_split, to_bytes
from ..pictures import evenly
from .runs import Run, SampleSet, open_set, other_pairs, set_folders

FIT_PIXELS = 1_000_000  # training pixels the linear baseline is fitted on
SOURCE, LINEAR = "source itself", "linear map 7×7"

Scores = Mapping[str, dict[str, Any]]  # by metric, as `evaluate` has them
Measure = Callable[[Images, np.ndarray | Images], dict[str, Any]]  # what `evaluate` gives of a reference and samples


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
        answers[LINEAR] = np.where(mask, linear_map(run.config.data).predict(source), 128).astype(np.uint8)
    except (ValueError, OSError) as error:
        notes.append(f"the linear map is not there, as it could not be fitted: {error}")
    return {name: measure(shown.reference, images)["metrics"] for name, images in answers.items()}, notes


def linear_map(config: DataConfig) -> LinearMap:
    """7x7 source pixels -> target pixel, by least squares on pairs of the training split."""
    data = open_split(config, "train")
    chosen = evenly(len(data), -(-FIT_PIXELS // (data.size[0] * data.size[1])))
    batch = next(batches_of(data, [chosen]))
    return LinearMap.fit(to_bytes(batch.source), to_bytes(batch.target), window=7)


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
    values = np.array(scores[metric]["per_image"], float)  # None, where there is no value, becomes NaN, and is last
    ranked = np.argsort(-values, kind="stable")[: np.count_nonzero(~np.isnan(values))].tolist()
    count = min(count, max(1, len(ranked) // 2))
    return metric, ranked[:count], ranked[: -count - 1 : -1]


def mean(scores: Scores, metric: str) -> float | None:
    return scores.get(metric, {}).get("mean")


def better(metric: str, every: Sequence[Scores]) -> list[int]:
    """The positions of the best value, several where they are equal; of none where nothing is to be compared."""
    values = np.array([mean(scores, metric) for scores in every], float)
    if np.count_nonzero(~np.isnan(values)) < 2:
        return []
    best = np.nanmax(values) if METRICS[metric].higher_is_better else np.nanmin(values)
    return np.flatnonzero(values == best).tolist()


def verdict(own: Scores, others: Mapping[str, Scores]) -> str:
    """Whether it learned: beats the source itself by PSNR (+0.52 dB), not by SSIM (-0.010); does NOT beat ..."""
    said = []
    for name, scores in others.items():
        differences = []
        for metric, form in (("psnr", "PSNR ({:+.2f} dB)"), ("ssim", "SSIM ({:+.3f})")):
            a, b = mean(own, metric), mean(scores, metric)
            differences += [] if a is None or b is None else [(a > b, form.format(a - b))]
        won, lost = ([text for better, text in differences if better is which] for which in (True, False))
        if won:
            said.append(f"beats the {name} by {' and '.join(won)}" + (f", not by {lost[0]}" if lost else ""))
        elif lost:
            said.append(f"does NOT beat the {name} by {' nor by '.join(lost)}")
    return "; ".join(said) or "could not be compared with the baselines"
