"""The report: `python -m scripts.report RUN [RUN ...] [--metrics psnr,ssim,mse] [--samples NAME] [--flag value ...]`.

Of one run it writes RUN/report.html and RUN/report.png: its newest samples (sample_ddbm.sh) beside source and target,
scores beside two baselines, best and worst, what more evaluations buy, equivariance, curves and settings. Of several it
writes report.html here, a comparison. A page is one file that needs nothing else. docs/report.md describes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from ddbm.files.storage import is_local, location, write_whole
from ddbm.ranks.devices import pick_device
from ddbm.settings import Settings, from_flags, setting
from ddbm.symmetry.groups import GROUPS

from . import check_equivariance
from .common import make_directory
from .common import run as run_main
from .pictures import evenly
from .render import sheet
from .report_compare import Entry, compare_page, names_of
from .report_data import Run, read_run
from .report_page import page
from .report_scores import DEFAULT, Measure, Scores, metric_names, score, spent, verdict
from .report_symmetry import certify_samples, symmetry_line

NAME = "report.html"
IN_SHEET = 30  # pairs in the PNG


@dataclass(frozen=True)
class ReportConfig(Settings):
    """The report"""

    metrics: str = setting(DEFAULT, "metrics of the evaluator, separated by commas; psnr and ssim are always there")
    samples: str = setting("", "folder of samples to show, with or without its checkpoint; default: the newest")
    group: str = setting("", "group for equivariance and for metrics of symmetry; default: the run's")
    out: str = setting("", f"HTML file to write; default: RUN/{NAME}, of several runs ./{NAME}")
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")


def words_of(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The runs and the flags of a command line."""
    runs: list[str] = []
    flags: list[str] = []
    words = iter(argv)
    for word in words:
        if word.startswith("-"):
            flags += [word, *islice(words, 0 if "=" in word or word in ("-h", "--help") else 1)]
        else:
            runs.append(word)
    return runs, flags


def local_runs(words: Sequence[str]) -> list[Path]:
    """The directories, each once."""
    paths = [location(word) for word in words]
    for path in paths:
        if not is_local(path):
            raise ValueError(f"{path} is in a store: copy its samples and newest checkpoint here to report on them")
    places = [path.resolve() for path in paths]
    for path, place in zip(paths, places, strict=True):
        if places.count(place) > 1:
            raise ValueError(f"{path} is given twice: give every run once; --samples chooses among its samples")
    return paths


def measure_of(run: Run, settings: ReportConfig, device: str) -> Measure:
    """How the samples of a run are scored."""
    own, turned = run.config.model.group, run.config.train.augment
    group = settings.group or run.shown.settings.group or (turned if own == "none" else own)
    return Measure(metric_names(settings.metrics, group), group, device)


def main(argv: Sequence[str]) -> int:
    words, flags = words_of(argv)
    text = {"run": "directory of a run that has samples; several, one after the other, are compared"}
    settings, _ = from_flags(ReportConfig, [*words[:1], *flags], text, tables={"group": ["", *GROUPS]})
    runs = [read_run(path, settings.samples) for path in local_runs(words)]
    out = Path(settings.out or (runs[0].path / NAME if len(runs) == 1 else NAME))
    if out.is_dir() or out.suffix not in (".html", ".htm"):
        raise ValueError(f"--out {out} is not the name of an HTML file: expected one such as {NAME}")
    make_directory(out.parent)
    if len(runs) == 1:
        report(runs[0], settings, out)
    else:
        compare(runs, settings, out)
    print(f"report: {out}")
    return 0


def report(run: Run, settings: ReportConfig, out: Path) -> None:
    """The page and the sheet of one run."""
    device = pick_device(settings.device)
    measure = measure_of(run, settings, str(device))
    scores = score(run, measure)
    others, left_out = spent(run, scores, measure)
    certificate = certify_samples(run, settings.group, device, others=True)
    shown = run.shown
    title = f"{run.config.data.dataset}, {run.config.bridge.schedule}"
    summary = (
        f"{shown.record['checkpoint']}, {len(shown.samples)} images of {shown.settings.split}, "
        f"{shown.settings.sampler}, {shown.nfe} evaluations an image"
    )
    lines = [f"{title}: {summary}", verdict(scores), symmetry_line(certificate)]
    columns = [np.stack(side) for side in zip(*shown.pairs(evenly(len(shown.samples), IN_SHEET)), strict=True)]
    write_whole(out.with_suffix(".png"), sheet(run.log, scores, columns, lines))
    write_whole(out, page(run, title, summary, scores, others, left_out, certificate).encode())
    print(table(scores))
    print("\n".join(lines[1:]))
    if not isinstance(certificate, str):
        print(check_equivariance.table([certificate.own, *certificate.others]))


def compare(runs: Sequence[Run], settings: ReportConfig, out: Path) -> None:
    """The page of several runs."""
    device = pick_device(settings.device)
    entries: list[Entry] = []
    for name, run in zip(names_of(runs), runs, strict=True):
        scores = score(run, measure_of(run, settings, str(device)), baselines=not entries)
        entries.append(Entry(name, run, scores, certify_samples(run, settings.group, device, others=False)))
    write_whole(out, compare_page(entries).encode())
    first = entries[0].scores
    print(table(first._replace(rows={entry.name: entry.scores.own for entry in entries})))
    for entry in entries:
        print(f"{entry.name}: {symmetry_line(entry.certificate)}")


def table(scores: Scores) -> str:
    """The scores as text, for a terminal."""
    metrics = list(dict.fromkeys(name for row in scores.rows.values() for name in row))
    width = max(16, *(len(name) + 2 for name in scores.rows))
    lines = [" " * width + "".join(f"{name:>{max(9, len(name) + 2)}}" for name in metrics)]
    for row in scores.rows:
        means = [(name, scores.mean(row, name)) for name in metrics]
        cells = (f"{'-' if mean is None else format(mean, '.4f'):>{max(9, len(name) + 2)}}" for name, mean in means)
        lines.append(f"{row:<{width}}" + "".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    run_main(main)
