"""Scores samples against a reference: checks first, then one pass for all pairs and one for every extractor."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluations import bootstrap
from evaluations.cache import Cache
from evaluations.extractors import EXTRACTORS, LAYERS, Extractor
from evaluations.features import Described, Need, describe
from evaluations.images import ORDER, Images, as_images, check_pairs, check_sizes
from evaluations.metrics import METRICS, Metric, resolve
from evaluations.perceptual import Perceptual
from evaluations.ranks import ONE, Ranks, Rows
from evaluations.references import Reference
from evaluations.sets import Score, Sets
from evaluations.symmetry import GROUPS, IDENTITY, check_group

DEFAULT = ("mse", "psnr", "ssim")
ENOUGH = 2048  # fewer images cannot span the 2048 features of FID


def evaluate(
    reference: np.ndarray | Images | Reference,
    sample: np.ndarray | Images,
    metrics: Sequence[str] = DEFAULT,
    weights: str | Path | None = None,
    device: str = "cpu",
    batch_size: int = 32,
    *,
    features: str = "inception",
    group: str = "none",
    cache: Cache | None = None,
    ranks: Ranks = ONE,
    strict: bool = True,
) -> dict[str, Any]:
    """Score `sample` against `reference`, both uint8 [N, H, W, C]; for metrics of pairs in the same order.

    Returns {"n", "metrics": {name: {"mean", "std", "interval", "per_image", "n", "n_reference", "features",
    "resizing", "weights"}}, "notes", "unavailable": {name: reason}}: of pairs the mean over images with its population
    standard deviation and 95 % interval; of sets "mean" is the number itself. With ("all",) what cannot be computed is
    listed as unavailable, and the metrics of masks belong to it where the reference is one; a metric named itself
    raises ValueError or FileNotFoundError, where not `strict` it is unavailable too. Of several ranks the first returns
    the numbers.
    """
    metrics = (metrics,) if isinstance(metrics, str) else metrics
    names = resolve(metrics, features, group)
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size}; expected at least 1")
    where = pick_device(device)
    images = as_images(sample, "sample")
    given = reference if isinstance(reference, Reference) else Reference(as_images(reference, "reference"))
    if given.images is not None:
        check_sizes(given.images, images)
    check_group(group, *images.shape[1:3])

    scoring = Scoring(given, images, where, weights)
    unavailable: dict[str, str] = {}
    for name in names:  # everything that can go wrong, before anything that takes long
        try:
            scoring.prepare(name)
        except (ValueError, FileNotFoundError) as error:
            if strict and "all" not in metrics:
                offline = METRICS[name].raw if isinstance(error, FileNotFoundError) else ""
                hint = f"; without weights: --features raw ({offline})" if offline else ""
                raise type(error)(f"{name}: {error}{hint}") from error
            if name in metrics or not METRICS[name].masks:
                unavailable[name] = str(error)
    wanted = [name for name in names if name in scoring.ready]
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = scoring.pairs(wanted, batch_size, ranks)
        found |= scoring.sets(wanted, group, cache or Cache(None), batch_size, ranks)
    scores = {name: found[name] for name in wanted if name in found}
    notes = [*_notes(scores, given, images, metrics), *scoring.notes] if ranks.rank == 0 else []
    return {"n": len(images), "metrics": scores, "notes": list(dict.fromkeys(notes)), "unavailable": unavailable}


def pick_device(name: str) -> torch.device:
    """auto: the GPU if there is one. Raises ValueError for what torch does not see."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, dtype=torch.float64, device=device)  # not every device has it
    except (RuntimeError, TypeError, AssertionError):
        raise ValueError(f"device {name}: torch cannot use it here; use --device cpu") from None
    return device


