"""Scores samples against a reference: checks first, then one pass for all pairs and one for every network."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddbm.ranks.devices import pick_device
from ddbm.ranks.distributed import World
from ddbm.settings import choose
from ddbm.symmetry.groups import GROUPS, Element
from evaluations.cache import Cache
from evaluations.distances import Score, interval_of_mean
from evaluations.features import ALONE, Described, Part, describe, taking_turns
from evaluations.images import ORDER, Images, as_images, check_pairs, check_sizes
from evaluations.metrics import METRICS, resolve
from evaluations.networks import LAYERS, NETWORKS, Network
from evaluations.references import Reference
from evaluations.sets import Sets

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
    ranks: World = ALONE,
    strict: bool = True,
) -> dict[str, Any]:
    """Score `sample` against `reference`, both uint8 [N, H, W, C]; for metrics of pairs in the same order.

    Returns {"n", "metrics": {name: {"mean", "std", "interval", "per_image", "n", "n_reference", "features",
    "resizing", "weights"}}, "notes", "unavailable": {name: reason}}: of pairs the mean over images with its population
    standard deviation and 95 % interval; of sets "mean" is the number itself. With ("all",) what cannot be computed is
    listed as unavailable, and the metrics of masks belong to it where the reference is one; a metric named itself
    raises ValueError or FileNotFoundError, where not `strict` it is unavailable too. ranks: those that share the work,
    of which the first returns the numbers.
    """
    metrics = (metrics,) if isinstance(metrics, str) else metrics
    names = resolve(metrics, features, group)
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size}; expected at least 1")
    images = as_images(sample, "sample")
    given = reference if isinstance(reference, Reference) else Reference(as_images(reference, "reference"))
    if given.images is not None:
        check_sizes(given.images, images)
    elements = choose(GROUPS, group, "group")
    elements.check_size(*images.shape[1:3])

    scoring = Scoring(given, images, pick_device(device), weights)
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
    found = scoring.pairs(wanted, batch_size, ranks)
    found |= scoring.sets(wanted, elements.elements, cache or Cache(None), batch_size, ranks)
    scores = {name: found[name] for name in wanted if name in found}
    notes = [*_notes(scores, given, images, metrics), *scoring.notes] if ranks.rank == 0 else []
    return {"n": len(images), "metrics": scores, "notes": list(dict.fromkeys(notes)), "unavailable": unavailable}


class Scoring:
    """What is compared, and the networks that are ready for it, by metric."""

    def __init__(self, reference: Reference, sample: Images, device: torch.device, weights: str | Path | None) -> None:
        self.reference, self.sample, self.device, self.weights = reference, sample, device, weights
        self.ready: dict[str, Network | None] = {}
        self.loaded: dict[str, Network | Exception] = {}
        self.notes: list[str] = []

    def prepare(self, name: str) -> None:
        """Raises ValueError or FileNotFoundError if this metric cannot be computed."""
        metric = METRICS[name]
        metric.check(self.reference, self.sample)
        if metric.paired:
            assert self.reference.images is not None
            check_pairs(self.reference.images, self.sample)
        network = self._network(metric.loads) if metric.loads else None
        if network and metric.layer and metric.reference:
            self.reference.described(metric.layer, network)
        self.ready[name] = network

    def pairs(self, names: Iterable[str], batch_size: int, ranks: World) -> dict[str, dict[str, Any]]:
        """The metrics of pairs, in one pass over both sets."""
        chosen = [name for name in names if METRICS[name].paired]
        if not chosen:
            return {}
        assert self.reference.images is not None
        sides = (self.sample, self.reference.images)
        batches = zip(*(side.walk(batch_size, ranks.rank, ranks.size) for side in sides), strict=True)
        with torch.inference_mode():
            own = (self._values(chosen, *pair) for pair in batches)
            values = np.concatenate(list(taking_turns(own, -(-len(self.sample) // batch_size), ranks)))
        return {name: self._of_pairs(name, column) for name, column in zip(chosen, values.T, strict=True)}

    def sets(
        self, names: Iterable[str], elements: Sequence[Element], cache: Cache, batch_size: int, ranks: World
    ) -> dict[str, dict[str, Any]]:
        """The metrics of sets, in one pass over each set for every network."""
        found: dict[str, dict[str, Any]] = {}
        chosen = [name for name in names if METRICS[name].layer]
        for network in dict.fromkeys(self._network(METRICS[name].loads) for name in chosen):
            own = [name for name in chosen if self.ready[name] is network]
            described = self._describe(own, network, elements, cache, batch_size, ranks)
            if ranks.rank == 0:
                found |= {name: self._of_sets(name, described[name], network) for name in own}
        return found

    def _describe(
        self, names: Sequence[str], network: Network, elements: Sequence[Element], cache: Cache, batch_size: int,
        ranks: World,
    ) -> dict[str, Sets]:  # fmt: skip
        """Both sets as every metric needs them."""
        stored: dict[str, Described] = {}  # by layer: what the reference's file says
        needs: dict[str, dict[str, dict[Part, None]]] = {"sample": {}, "reference": {}}
        for metric in (METRICS[name] for name in names):
            needs["sample"].setdefault(metric.layer, {}).update(dict.fromkeys(metric.parts("sample", elements)))
            known = Described()
            if metric.reference and metric.turned != "reference":
                known, note = self.reference.described(metric.layer, network)
                self.notes += [note] if note else []
                stored[metric.layer] = known
            if missing := [part for part in metric.parts("reference", elements) if not known.has(part)]:
                needs["reference"].setdefault(metric.layer, {}).update(dict.fromkeys(missing))
        found: dict[str, dict[str, Described]] = {"sample": {}, "reference": {}}
        for side, images in (("sample", self.sample), ("reference", self.reference.images)):
            if needs[side]:
                assert images is not None
                found[side] = describe(images, network, needs[side], cache, ranks, batch_size)
        sets: dict[tuple[str, bool], Sets] = {}  # what several metrics need is computed once
        for layer, sample in found["sample"].items():
            computed, known = found["reference"].get(layer, Described()), stored.get(layer, Described())
            rows = computed.rows if known.rows is None else known.rows
            sets[layer, False] = Sets(Described(computed.gaussians | known.gaussians, rows), sample)
            sets[layer, True] = Sets(computed, sample)  # turned copies are of the images themselves
        return {name: sets[METRICS[name].layer, METRICS[name].turned == "reference"] for name in names}

    def _network(self, name: str) -> Network:
        """Loaded once, or tried once: the next metric fails with the same error."""
        if name not in self.loaded:
            try:
                self.loaded[name] = NETWORKS[name](self.weights, self.device, True)
            except (ValueError, FileNotFoundError) as error:
                self.loaded[name] = error
        found = self.loaded[name]
        if isinstance(found, Exception):
            raise found
        return found

    def _values(self, names: Collection[str], *sides: np.ndarray) -> np.ndarray:
        """The metrics of a batch of pairs, float64 [B, metrics]."""
        x, y = (torch.from_numpy(side).to(self.device).permute(0, 3, 1, 2).double() / 255 for side in sides)
        columns = []
        for name in names:
            network = self.ready[name]
            values = METRICS[name].compute(x, y, *([network.run] if network else []))
            columns.append(values.double().cpu().numpy())
        return np.column_stack(columns)

    def _of_pairs(self, name: str, values: np.ndarray) -> dict[str, Any]:
        network = self.ready[name]
        score = Score(values.mean(), values.std(), interval_of_mean(values))
        entry = self._entry(score, len(values), network.name if network else "pixels", network)
        return entry | {"per_image": [_finite(value) for value in values]}

    def _of_sets(self, name: str, sets: Sets, network: Network) -> dict[str, Any]:
        metric = METRICS[name]
        score, count = metric.compute(sets), None
        self.notes += [f"{name}: {score.note}"] if score.note else []
        if metric.reference:
            rows = sets.reference.rows
            count = len(rows) if metric.rows and rows is not None else sets.reference.gaussian.n
            if metric.turned == "reference" and count is not None:
                count *= len(sets.reference.gaussians)
        return self._entry(score, count, LAYERS[metric.layer].text, network)

    def _entry(self, score: Score, n_reference: int | None, features: str, network: Network | None) -> dict[str, Any]:
        self.notes += [network.note] if network and network.note else []
        return {
            "mean": _finite(score.mean),
            "std": None if score.std is None else _finite(score.std),
            "interval": None if score.interval is None else [_finite(end) for end in score.interval],
            "per_image": None,
            "n": len(self.sample),
            "n_reference": n_reference,
            "features": features,
            "resizing": network.resizing if network else "none",
            "weights": network.weights if network else "",
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
    if any(METRICS[name].masks for name in scores) and sample.levels in ([0, 1], [1]):
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
    if asked and reference.images is not None and not set(reference.images.levels) - {0, 255}:
        notes.append(f"{' and '.join(asked)} are those of manifolds; of masks: mask_precision, mask_recall")
    return notes
