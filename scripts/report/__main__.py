"""The report: `python -m scripts.report RUN [RUN ...] [--metrics psnr,ssim,mse] [--samples NAME] [--flag value ...]`.

Of one run it writes RUN/report.html and RUN/report.png: its newest samples (sample_ddbm.sh) beside source and target,
scores beside two baselines, best and worst, what more evaluations buy, equivariance, curves and settings. Of several it
writes report.html here, the same side by side. A page is one file that needs nothing else; docs/report.md describes it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from ddbm.files.storage import write_whole
from ddbm.files.stores import is_store
from ddbm.ranks.devices import pick_device
from ddbm.settings import Settings, from_flags, setting
from ddbm.symmetry.groups import GROUPS

from .. import check_equivariance
from ..common import make_directory
from ..common import run as run_main
from ..pictures import evenly
from .charts import number, sheet
from .page import Entry, page
from .runs import Run, other_pairs, read_run
from .scores import DEFAULT, LINEAR, SOURCE, Scores, baselines, mean, measure_by, spent, verdict
from .symmetry import certify_samples, symmetry_line

NAME = "report.html"
IN_SHEET = 30  # pairs in the PNG
COLUMNS = ("source", "target", SOURCE, LINEAR)  # of the page, beside those of the runs


@dataclass(frozen=True)
class ReportConfig(Settings):
    """The report"""

    metrics: str = setting(DEFAULT, "metrics of the evaluator, separated by commas; psnr and ssim are always there")
    samples: str = setting("", "folder of samples to show, with or without its checkpoint; default: the newest")
    group: str = setting("", "group for equivariance and for metrics of symmetry; default: the run's")
    out: str = setting("", f"HTML file to write; default: RUN/{NAME}, of several runs ./{NAME}")
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")


def read_runs(words: Sequence[str], samples: str) -> list[Run]:
    """The runs, each once, under the names of their directories, or their paths where those are not enough."""
    places = [Path(word).resolve() for word in words]
    for word, place in zip(words, places, strict=True):
        if is_store(word):
            raise ValueError(f"{word} is in a store: copy its samples and newest checkpoint here to report on them")
        if places.count(place) > 1:
            raise ValueError(f"{word} is given twice: give every run once; --samples chooses among its samples")
    names = [place.name for place in places]
    if len({*names, *COLUMNS}) < len(names) + len(COLUMNS):
        names = list(words)
    return [read_run(Path(word), samples, name) for word, name in zip(words, names, strict=True)]


def main(argv: Sequence[str]) -> int:
    words = list(takewhile(lambda word: not word.startswith("-"), argv))
    text = {"run": "directory of a run that has samples; several, one after the other, are compared"}
    rest = [*words[:1], *argv[len(words) :]]
    settings, extra = from_flags(ReportConfig, rest, text, tables={"group": ["", *GROUPS]})
    first, *more = runs = read_runs(words or [extra.run], settings.samples)
    out = Path(settings.out or (NAME if more else first.path / NAME))
    if out.is_dir() or out.suffix not in (".html", ".htm"):
        raise ValueError(f"--out {out} is not the name of an HTML file: expected one such as {NAME}")
    make_directory(out.parent)
    device = pick_device(settings.device)
    own, turned = first.config.model.group, first.config.train.augment
    group = settings.group or first.shown.settings.group or (turned if own == "none" else own)
    measure = measure_by(settings.metrics, group, str(device))

    entries = []
    for run in runs:
        found = measure(run.shown.reference, run.shown.samples)
        entries.append(Entry(run, found, certify_samples(run, settings.group, device, others=not more)))
    reasons = [(run.name, other_pairs(first.shown, run.shown)) for run in more]
    apart = [f"{name} was sampled on other pairs than {first.name}: {why}" for name, why in reasons if why]
    others, notes = ({}, apart) if apart else baselines(first, measure)
    title, shown = ", ".join(run.name for run in runs), first.shown
    summary = f"{len(runs)} runs, on {len(shown.samples)} images of {shown.settings.split}"
    if apart:
        summary = "The runs were sampled on different pairs: their scores cannot be compared."
    if not more:
        title = f"{first.config.data.dataset}, {first.config.bridge.schedule}"
        summary = f"{shown.record['checkpoint']}, {len(shown.samples)} images of {shown.settings.split}, "
        summary += f"{shown.settings.sampler}, {shown.record['nfe']} evaluations an image"
    every, left_out = spent([(entry.run, entry.scores) for entry in entries], measure)
    write_whole(out, page(title, summary, entries, others, notes, every, left_out).encode())

    rows = {entry.run.name if more else "sample": entry.scores for entry in entries} | others
    lines = [table(rows)]
    for entry in entries:
        prefix = f"{entry.run.name}: " if more else ""
        lines += [prefix + verdict(entry.scores, others)] if others else []
        lines += [prefix + symmetry_line(entry.certificate)]
    if not more:
        index = evenly(len(shown.samples), IN_SHEET)
        columns = [shown.images(side, index) for side in ("source", "sample", "target")]
        write_whole(out.with_suffix(".png"), sheet(first.log, rows, columns, [f"{title}: {summary}", *lines[1:]]))
        if not isinstance(certificate := entries[0].certificate, str):
            lines.append(check_equivariance.table([certificate.own, *certificate.others]))
    print("\n".join([*lines, f"report: {out}"]))
    return 0


def table(rows: Mapping[str, Scores]) -> str:
    """The scores as text, for a terminal."""
    first = max(map(len, rows)) + 2
    widths = {name: max(9, len(name) + 2) for scores in rows.values() for name in scores}
    lines = [" " * first + "".join(f"{name:>{width}}" for name, width in widths.items())]
    for row, scores in rows.items():
        cells = (f"{number(mean(scores, name)):>{width}}" for name, width in widths.items())
        lines.append(f"{row:<{first}}" + "".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    run_main(main)