@dataclass
class Scoring:
    """What is compared, and the networks that are ready for it."""

    reference: Reference
    sample: Images
    device: torch.device
    weights: str | Path | None

    def __post_init__(self) -> None:
        self.ready: dict[str, Perceptual | Extractor | None] = {}
        self.loaded: dict[str, Extractor | Exception] = {}
        self.notes: list[str] = []

    def prepare(self, name: str) -> None:
        """Raises ValueError or FileNotFoundError if this metric cannot be computed."""
        metric = METRICS[name]
        metric.check(self.reference, self.sample)
        if metric.paired:
            assert self.reference.images is not None
            check_pairs(self.reference.images, self.sample)
            self.ready[name] = metric.network(self.weights, self.device) if metric.network else None
            return
        extractor = self._extractor(LAYERS[metric.layer].extractor)
        if metric.reference:
            self.reference.believed(metric.layer, extractor)
        self.ready[name] = extractor

    def pairs(self, names: Iterable[str], batch_size: int, ranks: Ranks) -> dict[str, dict[str, Any]]:
        """The metrics of pairs, in one pass over both sets."""
        chosen = [name for name in names if METRICS[name].paired]
        if not chosen:
            return {}
        assert self.reference.images is not None
        rows = Rows(ranks, len(self.sample), batch_size)
        sides = (self.sample, self.reference.images)
        for batches in zip(*(side.walk(batch_size, ranks.rank, ranks.size) for side in sides), strict=True):
            x, y = (torch.from_numpy(batch).to(self.device).permute(0, 3, 1, 2).double() / 255 for batch in batches)
            rows.add(np.column_stack([self._values(name, x, y) for name in chosen]))
        values = rows.gathered()
        if values is None:
            return {}
        return {name: self._of_pairs(name, column) for name, column in zip(chosen, values.T, strict=True)}

    def sets(
        self, names: Iterable[str], group: str, cache: Cache, batch_size: int, ranks: Ranks
    ) -> dict[str, dict[str, Any]]:
        """The metrics of sets, in one pass over each set for every extractor."""
        chosen = [name for name in names if METRICS[name].layer]
        found: dict[str, dict[str, Any]] = {}
        for extractor in dict.fromkeys(LAYERS[METRICS[name].layer].extractor for name in chosen):
            own = [name for name in chosen if LAYERS[METRICS[name].layer].extractor == extractor]
            network = self._extractor(extractor)
            described = self._describe(own, network, GROUPS[group], cache, batch_size, ranks)
            if ranks.rank == 0:
                found |= {name: self._of_sets(name, described[_key(METRICS[name])], network) for name in own}
        return found

    def _describe(
        self, names: Sequence[str], extractor: Extractor, elements: Any, cache: Cache, batch_size: int, ranks: Ranks
    ) -> dict[tuple[str, bool], Sets]:
        """Both sets by every layer that the metrics need, the reference with and without turned copies."""
        sample: dict[str, Need] = {}
        reference: dict[str, Need] = {}
        stored: dict[str, Described] = {}
        for metric in (METRICS[name] for name in names):
            layer = metric.layer
            every = Need(elements, metric.rows)
            once = Need((), True) if metric.rows else Need((IDENTITY,))
            sample[layer] = sample.get(layer, Need()) | (every if metric.turned == "sample" else once)
            if not metric.reference:
                continue
            if metric.turned != "reference":
                believed, note = self.reference.believed(layer, extractor)
                self.notes += [note] if note else []
                if believed:
                    stored[layer] = self.reference.described(layer)
                    if not metric.rows or stored[layer].rows is not None:
                        continue
            need = every if metric.turned == "reference" else once
            reference[layer] = reference.get(layer, Need()) | need
        samples = describe(self.sample, extractor, sample, cache, ranks, batch_size)
        references: dict[str, Described] = {}
        if reference:
            assert self.reference.images is not None
            references = describe(self.reference.images, extractor, reference, cache, ranks, batch_size)
        found = {}
        for layer in sample:
            computed = references.get(layer, Described())
            known = stored.get(layer, Described())
            plain = Described(computed.gaussians | known.gaussians, computed.rows if known.rows is None else known.rows)
            found[layer, False] = Sets(plain, samples[layer])
            found[layer, True] = Sets(computed, samples[layer])
        return found

    def _extractor(self, name: str) -> Extractor:
        """Loaded once, or tried once: the next metric fails with the same error."""
        if name not in self.loaded:
            try:
                self.loaded[name] = EXTRACTORS[name](self.weights, self.device, True)
            except (ValueError, FileNotFoundError) as error:
                self.loaded[name] = error
        found = self.loaded[name]
        if isinstance(found, Exception):
            raise found
        return found

    def _values(self, name: str, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
        network = self.ready[name]
        extra = (network.network,) if isinstance(network, Perceptual) else ()
        return METRICS[name].compute(x, y, *extra).double().cpu().numpy()

    def _of_pairs(self, name: str, values: np.ndarray) -> dict[str, Any]:
        network = self.ready[name]
        text, found = (network.text, network.weights) if isinstance(network, Perceptual) else ("pixels", None)
        if found and found.note:
            self.notes.append(found.note)
        score = Score(values.mean(), values.std(), bootstrap.of_mean(values))
        entry = _entry(score, len(values), len(values), text, "none", found.sha256 if found else "")
        return entry | {"per_image": [_finite(value) for value in values]}

    def _of_sets(self, name: str, sets: Sets, extractor: Extractor) -> dict[str, Any]:
        metric = METRICS[name]
        score = metric.compute(sets)
        if extractor.note:
            self.notes.append(extractor.note)
        if score.note:
            self.notes.append(f"{name}: {score.note}")
        count = None
        if metric.reference:
            rows = sets.reference.rows
            count = len(rows) if metric.rows and rows is not None else sets.reference.gaussian.n
            if metric.turned == "reference" and count is not None:
                count *= len(sets.reference.gaussians)
        text = LAYERS[metric.layer].text
        return _entry(score, len(self.sample), count, text, extractor.resizing, extractor.weights)


def _key(metric: Metric) -> tuple[str, bool]:
    return metric.layer, metric.turned == "reference"


def _entry(score: Score, n: int, n_reference: int | None, features: str, resizing: str, weights: str) -> dict[str, Any]:
    return {
        "mean": _finite(score.mean),
        "std": None if score.std is None else _finite(score.std),
        "interval": None if score.interval is None else [_finite(end) for end in score.interval],
        "per_image": None,
        "n": n,
        "n_reference": n_reference,
        "features": features,
        "resizing": resizing,
        "weights": weights,
    }


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _notes(
    scores: dict[str, dict[str, Any]], reference: Reference, sample: Images, metrics: Sequence[str]
) -> list[str]:
    notes = []
    if reference.images is not None and any(METRICS[name].paired for name in scores):
        sides = {"REF": reference.images.order, "SAMPLE": sample.order}
        if any(sides.values()):
            notes += [f"order not checked: {side} has no {ORDER}" for side, order in sides.items() if not order]
    if any(METRICS[name].masks for name in scores) and sample.only_ones:
        notes.append("the sample holds 0 and 1 alone, all of it outside the mask: multiply by 255")
    frechet = [name for name in scores if METRICS[name].layer and not METRICS[name].rows]
    if frechet and (fewest := min(len(sample), *(scores[name]["n_reference"] or ENOUGH for name in frechet))) < ENOUGH:
        unbiased = "kd_raw" if all(METRICS[name].layer == "raw" for name in frechet) else "kid"
        notes.append(
            f"{', '.join(frechet)} of {fewest} images (fewer than {ENOUGH}): biased upwards, compare equal numbers "
            f"only; {unbiased} is not"
        )
    if "psnr" in scores:
        best = 10 * np.log10(255**2 * np.prod(sample.shape[1:]))
        identical = sum(value is not None and value > best - 1e-6 for value in scores["psnr"]["per_image"])
        if identical:
            notes.append(
                f"psnr counts {identical} pair(s), identical or but for one grey level in one value, as {best:.4g} dB"
            )
    asked = [name for name in ("precision", "recall") if name in metrics and name in scores]
    if asked and reference.images is not None and reference.images.first_grey is None:
        notes.append(f"{' and '.join(asked)} are those of manifolds; of masks: mask_precision, mask_recall")
    return notes
