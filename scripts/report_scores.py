"""The numbers of a report: samples and baselines against the target, and what more evaluations buy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from datasets import train_batches
from ddbm.config import Config
from ddbm.symmetry.groups import GROUPS
from evaluations.baselines import LinearMap
from evaluations.cache import open_cache
from evaluations.evaluator import evaluate
from evaluations.images import Images
from evaluations.metrics import METRICS, resolve

from .common import open_split, to_bytes
from .report_data import Run, SampleSet, label, open_set, other_pairs, set_folders

DEFAULT = "mse,psnr,ssim"
ALWAYS = ("psnr", "ssim")  # the verdict, and best and worst, are by these
FIT_PIXELS = 1_000_000  # training pixels the linear baseline is fitted on
OWN, SOURCE, LINEAR = "sample", "source itself", "linear map 7×7"

Score = dict[str, Any]  # of a metric, as `evaluate` has it


class Scores(NamedTuple):
    """Scores by row (samples, baselines) and metric; what cannot be had by name and reason."""

    rows: dict[str, dict[str, Score]]
    notes: list[str]
    unavailable: dict[str, str]

    @property
    def own(self) -> dict[str, Score]:
        return self.rows[OWN]

    def mean(self, row: str, metric: str) -> float | None:
        return self.rows.get(row, {}).get(metric, {}).get("mean")


class Spent(NamedTuple):
    """A set of samples of the same pairs: how it was sampled, and what that gave."""

    folder: str
    way: str
    nfe: int
    scores: dict[str, Score]


class Measure(NamedTuple):
    """How images are scored; names: of metrics, or all."""

    names: Sequence[str]
    group: str
    device: str

    def __call__(self, reference: Images, images: np.ndarray | Images) -> tuple[Mapping[str, Any], dict[str, str]]:
        """What `evaluate` gives, and the reasons why some of the metrics cannot be computed."""
        try:
            found = self._evaluate(reference, images, self.names)
            return found, found["unavailable"]
        except (ValueError, FileNotFoundError):
            if len(self.names) == 1:
                raise
        known, reasons = [], {}
        for name in self.names:
            try:
                self._evaluate(reference, images, [name])
                known.append(name)
            except (ValueError, FileNotFoundError) as error:
                reasons[name] = str(error)
        if not known:
            raise ValueError(f"no metric can be computed: {next(iter(reasons.values()))}")
        return self._evaluate(reference, images, known), reasons

    def _evaluate(self, reference: Images, images: np.ndarray | Images, names: Sequence[str]) -> dict[str, Any]:
        return evaluate(reference, images, names, device=self.device, group=self.group, cache=open_cache(None))


def metric_names(text: str, group: str) -> list[str]:
    """The metrics asked for; psnr and ssim are always among them. Raises ValueError for unknown ones."""
    words = [word for word in text.split(",") if word]
    resolve(words, "inception", group)
    return list(dict.fromkeys([*words, *ALWAYS]))


def score(run: Run, measure: Measure, baselines: bool = True) -> Scores:
    """The shown samples, and beside them the source itself and the linear map."""
    shown = run.shown
    found, unavailable = measure(shown.reference, shown.samples)
    rows, notes = {OWN: found["metrics"]}, list(found["notes"])
    measure = measure._replace(names=list(found["metrics"]))
    source = shown.side("source")
    answers: dict[str, np.ndarray] = {}
    if baselines:
        answers[SOURCE] = endpoint(source, shown.reference.shape[-1])
        try:
            answers[LINEAR] = np.where(shown.side("mask"), fit_linear_map(run.config).predict(source), 128)
        except (ValueError, OSError) as error:
            notes.append(f"the linear map is not there, as it could not be fitted: {error}")
    for name, images in answers.items():
        rows[name] = measure(shown.reference, images.astype(np.uint8))[0]["metrics"]
    return Scores(rows, notes, unavailable)


def endpoint(source: np.ndarray, channels: int) -> np.ndarray:
    """The source as an answer: with the target's number of channels (the mean, repeated, if they differ)."""
    if source.shape[-1] == channels:
        return source
    return source.mean(-1, keepdims=True).round().astype(np.uint8).repeat(channels, -1)


def fit_linear_map(config: Config) -> LinearMap:
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


def spent(run: Run, scores: Scores, measure: Measure) -> tuple[list[Spent], list[str]]:
    """All sets of samples of the pairs that are shown, by sampler and evaluations; and which were left out, and why."""
    measure = measure._replace(names=list(scores.own))
    found, left_out = [entry(run, run.shown, scores.own)], []
    for folder in set_folders(run.path):
        if folder == run.shown.folder:
            continue
        try:
            other = open_set(folder)
            if not (reason := other_pairs(run.shown, other)):
                measured, failed = measure(other.reference, other.samples)
                reason = "; ".join(failed.values())
                found += [] if failed else [entry(run, other, measured["metrics"])]
        except (ValueError, OSError) as error:
            reason = str(error)
        if reason:
            left_out.append(f"{folder.name}: {reason}")
    return sorted(found, key=lambda one: (one.way, one.nfe, one.folder)), left_out


def entry(run: Run, own: SampleSet, scores: dict[str, Score]) -> Spent:
    checkpoint = own.record["checkpoint"]
    way = label(own.settings) + ("" if checkpoint == run.shown.record["checkpoint"] else f", {checkpoint}")
    return Spent(own.folder.name, way, own.nfe, scores)


def extremes(scores: Scores, count: int) -> tuple[str, list[int], list[int]]:
    """The metric of ranking, ssim where there is one, and the positions of best and worst, the most so first."""
    metric = "ssim" if "ssim" in scores.own else "psnr"
    values = [(value, i) for i, value in enumerate(scores.own[metric]["per_image"]) if value is not None]
    ranked = [i for _, i in sorted(values, key=lambda pair: (-pair[0], pair[1]))]
    count = min(count, max(1, len(ranked) // 2))
    return metric, ranked[:count], ranked[: -count - 1 : -1]


def better(metric: str, values: Sequence[float | None]) -> list[int]:
    """The positions of the best value, several where they are equal; of none where nothing is to be compared."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return []
    best = max(known) if METRICS[metric].higher_is_better else min(known)
    return [i for i, value in enumerate(values) if value == best]


def verdict(scores: Scores) -> str:
    """Whether it learned, in a sentence: by which metric the samples are better than the baselines."""
    if scores.mean(OWN, "psnr") is None or scores.mean(SOURCE, "psnr") is None:
        return "The samples could not be compared with the source itself."
    text = f"The samples {against(scores, SOURCE, 'the source itself')}"
    if scores.mean(LINEAR, "psnr") is None:
        return f"{text}."
    return f"{text}; they {against(scores, LINEAR, 'the linear map')}."


def against(scores: Scores, row: str, name: str) -> str:
    """Such as: beat the linear map by PSNR (+0.52 dB), not by SSIM (-0.010)."""
    won: list[str] = []
    lost: list[str] = []
    for metric, form in (("psnr", "PSNR ({:+.2f} dB)"), ("ssim", "SSIM ({:+.3f})")):
        own, other = scores.mean(OWN, metric), scores.mean(row, metric)
        if own is not None and other is not None:
            (won if own > other else lost).append(form.format(own - other))
    if not won:
        return f"do NOT beat {name} by {' nor by '.join(lost)}"
    return f"beat {name} by {' and '.join(won)}" + (f", not by {lost[0]}" if lost else "")
