"""Drawings of the report by matplotlib: curves for the page, and the sheet that is the PNG."""

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator, LogLocator, NullLocator

from evaluations.metrics import METRICS

from ..pictures import evenly, grid

LOSSES = {"loss": "training", "val_loss": "validation, EMA"}  # names in the log, and what they are
MOST_POINTS = 500  # of a curve
MOST_MARKS = 30  # a curve of fewer points has a dot at each
COLOURS = 8  # curves that can be told apart
DASHES = ("-", "--", ":", "-.")
# colours that stand for variables of the page, so that a chart suits light and dark alike
INK, RULE, CURVES = "#000001", "#000002", [f"#0001{i:02}" for i in range(COLOURS)]
VARIABLES = {INK: "muted", RULE: "line"} | {colour: f"s{i}" for i, colour in enumerate(CURVES)}

Points = Sequence[tuple[float, float | None]]


class Chart(NamedTuple):
    """A drawing; label: what it shows, in words; names: of its curves by their colours, none of a single curve."""

    title: str
    svg: str
    label: str
    names: dict[int, str]


def chart(title: str, curves: Mapping[str, Points], x: str, *, log_x: bool = False, log_y: bool = False) -> list[Chart]:
    """A chart of the first `COLOURS` curves over x; none where there are no points at all.

    A curve without points keeps its colour, so that it is the same in all charts of the same curves.
    """
    known = [(i, name, finite(points)) for i, (name, points) in enumerate(list(curves.items())[:COLOURS])]
    drawn = [each for each in known if each[2]]
    if not drawn:
        return []
    words = {"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 11, "font.family": "DejaVu Sans"}
    with matplotlib.rc_context(words):
        figure = Figure(figsize=(5.2, 3), layout="constrained")
        axes = figure.add_subplot()
        for i, _, points in drawn:
            style: dict[str, Any] = {"linestyle": DASHES[i % len(DASHES)], "marker": "o" * (len(points) <= MOST_MARKS)}
            axes.plot(*zip(*points, strict=True), color=CURVES[i], markersize=4, **style)
        axes.set_xlabel(x, color=INK)
        axes.set(xscale="log" if log_x else "linear", yscale="log" if log_y else "linear")
        for axis, log in ((axes.xaxis, log_x), (axes.yaxis, log_y)):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6) if log else AutoLocator())
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(lambda value, _: f"{value:.4g}")
        axes.tick_params(length=0, colors=INK)
        axes.grid(axis="y", color=RULE)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    ends = [(name, *points[0], *points[-1]) for _, name, points in drawn]
    said = "; ".join(f"{name} from {b:.4g} at {a:.4g} to {d:.4g} at {c:.4g}" for name, a, b, c, d in ends)
    names = {i: name for i, name, _ in drawn} if len(curves) > 1 else {}
    return [Chart(title, inline(buffer.getvalue()), f"{title} by {x}: {said}", names)]


def inline(svg: str) -> str:
    """An SVG file as a part of a page: without its head, and names that would be there several times."""
    svg = re.sub(r'<defs>\s*<style.*?</defs>| xmlns(:\w+)?="[^"]*"| id="[a-z0-9.]+_\d+"', "", svg, flags=re.DOTALL)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg[svg.index("<svg") :]


def finite(points: Points) -> list[tuple[float, float]]:
    """The points that can be drawn, of many some, evenly chosen."""
    known = [(x, y) for x, y in points if y is not None and math.isfinite(y)]
    return [known[i] for i in evenly(len(known), MOST_POINTS)]


def logged(log: Iterable[dict[str, Any]], key: str) -> Points:
    """What a log has of a name, by step."""
    return [(record["step"], record[key]) for record in log if key in record]


def sheet(text: str, columns: Sequence[np.ndarray]) -> bytes:
    """The report as one PNG: the text, and below it source, sample and target, uint8 `[N, H, W, C]`."""
    figure = Figure(figsize=(12, 8))
    axes = figure.add_subplot()
    axes.set_title(f"{text}\n\nsource | sample | target", loc="left", fontsize=8, family="monospace")
    axes.imshow(grid(columns, rows=6, groups=5), interpolation="nearest")
    axes.axis("off")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return buffer.getvalue()


def heading(metric: str) -> str:
    """A metric's name, and which way is better."""
    return f"{metric}\u00a0{'↑' if METRICS[metric].higher_is_better else '↓'}"


def number(value: float | None) -> str:
    """A value to four digits."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.4g}"
