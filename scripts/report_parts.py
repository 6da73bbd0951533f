"""The parts that the pages of one run and of several have in common: curves, scores, pictures, settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluations.metrics import METRICS, describe
from evaluations.results import by_reason

from .charts import Series, chart
from .page import Cell, definitions, details, number
from .pictures import evenly
from .report_data import Run
from .report_scores import Score, Scores

PIXELS = 2_000_000  # of all pictures of a part, about
FEWEST, MOST = 4, 24  # pairs shown
LOSS, VALIDATION, RATE = "loss", "val_loss", "lr"  # names in the log
LOOK = "eval_"  # ... and what those of scores begin with

Log = Sequence[dict[str, Any]]


def curves(logs: Mapping[str, Log]) -> str:
    """What training logged, by run: losses, learning rate, scores of samples; of one run both losses in one chart."""
    (first, *others) = logs.values()
    if others:
        charts = [by_run("training loss", logs, LOSS), by_run("validation loss, EMA", logs, VALIDATION)]
    else:
        both = [Series("training", points(first, LOSS)), Series("validation, EMA", points(first, VALIDATION))]
        charts = [chart("loss", both, "step", log_y=True)]
    charts.append(by_run("learning rate", logs, RATE))
    names = {key: None for log in logs.values() for record in log for key in record if key.startswith(LOOK)}
    charts += [by_run(f"{name.removeprefix(LOOK)} of samples, while training", logs, name) for name in names]
    return f'<div class="charts">{"".join(charts)}</div>' if any(charts) else "<p>There is no log of the training.</p>"


def by_run(title: str, logs: Mapping[str, Log], key: str) -> str:
    """A chart with a curve a run."""
    series = [Series(name, points(log, key)) for name, log in logs.items()]
    return chart(title, series, "step", log_y=key in (LOSS, VALIDATION))


def points(log: Log, key: str) -> list[tuple[float, float | None]]:
    return [(record["step"], record[key]) for record in log if key in record]


def heading(metric: str) -> str:
    """A metric's name, and which way is better."""
    return f"{metric}\u00a0{'↑' if METRICS[metric].higher_is_better else '↓'}"


def scored(score: Score | None, best: bool = False) -> Cell:
    """A number, with its 95 % interval where there is one."""
    if score is None:
        return Cell("–")
    between = score.get("interval")
    below = "" if not between or None in between else f"{number(between[0])} … {number(between[1])}"
    return Cell(number(score["mean"]), below, best)


def meanings(metrics: Sequence[str]) -> str:
    """The definitions of metrics, folded up."""
    return details("What the metrics are", definitions({name: describe(name).partition(": ")[2] for name in metrics}))


def remarks(scores: Scores) -> list[str]:
    """What the evaluation had to say, and what it could not compute."""
    missing = by_reason(scores.unavailable).items()
    return [
        *scores.notes,
        *(f"{names} {'are' if ',' in names else 'is'} not there: {reason}" for reason, names in missing),
    ]


def evenly_chosen(run: Run, images: int) -> list[int]:
    """Pairs to show, as many as a page bears with so many images each."""
    count, height, width, _ = run.shown.samples.shape
    return evenly(count, min(MOST, max(FEWEST, PIXELS // (images * height * width))))
