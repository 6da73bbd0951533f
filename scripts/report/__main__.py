"""The report: `python -m scripts.report RUN [RUN ...] [--metrics psnr,ssim,mse] [--samples NAME] [--flag value ...]`.

Of one run it writes RUN/report.html and RUN/report.png, of several report.html here, the same side by side. A page is
one file that needs nothing else (docs/report.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path

from ddbm.files.storage import write_whole
from ddbm.ranks.distributed import pick_device
from ddbm.settings import Settings, from_flags, setting
from ddbm.symmetry.groups import GROUPS
from evaluations.features import open_cache
from evaluations.scoring import by_reason, evaluate

from ..common import aligned, make_directory
from ..common import run as run_main
from .charts import LOSSES, number, sheet
from .page import Entry, page
from .runs import logged, other_pairs, read_run
from .scores import LINEAR, SOURCE, baselines, certify_samples, mean, spent, verdict

NAME = "report.html"
COLUMNS = ("source", "target", SOURCE, LINEAR)  # of the page, beside those of the runs


@dataclass(frozen=True)
class ReportConfig(Settings):
    """The report"""

    metrics: str = setting(
        "mse,psnr,ssim", "metrics of the evaluator, separated by commas; psnr, ssim are always there"
    )
    samples: str = setting("", "folder of samples to show, with or without its checkpoint; default: the newest")
    group: str = setting("", "group for equivariance and for metrics of symmetry; default: the run's")
    out: str = setting("", f"HTML file to write; default: RUN/{NAME}, of several runs ./{NAME}")
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")


def main(argv: Sequence[str]) -> int:
    words = list(takewhile(lambda word: not word.startswith("-"), argv))
    text = {"run": "directory of a run that has samples; several, one after the other, are compared"}
    rest = [*words[:1], *argv[len(words) :]]
    settings, extra = from_flags(ReportConfig, rest, text, tables={"group": ["", *GROUPS]})
    words = words or [extra.run]
    places = [Path(word).resolve() for word in words]
    if len(set(places)) < len(places):
        raise ValueError("a run is given twice: give every run once; --samples chooses among its samples")
    names = [place.name for place in places] if len(places) > 1 else ["sample"]
    if len({*names, *COLUMNS}) < len(names) + len(COLUMNS):
        names = words
    first, *more = runs = [
        read_run(Path(word), settings.samples, name) for word, name in zip(words, names, strict=True)
    ]
    out = Path(settings.out or (NAME if more else first.path / NAME))
    if out.is_dir() or out.suffix not in (".html", ".htm"):
        raise ValueError(f"--out {out} is not the name of an HTML file: expected one such as {NAME}")
    make_directory(out.parent)
    device = pick_device(settings.device)
    own, turned, shown = first.config.model.group, first.config.train.augment, first.shown
    group = settings.group or shown.settings.group or (turned if own == "none" else own)
    metrics = list(dict.fromkeys([*filter(None, settings.metrics.split(",")), "psnr", "ssim"]))
    measure = partial(evaluate, metrics=metrics, device=str(device), group=group, cache=open_cache(None), strict=False)

    entries = []
    for run in runs:
        found = measure(run.shown.reference, run.shown.samples)
        missing = by_reason(found["unavailable"]).items()
        remarks = [*found["notes"], *(f"not computed: {which}: {reason}" for reason, which in missing)]
        entries.append(Entry(run, found["metrics"], remarks, certify_samples(run, settings.group, device)))
    reasons = [(run.name, other_pairs(shown, run.shown)) for run in more]
    apart = [f"{name} was sampled on other pairs than {first.name}: {why}" for name, why in reasons if why]
    others, notes = ({}, apart) if apart else baselines(first, measure)
    columns = {entry.run.name: entry.scores for entry in entries} | others
    verdicts = [f"{entry.run.name}: {verdict(entry.scores, others)}" for entry in entries if not apart]
    every, left_out = spent([(entry.run, entry.scores) for entry in entries], measure)
    write_whole(out, page(entries, columns, notes, bool(apart), verdicts, every, left_out).encode())

    known = list(dict.fromkeys(name for scores in columns.values() for name in scores))
    table = [[row, *(number(mean(scores, name)) for name in known)] for row, scores in columns.items()]
    errors = [f"{entry.run.name}: {entry.certificate.words}" for entry in entries]
    lines = "\n".join([aligned([["", *known], *table]), *verdicts, *errors])
    if not more:
        losses = {name: logged(runs, key)[first.name] for key, name in LOSSES.items()}
        picture = sheet(lines, losses, [shown.images(side) for side in ("source", "sample", "target")])
        write_whole(out.with_suffix(".png"), lambda file: picture.savefig(file, format="png", bbox_inches="tight"))
    print(f"{lines}\nreport: {out}")
    return 0


if __name__ == "__main__":
    run_main(main)
