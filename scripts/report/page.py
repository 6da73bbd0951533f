"""The page: what page.html.j2 shows, of one run or of several side by side."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from ddbm.settings import values
from evaluations.metrics import describe
from evaluations.results import by_reason

from .. import check_equivariance
from ..pictures import difference, evenly, rgb
from .charts import LOSSES, Chart, chart, heading, logged, number
from .runs import Run, written
from .scores import Scores, Spent, best_and_worst, better, mean
from .symmetry import Certificate

AMPLIFIED = 4  # the differences in the pictures
PIXELS = 2_000_000  # of all pictures of a part, about
FEWEST, MOST, EXTREMES = 4, 24, 6  # pairs shown, and of these best and worst


class Entry(NamedTuple):
    """A run of the page; found: what `evaluate` gives of its samples."""

    run: Run
    found: dict[str, Any]
    certificate: Certificate | str

    @property
    def scores(self) -> Scores:
        return self.found["metrics"]


Tile = tuple[str, dict[str, np.ndarray], str]  # a pair, its images, uint8 `[H, W, C]`, by what they are, and a caption


def page(
    entries: Sequence[Entry], columns: Mapping[str, Scores], notes: Sequence[str], apart: bool,
    verdicts: Sequence[str], spent: Sequence[Spent], left_out: Sequence[str],
) -> str:  # fmt: skip
    """The whole page.

    columns: scores of the runs and of the baselines; apart: the runs were sampled on different pairs; left_out: sets of
    samples that `spent` lacks, and why.
    """
    first, *more = entries
    metrics = list(dict.fromkeys(name for scores in columns.values() for name in scores))
    parts: dict[str, list[Tile]] = {}
    if not apart:
        count, height, width, _ = first.run.shown.samples.shape
        most = max(FEWEST, min(MOST, PIXELS // ((len(entries) + 3) * height * width)))
        metric, best, worst = best_and_worst(first.scores, EXTREMES)
        of = f"of {first.run.name} by {metric}" if more else f"by {metric}"
        parts["Samples"] = tiles(entries, evenly(count, most))
        parts |= {f"Best {of}": tiles(entries, best), f"Worst {of}": tiles(entries, worst)}
    remarks = list(notes)
    for entry in entries:
        missing = by_reason(entry.found["unavailable"]).items()
        remarks += [*entry.found["notes"], *(f"not computed: {names}: {reason}" for reason, names in missing)]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": number, "heading": heading, "png": png, "cells": check_equivariance.cells}
    return environment.get_template("page.html.j2").render(
        one=not more, first=first.run, entries=entries, metrics=metrics, parts=parts, amplified=AMPLIFIED,
        verdicts=verdicts, columns=columns, remarks=list(dict.fromkeys(remarks)),
        best={name: better(name, [] if apart else list(columns.values())) for name in metrics},
        meanings={name: describe(name).partition(": ")[2] for name in metrics},
        spent=spent, left_out=left_out, spent_charts=spending(spent, list(first.scores)),
        spent_best={name: better(name, [each.scores for each in spent]) for name in first.scores},
        heads=check_equivariance.HEADS, turned=check_equivariance.PICTURES, charts=training(entries),
        settings=settings([entry.run for entry in entries]),
    )  # fmt: skip


def tiles(entries: Sequence[Entry], index: Sequence[int]) -> list[Tile]:
    """Pairs and the samples of all runs; below each its number, name and scores, in the order of the runs."""
    first, *more = (entry.run for entry in entries)
    sides = {"source": first.shown.images("source", index)}
    sides |= {run.name: run.shown.images("sample", index) for run in (first, *more)}
    sides["target"] = first.shown.images("target", index)
    if not more:
        sides[f"difference ×{AMPLIFIED}"] = difference(sides[first.name], sides["target"], AMPLIFIED)
    shown: list[Tile] = []
    for place, i in enumerate(index):
        words = [f"#{i} {first.pairs[i]}" if first.pairs else f"#{i}"]
        for metric in ("ssim", "psnr"):
            said = [number(e.scores[metric]["per_image"][i]) if metric in e.scores else "–" for e in entries]
            words.append(f"{metric} {' / '.join(said)}")
        shown.append((f"pair {i}", {name: images[place] for name, images in sides.items()}, ", ".join(words)))
    return shown


def spending(spent: Sequence[Spent], metrics: Sequence[str]) -> list[Chart]:
    """Every metric against the evaluations, a curve a way of sampling; none where all took as many."""
    if len({one.samples.record["nfe"] for one in spent}) < 2:
        return []
    charts = []
    for name in metrics:
        curves: dict[str, list[Any]] = {one.way: [] for one in spent}
        for one in spent:
            curves[one.way].append((one.samples.record["nfe"], mean(one.scores, name)))
        longest = dict(sorted(curves.items(), key=lambda curve: -len(curve[1])))
        charts += chart(heading(name), longest, "network evaluations an image", log_x=True)
    return charts


def training(entries: Sequence[Entry]) -> list[Chart]:
    """What training logged: losses (of one run in one chart), learning rate, scores of samples; a curve a run."""
    logs = {entry.run.name: entry.run.log for entry in entries}
    losses = {f"loss, {label}": {name: logged(log, key) for name, log in logs.items()} for key, label in LOSSES.items()}
    if len(logs) == 1:
        losses = {"loss": {label: logged(entries[0].run.log, key) for key, label in LOSSES.items()}}
    charts = [drawn for title, curves in losses.items() for drawn in chart(title, curves, "step", log_y=True)]
    names = {"lr": "learning rate"}
    found = (key for log in logs.values() for line in log for key in line if key.startswith("eval_"))
    names |= {key: f"{key.removeprefix('eval_')} of samples, while training" for key in found}
    for key, label in names.items():
        charts += chart(label, {name: logged(log, key) for name, log in logs.items()}, "step")
    return charts


def settings(runs: Sequence[Run]) -> dict[str, dict[str, dict[str, list[str]]]]:
    """Of training and sampling all settings, and those that differ: the default, and the value in every run.

    Of one run those that differ from the default, of several those that differ among them.
    """
    found = {}
    for part in ("training", "sampling"):
        configs = [run.config if part == "training" else run.shown.settings for run in runs]
        every = [values(config) for config in (type(configs[0])(), *configs)]
        rows = {name: [written(own[name]) for own in every] for name in every[0] if name != "run_dir"}
        start = 0 if len(runs) == 1 else 1
        found[part] = {"all": rows, "changed": {name: own for name, own in rows.items() if len(set(own[start:])) > 1}}
    return found


def png(image: np.ndarray) -> str:
    """The address of an image that holds it; uint8 `[H, W, C]`."""
    buffer = io.BytesIO()
    Image.fromarray(rgb(image[None])[0]).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
