"""The page that compares several runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from ddbm.settings import sections

from .page import Cell, Row, Section, Tile, bullets, document, number, paragraph, table, tiles
from .report_data import Run, label, other_pairs, written
from .report_parts import curves, evenly_chosen, heading, meanings, remarks, scored
from .report_scores import LINEAR, SOURCE, Scores, better
from .report_symmetry import Certificate
from .sample import FREE


class Entry(NamedTuple):
    """A run of a comparison, under a name that no other one has."""

    name: str
    run: Run
    scores: Scores
    certificate: Certificate | str


def names_of(runs: Sequence[Run]) -> list[str]:
    """The directories' names, or their paths where those are not enough."""
    names = [run.path.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def compare_page(entries: Sequence[Entry]) -> str:
    """The whole page; the first entry has the baselines."""
    first = entries[0]
    reasons = {e.name: other_pairs(first.run.shown, e.run.shown) for e in entries[1:]}
    others = [f"{name} was sampled on other pairs than {first.name}: {why}" for name, why in reasons.items() if why]
    parts = [
        Section("Scores", score_table(entries, not others) + bullets([*others, *all_remarks(entries)])
                + meanings(metrics_of(entries))),
        Section("Settings that differ", differing(entries)),
        Section("Training", curves({entry.name: entry.run.log for entry in entries})),
        Section("Samples", paragraph("Not side by side: " + "; ".join(others) + ".") if others else samples(entries)),
    ]  # fmt: skip
    lead = [f"{len(entries)} runs, on {len(first.run.shown.samples)} images of {first.run.shown.settings.split}"]
    if others:
        lead = ["The runs were sampled on different pairs: their scores cannot be compared."]
    return document(", ".join(entry.name for entry in entries), lead, parts)


def metrics_of(entries: Sequence[Entry]) -> list[str]:
    return list(dict.fromkeys(name for entry in entries for name in entry.scores.own))


def score_table(entries: Sequence[Entry], comparable: bool) -> str:
    """A row a run, a column a metric; of the same pairs the best is in bold, and below are the baselines."""
    names = metrics_of(entries)
    best = {n: better(n, [e.scores.own.get(n, {}).get("mean") for e in entries]) if comparable else [] for n in names}
    errors = [None if isinstance(e.certificate, str) else e.certificate.own["mean"] for e in entries]
    rows: list[Row] = []
    for i, entry in enumerate(entries):
        shown = entry.run.shown
        cells = [scored(entry.scores.own.get(name), i in best[name]) for name in names]
        error = Cell("–" if errors[i] is None else f"{errors[i]:.1e}", group_of(entry))
        way = Cell(label(shown.settings), shown.record["checkpoint"], left=True)
        rows.append([entry.name, *cells, error, way, str(shown.nfe), str(len(shown.samples))])
    if comparable:
        found = entries[0].scores.rows
        rows += [
            [row, *(scored(found[row].get(n)) for n in names), "", "", "", ""]
            for row in (SOURCE, LINEAR)
            if row in found
        ]
    heads: Row = [
        "run",
        *map(heading, names),
        "equivariance error ↓",
        Cell("sampled by", left=True),
        "evaluations",
        "images",
    ]
    text = (
        "Means over images (of metrics of sets the number itself), in small their 95 % intervals where there are any; "
        "↑ higher is better, ↓ lower"
        + ("; the best run in bold. " if comparable else ". ")
        + "Equivariance error: mean ‖S(g x) − g S(x)‖ / ‖S(x)‖ of sampling with the settings of the samples, under the "
        "group below it."
    )
    return table("Scores of the runs", heads, rows) + paragraph(text, "note")


def group_of(entry: Entry) -> str:
    return "not measured" if isinstance(entry.certificate, str) else entry.certificate.group


def all_remarks(entries: Sequence[Entry]) -> list[str]:
    lines = [line for entry in entries for line in remarks(entry.scores)]
    lines += [f"{e.name}: equivariance: {e.certificate}" for e in entries if isinstance(e.certificate, str)]
    return list(dict.fromkeys(lines))


def all_settings(run: Run) -> dict[str, Any]:
    """Every setting of training and sampling that may change the samples."""
    found = {k: v for group in sections(run.config) for k, v in asdict(group).items() if k != "run_dir"}
    sampling = {f"{k}, sampling": v for k, v in asdict(run.shown.settings).items() if k not in FREE}
    return {**found, **sampling, "checkpoint": run.shown.record["checkpoint"]}


def differing(entries: Sequence[Entry]) -> str:
    """A row a setting that the runs do not share."""
    every = [all_settings(entry.run) for entry in entries]
    rows: list[Row] = [
        [name, *(Cell(written(own[name]) or "(empty)", left=True) for own in every)]
        for name in every[0]
        if len({written(own[name]) for own in every}) > 1
    ]
    if not rows:
        return "<p>None: the runs were trained and sampled with the same settings.</p>"
    return table("Settings that differ", ["setting", *(Cell(entry.name, left=True) for entry in entries)], rows)


def samples(entries: Sequence[Entry]) -> str:
    """The samples of all runs of the same pairs, side by side."""
    first = entries[0].run
    index = evenly_chosen(first, len(entries) + 2)
    every = [entry.run.shown.pairs(index) for entry in entries]
    shown = []
    for place, i in enumerate(index):
        source, _, target = every[0][place]
        images = [source, *(pairs[place][1] for pairs in every), target]
        values = [f"{e.name} {number(e.scores.own['ssim']['per_image'][i])}" for e in entries if "ssim" in e.scores.own]
        shown.append(
            Tile(f"pair {i}", images, f"{first.name_of(i)}" + (f", ssim: {', '.join(values)}" if values else ""))
        )
    return tiles(["source", *(entry.name for entry in entries), "target"], shown)
