"""Scores samples against a reference: checks first, then one pass for all pairs and one for every network.

In the JSON of results what was computed of the same images before is kept.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddbm.files.storage import read_json
from ddbm.ranks.distributed import World, pick_device
from ddbm.settings import choose
from ddbm.symmetry.groups import GROUPS
from evaluations.distances import Score, interval_of_mean
from evaluations.features import ALONE, Cache, Part, describe, taking_turns
from evaluations.images import Images, as_images, as_pairs, in_pairs
from evaluations.metrics import METRICS, resolve
from evaluations.networks import LAYERS, NETWORKS, Network
from evaluations.references import Reference, as_reference
from evaluations.sets import Sets

DEFAULT = ("mse", "psnr", "ssim")
ENOUGH = 2048  # fewer images cannot span the 2048 features of FID
KINDS = {"metrics": dict, "unavailable": dict, "notes": list, "group": str}  # what results are known by


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
    dice_threshold: float = 0.5,
) -> dict[str, Any]:
    """Score `sample` against `reference`, both uint8 [N, H, W, C]; for metrics of pairs in the same order, or by names.

    Returns {"n", "metrics": {name: {"mean", "std", "interval", "per_image", "compared", "n", "n_reference", "features",
    "resizing", "weights"}}, "notes", "unavailable": {name: reason}}: of pairs the mean over images (of psnr over those
    that differ) with its population standard deviation and 95 % interval; of sets "mean" is the number itself; of
    calibration there is "curve" too, {"levels", "coverage"}.
    "compared" is the mean to rank by: identical pairs count in that of psnr, as if one value differed by 1 of 255. With
    ("all",) what cannot be computed is listed as unavailable, and the metrics of masks belong to it where the reference
    is one; a metric named itself raises ValueError or FileNotFoundError, where not `strict` it is unavailable too.
    ranks: those that share the work, of which the first returns the numbers. dice_threshold: the share of white above
    which a sample's value belongs to its mask.
    """
    metrics = (metrics,) if isinstance(metrics, str) else metrics
    names = resolve(metrics, features, group)
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size}; expected at least 1")
    if not 0 <= dice_threshold < 1:
        raise ValueError(f"--dice_threshold must lie in [0, 1), a share of white, found {dice_threshold:g}")
    images, given, place = as_images(sample, "sample"), as_reference(reference), pick_device(device)
    if given.images and given.images.shape[1:] != images.shape[1:]:
        one, other = ("{} x {} px, {} channel(s)".format(*side.shape[1:]) for side in (given.images, images))
        narrow, wide = sorted(side.shape[2] for side in (given.images, images))
        hint = "; of files of A|B take the npz by scripts.make_reference" if wide == 2 * narrow else ""
        raise ValueError(f"the reference is {one}, and the sample {other}; expected equal sizes and channels{hint}")
    choose(GROUPS, group, "group").check_size(*images.shape[1:3])

    loaded: dict[str, Network | Exception | None] = {"": None}
    ready: dict[str, Network | None] = {}
    known: dict[str, dict[Part, Any]] = {}  # by metric: what the reference's file says
    unavailable: dict[str, str] = {}
    notes: list[str] = []
    for name in names:  # everything that can go wrong, before anything that takes long
        metric = METRICS[name]
        try:
            metric.check(given, images)
            if metric.loads not in loaded:  # or tried: the next metric fails with the same error
                try:
                    loaded[metric.loads] = NETWORKS[metric.loads](weights, place)
                except (ValueError, FileNotFoundError) as error:
                    loaded[metric.loads] = error
            network = loaded[metric.loads]
            if isinstance(network, Exception):
                raise network
            if network and metric.layer and metric.reference and metric.turned != "reference":
                known[name], note = given.believed(metric.layer, network)
                notes.append(note)
            ready[name] = network
        except (ValueError, FileNotFoundError) as error:
            if strict and "all" not in metrics:
                offline = metric.raw if isinstance(error, FileNotFoundError) else ""
                hint = f"; without weights: --features raw ({offline})" if offline else ""
                raise type(error)(f"{name}: {error}{hint}") from error
            if name in metrics or not (metric.masks or (metric.draws and images.draws is None)):
                unavailable[name] = str(error)

    found: dict[str, tuple[Score, int | None]] = {}  # with the number of references, if known
    if paired := {name: network for name, network in ready.items() if METRICS[name].paired}:
        assert given.images is not None
        first, second, note = as_pairs(given.images, images)
        batches = in_pairs(second, first, batch_size, ranks.rank, ranks.size)
        with torch.inference_mode():
            mine = (_values(paired, dice_threshold, *_on(place, batch)) for batch in batches)
            *columns, cut = np.concatenate(list(taking_turns(mine, -(-len(images) // batch_size), ranks))).T
        notes += [note, f"{cut.sum():.0f} pair(s) are measured inside their masks alone" if cut.any() else ""]
        for name, column in zip(paired, columns, strict=True):
            found[name] = _score(column), len(images)
    if drawn := [name for name in ready if METRICS[name].draws]:
        assert given.images is not None
        first, second, note = as_pairs(given.images, images)
        notes.append(note)
        for name, score in _scores_of_draws(drawn, second, first, place, batch_size, ranks).items():
            found[name] = score, len(images)
    sides = {"sample": images, "reference": given.images}
    for network in dict.fromkeys(ready.values()):
        own = [name for name in ready if METRICS[name].layer and ready[name] is network]
        needs = {name: {side: METRICS[name].parts(side, GROUPS[group].elements) for side in sides} for name in own}
        described: dict[str, dict[Part, Any]] = {}
        for side, whose in sides.items():
            held = known if side == "reference" else {}
            parts = dict.fromkeys(part for name in own for part in needs[name][side] if part not in held.get(name, {}))
            if whose and network and parts:
                described[side] = describe(whose, network, parts, cache or Cache(None), ranks, batch_size)
        shared: dict[Any, Sets] = {}  # by what a metric needs
        for name in own if ranks.rank == 0 else ():
            metric = METRICS[name]
            values = {"sample": described["sample"], "reference": described.get("reference", {}) | known.get(name, {})}
            sample_parts, reference_parts = ([values[side][part] for part in needs[name][side]] for side in sides)
            alike = (metric.layer, metric.rows, metric.turned, metric.reference)
            score = metric.compute(shared.setdefault(alike, Sets(reference_parts, sample_parts)))
            counts = [len(part) if metric.rows else part.n for part in reference_parts]
            found[name] = score, None if not counts or None in counts else sum(counts)
    if ranks.rank:
        return {}
    scores, highest = {}, 10 * np.log10(255**2 * np.prod(images.shape[1:]))  # finite psnr of 8-bit images
    for name, network in ready.items():
        (score, count), layer = found[name], METRICS[name].layer
        each = np.array(score.mean) if score.per_image is None else score.per_image
        each = each[~np.isnan(each)]
        notes += [f"{name}: {score.note}" if score.note else "", network.note if network else ""]
        scores[name] = {
            "mean": float(score.mean),
            "std": score.std,
            "interval": score.interval and list(score.interval),
            "per_image": None if score.per_image is None else score.per_image.tolist(),
            "compared": float(np.where(np.isinf(each), highest, each).mean()) if each.size else np.nan,
            "n": len(images),
            "n_reference": count,
            "features": LAYERS[layer].text if layer else network.name if network else "pixels",
            "resizing": network.resizing if network else "none",
            "weights": network.weights if network else "",
        }
        if score.curve:
            scores[name]["curve"] = score.curve
    notes = [note for note in dict.fromkeys([*_notes(scores, images), *notes]) if note]
    return {"n": len(images), "metrics": scores, "notes": notes, "unavailable": unavailable}


def _scores_of_draws(
    names: Sequence[str], sample: Images, reference: Images, place: torch.device, batch_size: int, ranks: World
) -> dict[str, Score]:
    """The metrics of all draws of images in their order; in memory are about `batch_size` draws at a time."""
    count = max(1, batch_size // sample.number)
    batches = in_pairs(sample, reference, count, ranks.rank, ranks.size, draws=True)
    with torch.inference_mode():
        own = (_of_draws(names, *_on(place, batch)) for batch in batches)
        parts = list(taking_turns(own, -(-len(sample) // count), ranks))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    curves = [METRICS[name].curve for name in names]
    return {
        name: curve(values, sample.number) if curve else _score(values)
        for name, curve, values in zip(names, curves, columns, strict=True)
    }


def _on(device: torch.device, batch: Iterable[np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
    """A batch of `in_pairs` as metrics take it."""
    x, y, inside = (torch.from_numpy(side).to(device).movedim(-1, -3) for side in batch)
    return x.double() / 255, y.double() / 255, inside


def _of_draws(names: Sequence[str], x: Tensor, y: Tensor, inside: Tensor) -> list[np.ndarray]:
    """The metrics of a batch, float64 [B] or [B, L] each."""
    return [METRICS[name].compute(x, y, inside).cpu().numpy() for name in names]


def _values(
    networks: Mapping[str, Network | None], threshold: float, x: Tensor, y: Tensor, inside: Tensor
) -> np.ndarray:
    """The metrics of a batch, and whether a pair is not defined everywhere, float64 [B, metrics + 1]."""
    columns = []
    for name, network in networks.items():
        own = [network.run] if network else [threshold] if METRICS[name].masks else []
        columns.append(METRICS[name].compute(x, y, inside, *own))
    columns.append(~inside.flatten(1).all(1))
    return np.column_stack([column.double().cpu().numpy() for column in columns])


def _score(values: np.ndarray) -> Score:
    """Mean over images [N] but for those with nothing inside their masks, NaN; NaN if that is true of all.

    Infinite ones, the PSNR of identical pairs, are left out where there are others.
    """
    there = values[~np.isnan(values)]
    measured, notes = there[~np.isinf(there)], []
    if hidden := len(values) - len(there):
        notes.append(f"{hidden} pair(s) have too little inside their masks and are left out")
    if left_out := len(there) - len(measured):
        rest = f"mean, std and interval are those of the other {len(measured)}" if len(measured) else "so is the mean"
        notes.append(f"{left_out} identical pair(s), of infinite value; {rest}")
    if not len(measured):
        return Score(float(there[0]) if len(there) else np.nan, note="; ".join(notes), per_image=values)
    return Score(measured.mean(), float(measured.std()), interval_of_mean(measured), "; ".join(notes), values)


def _notes(scores: dict[str, dict[str, Any]], sample: Images) -> list[str]:
    notes = []
    if any(METRICS[name].masks for name in scores) and sample.levels in ([0, 1], [1]):
        notes.append("the sample holds 0 and 1 alone, all of it outside the mask: multiply by 255")
    frechet = [name for name in scores if METRICS[name].layer and not METRICS[name].rows]
    if frechet and (fewest := min(len(sample), *(scores[name]["n_reference"] or ENOUGH for name in frechet))) < ENOUGH:
        unbiased = "kd_raw" if all(METRICS[name].layer == "raw" for name in frechet) else "kid"
        notes.append(
            f"{', '.join(frechet)} of {fewest} images (fewer than {ENOUGH}): biased upwards, compare equal numbers "
            f"only; {unbiased} is not"
        )
    return notes


def merged(out: Path, report: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The report together with the older one in a file, if that is of the same images; and what is to be said of it.

    A metric that both have is that of `report`. Metrics of symmetry of two groups do not go together.
    """
    if not out.exists():
        return report, ""
    try:
        old = read_json(out)
    except (OSError, ValueError):
        old = None
    if not isinstance(old, dict) or not all(isinstance(old.get(key), kind) for key, kind in KINDS.items()):
        return report, f"{out} held other things than results; it is replaced"
    if any(old.get(key) != report[key] for key in ("reference_digest", "sample_digest")):
        return report, f"{out} held results of another reference or sample; it is replaced"
    groups = {group for group in (old["group"], report["group"]) if group != "none"}
    if len(groups) > 1:
        return report, f"{out} held results of another group, {old['group']}; it is replaced"
    kept = [name for name in old["metrics"] if name not in report["metrics"]]
    if not kept:
        return report, ""
    every = old["metrics"] | report["metrics"]
    unavailable = old["unavailable"] | report["unavailable"]
    together = {
        "group": groups.pop() if groups else "none",
        "metrics": {name: every[name] for name in METRICS if name in every},
        "notes": list(dict.fromkeys([*old["notes"], *report["notes"]])),
        "unavailable": {name: reason for name, reason in unavailable.items() if name not in every},
    }
    return report | together, f"{out} keeps {', '.join(kept)}, computed of the same images before"


def by_reason(unavailable: Mapping[str, str]) -> dict[str, str]:
    """The metrics that cannot be computed, as a list in words, by the reason."""
    reasons = dict.fromkeys(unavailable.values())
    return {reason: ", ".join(n for n, other in unavailable.items() if other == reason) for reason in reasons}
