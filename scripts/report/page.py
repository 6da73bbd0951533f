"""The page: what page.html.j2 shows, of one run or of several side by side."""

import base64
import io
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import StrictUndefined, Template
from PIL import Image

from ddbm.settings import values
from evaluations.copies import SIDE
from evaluations.metrics import METRICS, describe

from .. import check_equivariance
from ..pictures import difference, evenly, rgb
from ..translate import SPREAD_WHITE
from .charts import LOSSES, Chart, chart, heading, number
from .runs import Run, logged, written
from .scores import Certificate, Scores, Spent, better, mean
from .unseen import Unseen
from .whole import Whole

AMPLIFIED = 4  # the differences in the pictures
PIXELS = 2_000_000  # of all pictures of a part, about
FEWEST, MOST, EXTREMES = 4, 24, 6  # pairs shown, and of these best and worst


class Entry(NamedTuple):
    """A run of the page; remarks: what its evaluation had to say, and what it could not compute."""

    run: Run
    scores: Scores
    remarks: list[str]
    certificate: Certificate
    unseen: Unseen


Tile = tuple[str, dict[str, np.ndarray], str]  # a pair, its images, uint8 `[H, W, C]`, by what they are, and a caption


def page(
    entries: Sequence[Entry], columns: Mapping[str, Scores], notes: Sequence[str], apart: bool,
    verdicts: Sequence[str], spent: Sequence[Spent], left_out: Sequence[str], whole: Sequence[Whole],
) -> str:  # fmt: skip
    """The whole page.

    columns: scores of the runs and of the baselines; apart: the runs were sampled on different pairs; left_out: sets of
    samples that `spent` lacks, and why; whole: pictures to begin with.
    """
    first, runs = entries[0], [entry.run for entry in entries]
    parts: dict[str, list[Tile]] = {}
    if not apart:
        count, height, width, _ = first.run.shown.samples.shape
        most = max(FEWEST, min(MOST, PIXELS // ((len(entries) + 3) * height * width)))
        by_image = {name: np.array(first.scores[name]["per_image"], float) for name in ("ssim", "psnr")}  # None is NaN
        metric = "psnr" if np.isnan(by_image["ssim"]).all() else "ssim"  # masks can leave it no window
        ranked = np.argsort(-by_image[metric], kind="stable")[: np.count_nonzero(~np.isnan(by_image[metric]))].tolist()
        extremes = min(EXTREMES, max(1, len(ranked) // 2))
        of = f"of {first.run.name} by {metric}" if len(runs) > 1 else f"by {metric}"
        parts["Samples"] = tiles(entries, evenly(count, most))
        if ranked:
            parts[f"Best {of}"] = tiles(entries, ranked[:extremes])
            parts[f"Worst {of}"] = tiles(entries, ranked[: -extremes - 1 : -1])
    settings = {}
    for part in ("training", "sampling"):
        configs = [run.config if part == "training" else run.shown.settings for run in runs]
        every = [values(config) for config in (type(configs[0])(), *configs)]  # the defaults, and those of every run
        settings[part] = {name: [written(own[name]) for own in every] for name in every[0] if name != "run_dir"}
    text = Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    template = Template(text, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return template.render(
        one=len(runs) == 1, first=first.run, entries=entries, columns=columns, parts=parts, verdicts=verdicts,
        metrics=list(dict.fromkeys(name for scores in columns.values() for name in scores)), amplified=AMPLIFIED,
        remarks=list(dict.fromkeys([*notes, *(remark for entry in entries for remark in entry.remarks)])),
        compared=[] if apart else list(columns.values()), spent=spent, left_out=left_out,
        spent_charts=spending(spent, [name for name in first.scores if not METRICS[name].draws]), whole=whole,
        draw_charts=calibration(entries), near={entry.run.name: near(entry) for entry in entries},
        near_charts=copies(entries), charts=training(runs), settings=settings, side=SIDE, white=SPREAD_WHITE,
        heads=check_equivariance.HEADS, turned=check_equivariance.PICTURES, cells=check_equivariance.cells,
        number=number, heading=heading, better=better, describe=describe, png=png, jpeg=jpeg,
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


def near(entry: Entry) -> list[Tile]:
    """The samples that lie nearest to targets of the training, each beside that target and its own."""
    found, run = entry.unseen.nearest, entry.run
    if not found:
        return []
    index = found.numbers[:EXTREMES]
    sides = {"sample": run.shown.images("sample", index), "nearest of training": found.targets[:EXTREMES]}
    sides["target"] = run.shown.images("target", index)
    shown: list[Tile] = []
    for place, i in enumerate(index):
        words = " ".join([f"#{i}", *run.pairs[i : i + 1]])
        words += f", from training {found.sample[place]:.1f}, truth {found.truth[place]:.1f}"
        shown.append((f"pair {i}", {name: images[place] for name, images in sides.items()}, words))
    return shown


def copies(entries: Sequence[Entry]) -> list[Chart]:
    """How far samples and truths lie from the nearest target of the training; a copy lies at the left."""
    found = {entry.run.name: entry.unseen.nearest for entry in entries}
    points = {name: list(zip(each.sample, each.truth, strict=True)) if each else [] for name, each in found.items()}
    far = 1.05 * max((value for each in points.values() for point in each for value in point), default=0)
    return chart(
        "truth: distance to its nearest training target",
        points,
        "sample: distance to its own",
        joined=False,
        square=far,
    )


def calibration(entries: Sequence[Entry]) -> list[Chart]:
    """Of samples with several draws: how often the truth lies within their intervals, and how often it should."""
    curves = {entry.run.name: entry.scores.get("calibration", {}).get("curve") for entry in entries}
    points = {
        name: list(zip(each["levels"], each["coverage"], strict=True)) if each else [] for name, each in curves.items()
    }
    return chart(
        "pixels whose truth lies within the draws' central interval", points, "level of the interval", square=1
    )


def spending(spent: Sequence[Spent], metrics: Sequence[str]) -> list[Chart]:
    """Every metric against the evaluations, a curve a way of sampling; none where all took as many."""
    if len({one.samples.record["nfe"] for one in spent}) < 2:
        return []
    ways = sorted((list(part) for _, part in groupby(spent, attrgetter("way"))), key=len, reverse=True)
    charts = []
    for name in metrics:
        curves = {
            way[0].way: [(one.samples.record["nfe"], mean(one.scores, name, "compared")) for one in way] for way in ways
        }
        charts += chart(heading(name), curves, "network evaluations an image", log_x=True)
    return charts


def training(runs: Sequence[Run]) -> list[Chart]:
    """What training logged: losses, learning rate, scores of samples; a curve a run."""
    losses, charts = {f"loss, {name}": logged(runs, key) for key, name in LOSSES.items()}, []
    if len(runs) == 1:  # both in one
        losses = {"loss": {name: logged(runs, key)[runs[0].name] for key, name in LOSSES.items()}}
    for name, curves in losses.items():
        charts += chart(name, curves, "step", log_y=True)
    scores = (key for run in runs for line in run.log for key in line if key.startswith("eval_"))
    names = {"lr": "learning rate"} | {k: f"{k.removeprefix('eval_')} of samples, while training" for k in scores}
    for key, name in names.items():
        charts += chart(name, logged(runs, key), "step")
    return charts


def png(image: np.ndarray, form: str = "png", **options: Any) -> str:
    """The address of an image that holds it; uint8 `[H, W, C]`."""
    buffer = io.BytesIO()
    Image.fromarray(rgb(image[None])[0]).save(buffer, form, optimize=True, **options)
    return f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode()}"


jpeg = partial(png, form="jpeg", quality=90, subsampling=0)  # of large pictures
