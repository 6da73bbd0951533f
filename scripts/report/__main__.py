"""The report: `python -m scripts.report RUN [RUN ...] [--metrics psnr,ssim,mse] [--samples NAME] [--flag value ...]`.

Of one run it writes RUN/report.html and RUN/report.png, of several report.html here, the same side by side. A page is
one file that needs nothing else (docs/report.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from ddbm.config import MOVED
from ddbm.files.storage import write_whole
from ddbm.ranks.distributed import pick_device
from ddbm.settings import Settings, from_flags, setting
from ddbm.symmetry.groups import GROUPS
from evaluations.features import open_cache
from evaluations.images import Images
from evaluations.scoring import by_reason, evaluate

from ..common import aligned, make_directory
from ..common import run as run_main
from .charts import LOSSES, number, sheet
from .page import Entry, page
from .runs import logged, other_pairs, read_run
from .scores import LINEAR, SOURCE, baselines, certify_samples, mean, spent, verdict
from .unseen import unseen
from .whole import whole_pictures

NAME = "report.html"
LARGE = 3  # pictures at the top of the PNG
DRAWN = "best_psnr,best_ssim,mean_psnr,mean_ssim,spread,calibration".split(",")  # measured wherever there are draws
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
    codec: str = setting("", MOVED)


ABOUT = {"prog": "python -m scripts.report"}


def main(argv: Sequence[str]) -> int:
    words = list(takewhile(lambda word: not word.startswith("-"), argv))
    text = {"run": "directory of a run that has samples; several, one after the other, are compared"}
    rest = [*words[:1], *argv[len(words) :]]
    settings, extra = from_flags(ReportConfig, rest, text, tables={"group": ["", *GROUPS]}, about=ABOUT)
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
    cache = open_cache(None)

    def measure(reference: Images, samples: np.ndarray | Images) -> dict[str, Any]:
        drawn = DRAWN if isinstance(samples, Images) and samples.draws else []
        asked = list(dict.fromkeys([*metrics, *drawn]))
        return evaluate(reference, samples, asked, device=str(device), group=group, cache=cache, strict=False)

    entries = []
    for run in runs:
        found = measure(run.shown.reference, run.shown.samples)
        missing = by_reason(found["unavailable"]).items()
        remarks = [*found["notes"], *(f"not computed: {which}: {reason}" for reason, which in missing)]
        own = found["metrics"]
        certificate = certify_samples(run, settings.group, device, settings.codec)
        entries.append(Entry(run, own, remarks, certificate, unseen(run, own, measure, device)))
    reasons = [(run.name, other_pairs(shown, run.shown)) for run in more]
    apart = [f"{name} was sampled on other pairs than {first.name}: {why}" for name, why in reasons if why]
    others, notes = ({}, apart) if apart else baselines(first, measure)
    columns = {entry.run.name: entry.scores for entry in entries} | others
    verdicts = [f"{entry.run.name}: {verdict(entry.scores, others)}" for entry in entries if not apart]
    said = [f"{entry.run.name}: {text}" for entry in entries for text in entry.unseen.words]
    compared = [entry.unseen.training.folder for entry in entries if entry.unseen.training]
    every, left_out = spent([(entry.run, entry.scores) for entry in entries], measure, compared)
    whole, lost = ([], []) if more else whole_pictures(first)
    top = verdicts if more else [*verdicts, *said]
    content = page(entries, columns, [*lost, *notes], bool(apart), top, every, left_out, whole)
    write_whole(out, content.encode())

    known = list(dict.fromkeys(name for scores in columns.values() for name in scores))
    table = [[row, *(number(mean(scores, name)) for name in known)] for row, scores in columns.items()]
    errors = [f"{entry.run.name}: {entry.certificate.words}" for entry in entries]
    warned = [f"{text}: their scores cannot be compared" for text in apart]
    lines = "\n".join([aligned([["", *known], *table]), *warned, *verdicts, *said, *errors])
    if not more:
        losses = {name: logged(runs, key)[first.name] for key, name in LOSSES.items()}
        large = {one.captions[kind]: one.images[kind] for one in whole[:1] for kind in [*one.images][:LARGE]}
        picture = sheet(lines, losses, [shown.images(side) for side in ("source", "sample", "target")], large)
        write_whole(out.with_suffix(".png"), lambda file: picture.savefig(file, format="png", bbox_inches="tight"))
    print(f"{lines}\nreport: {out}")
    return 0


if __name__ == "__main__":
    run_main(main)
