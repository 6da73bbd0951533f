"""The page of one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from ddbm.settings import sections

from .charts import Series, chart
from .page import Cell, Row, Section, Tile, bullets, details, document, embed, number, paragraph, scroll, table, tiles
from .pictures import difference
from .report_data import Run, written
from .report_parts import curves, evenly_chosen, heading, meanings, remarks, scored
from .report_scores import LINEAR, Scores, Spent, better, extremes, verdict
from .report_symmetry import OWN as OWN_WAY
from .report_symmetry import PICTURES, Certificate, symmetry_line

AMPLIFIED = 4  # the differences in the pictures
HEADS = ("source", "sample", "target", f"difference ×{AMPLIFIED}")
DIFFERENCE = f"Difference: |sample − target|, {AMPLIFIED} times enlarged; black is none."
EXTREMES = 6  # best and worst samples


def page(
    run: Run, title: str, summary: str, scores: Scores, spent: Sequence[Spent], left_out: Sequence[str],
    certificate: Certificate | str,
) -> str:  # fmt: skip
    """The whole page; summary: what is shown, in a line; left_out: sets of samples that `spent` lacks, and why."""
    line = symmetry_line(certificate)
    parts = [
        Section("Samples", shown_tiles(run, scores, evenly_chosen(run, len(HEADS))) + paragraph(DIFFERENCE, "note")),
        Section("Scores", score_table(scores) + bullets(remarks(scores)) + meanings(list(scores.own))),
        Section("Best and worst", best_and_worst(run, scores)),
        Section("Evaluations (NFE)", spending(run, spent, left_out)),
        Section("Equivariance", equivariance(certificate)),
        Section("Training", curves({run.path.name: run.log})),
        Section("Settings", settings(run)),
    ]
    return document(title, [summary, verdict(scores), line[0].upper() + line[1:]], parts)


def shown_tiles(run: Run, scores: Scores, index: Sequence[int]) -> str:
    """Pairs with their samples; below each its number, name and scores."""
    shown = []
    for i, (source, sample, target) in zip(index, run.shown.pairs(index), strict=True):
        images = (source, sample, target, difference(sample, target, AMPLIFIED))
        shown.append(Tile(f"pair {i}", images, caption(run, scores, i)))
    return tiles(HEADS, shown)


def caption(run: Run, scores: Scores, index: int) -> str:
    values = [(name, scores.own[name]["per_image"][index]) for name in ("ssim", "psnr") if name in scores.own]
    return ", ".join([run.name_of(index), *(f"{name} {number(value)}" for name, value in values)])


def score_table(scores: Scores) -> str:
    """A row a metric: samples and baselines, how many images, by which features."""
    heads: Row = ["metric", *scores.rows, "n", Cell("features", left=True)]
    rows: list[Row] = []
    for name, own in scores.own.items():
        found = [row.get(name) for row in scores.rows.values()]
        best = better(name, [score["mean"] if score else None for score in found])
        cells = [scored(score, i in best) for i, score in enumerate(found)]
        rows.append([heading(name), *cells, str(own.get("n", "–")), Cell(features(own), left=True)])
    text = (
        "Means over images (of metrics of sets the number itself), in small their 95 % intervals where there are any; "
        "↑ higher is better, ↓ lower; the best in bold. "
        "The baselines to beat are the source itself"
        + (
            " and a least-squares map of 7×7 source pixels, fitted on the training split."
            if LINEAR in scores.rows
            else "."
        )
    )
    return table("Scores against the target", heads, rows) + paragraph(text, "note")


def features(score: dict[str, Any]) -> str:
    """Where a number comes from: the extractor, and the resizing before it."""
    resizing = score.get("resizing", "none")
    return score.get("features", "pixels") + ("" if resizing.startswith("none") else f", resizing {resizing}")


def best_and_worst(run: Run, scores: Scores) -> str:
    metric, best, worst = extremes(scores, EXTREMES)
    parts = [f"<h3>{word} by {metric}</h3>{shown_tiles(run, scores, index)}"
             for word, index in (("Best", best), ("Worst", worst))]  # fmt: skip
    return "".join(parts)


def spending(run: Run, spent: Sequence[Spent], left_out: Sequence[str]) -> str:
    """Charts of every metric against the evaluations, a curve a way of sampling, and all of it as a table."""
    metrics = list(spent[0].scores)
    ways = list(dict.fromkeys(one.way for one in spent))
    charts = []
    if len({one.nfe for one in spent}) > 1:
        for name in metrics:
            series = [Series(way, [(o.nfe, o.scores[name]["mean"]) for o in spent if o.way == way]) for way in ways]
            series.sort(key=lambda one: -len(one.points))
            charts.append(chart(heading(name), series, "network evaluations an image", log_x=True))
    best = {name: better(name, [one.scores[name]["mean"] for one in spent]) for name in metrics}
    rows: list[Row] = [
        [Cell(one.way, one.folder), str(one.nfe), *(scored(one.scores[n], i in best[n]) for n in metrics)]
        for i, one in enumerate(spent)
    ]
    own = [i for i, one in enumerate(spent) if one.folder == run.shown.folder.name]
    text = "All samples of these pairs that the run has; shaded those of this page, in bold the best."
    if len(spent) == 1:
        text = "The run has no other samples of these pairs: sample with another --nfe or --sampler to compare."
    return (
        (f'<div class="charts">{"".join(charts)}</div>' if charts else "")
        + table("Scores by sampler and evaluations", ["sampler", "evaluations", *map(heading, metrics)], rows, own)
        + paragraph(text, "note")
        + bullets([f"Left out: {line}" for line in left_out])
    )


def equivariance(found: Certificate | str) -> str:
    """The certificate as a table and its pictures."""
    if isinstance(found, str):
        return paragraph(found)
    rows: list[Row] = []
    for line in (found.own, *found.others):
        delta = "–" if line["delta_x0"] is None else f"{line['delta_x0']:.1e}"
        changed = "–" if line["changed"] is None else f"{line['changed']:.3%}"
        rows.append([line["map"], line["precision"], f"{line['mean']:.1e}", f"{line['largest']:.1e}", delta, changed])
    heads = ["", "precision", "mean error", "largest", "Δx̂0", "8-bit values changed"]
    columns = "".join(f'<th scope="col">{name}</th>' for name, _ in found.pictures)
    body = ""
    for i, row in enumerate(PICTURES):
        cells = (embed(images[i], f"{row}, g = {name}") for name, images in found.pictures)
        body += f'<tr><th scope="row">{row}</th>{"".join(f"<td>{image}</td>" for image in cells)}</tr>'
    return (
        paragraph(
            f"Under {found.group} ({found.how}), on {found.images} validation images. “{OWN_WAY}” is sampling with the "
            f"settings of these samples: {found.way}. The other rows are network, denoiser and every sampler at its "
            f"default settings with {found.nfe} evaluations."
        )
        + table("Equivariance errors", heads, rows, [0])
        + paragraph(
            "Error: ‖S(g x) − g S(x)‖ / ‖S(x)‖. Δx̂0: mean of |S(g x) − g S(x)| on [0, 1]. The noise turns with the "
            "source. In the picture g is mirrored left-right if m, then turned counter-clockwise by degrees; the "
            "difference is from S(x), mid-grey is none.",
            "note",
        )
        + scroll(
            "Samples of turned sources",
            f'<table class="turned"><thead><tr><th scope="col">g</th>{columns}</tr></thead>'
            f"<tbody>{body}</tbody></table>",
        )
    )


def settings(run: Run) -> str:
    """What differs from the defaults, and all there is, folded up."""
    parts = []
    for name, groups in (("training", sections(run.config)), ("sampling", [run.shown.settings])):
        known = [
            (f.name, written(getattr(group, f.name)), written(f.default)) for group in groups for f in fields(group)
        ]
        changed: list[Row] = [[setting, Cell(value, left=True), Cell(default or "(empty)", left=True)]
                   for setting, value, default in known if value != default]  # fmt: skip
        every: list[Row] = [[setting, Cell(value, left=True)] for setting, value, _ in known]
        heads: Row = [f"{name} setting", Cell("value", left=True), Cell("default", left=True)]
        parts.append(table(f"Settings of {name} that differ from the defaults", heads, changed))
        parts.append(details(f"All settings of {name}", table(f"All settings of {name}", heads[:2], every)))
    return "".join(parts)
