"""Drawings of the report by matplotlib: curves for the page, and the sheet that is the PNG."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from evaluations.metrics import METRICS

from ..pictures import evenly, grid

LOSSES = {"loss": "training", "val_loss": "validation, EMA"}  # names in the log, and what they are
WIDTH = 170  # letters of a line of the sheet
MOST_POINTS = 500  # of a curve
MOST_MARKS = 30  # a curve of fewer points has a dot at each
COLOURS = 8  # curves that can be told apart
DASHES = ("-", "--", ":", "-.")
# colours that stand for variables of the page, so that a chart suits light and dark alike
INK, RULE, CURVES = "#000001", "#000002", [f"#0001{i:02}" for i in range(COLOURS)]
VARIABLES = {INK: "muted", RULE: "line"} | {colour: f"s{i}" for i, colour in enumerate(CURVES)}
# of an SVG file what a page has no use for, and names that would be there several times
FILE_ONLY = re.compile(
    r'<metadata.*?</metadata>|<defs>\s*<style.*?</defs>| xmlns(:\w+)?="[^"]*"| id="[a-z0-9.]+_\d+"', re.S
)

Points = Sequence[tuple[float, float | None]]


class Chart(NamedTuple):
    """A drawing; label: what it shows, in words; names: of its curves by their colours, none of a single curve."""

    title: str
    svg: str
    label: str
    names: dict[int, str]


def chart(
    title: str, curves: Mapping[str, Points], x: str, *, log_x: bool = False, log_y: bool = False, joined: bool = True,
    square: float = 0,
) -> list[Chart]:  # fmt: skip
    """A chart of the first `COLOURS` curves over x; none where there are no points at all.

    A curve without points keeps its colour, so that it is the same in all charts of the same curves. Of many points
    some are drawn, evenly chosen. joined: by lines; square: both axes go from 0 to there, and the diagonal is drawn.
    """
    drawn = {}
    for i, (name, points) in enumerate(list(curves.items())[:COLOURS]):
        if known := [(a, b) for a, b in points if b is not None and math.isfinite(b)]:
            drawn[i] = name, [known[place] for place in evenly(len(known), MOST_POINTS)]
    if not drawn:
        return []
    words = {"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 11, "font.family": "DejaVu Sans"}
    with matplotlib.rc_context(words):
        figure = Figure(figsize=(5.2, 3), layout="constrained")
        axes = figure.add_subplot()
        for i, (_, points) in drawn.items():
            marker = "o" * (not joined or len(points) <= MOST_MARKS)
            dashes = DASHES[i % len(DASHES)] if joined else "none"
            axes.plot(*zip(*points, strict=True), color=CURVES[i], linestyle=dashes, marker=marker, markersize=4)
        axes.set_xlabel(x, color=INK)
        axes.set(xscale="log" if log_x else "linear", yscale="log" if log_y else "linear")
        for axis, log in ((axes.xaxis, log_x), (axes.yaxis, log_y)):
            if log:
                axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
            axis.set_major_formatter("{x:.4g}")
        if square:
            axes.plot([0, square], [0, square], color=INK, linewidth=1, linestyle=":")
            axes.set(xlim=(0, square), ylim=(0, square))
        axes.minorticks_off()
        axes.tick_params(length=0, colors=INK)
        axes.grid(axis="y", color=RULE)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    svg = FILE_ONLY.sub("", buffer.getvalue())
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    ends = [(name, *points[0], *points[-1]) for name, points in drawn.values()]
    said = "; ".join(f"{name} from {b:.4g} at {a:.4g} to {d:.4g} at {c:.4g}" for name, a, b, c, d in ends)
    if not joined:
        said = "; ".join(f"{name}, {len(points)} dots" for name, points in drawn.values())
    names = {i: name for i, (name, _) in drawn.items()} if len(curves) > 1 else {}
    return [Chart(title, svg[svg.index("<svg") :], f"{title} by {x}: {said}", names)]


def sheet(
    text: str, losses: Mapping[str, Points], columns: Sequence[np.ndarray], whole: Mapping[str, np.ndarray]
) -> Figure:
    """The report as one picture: the text, losses, and below source, sample and target, uint8 `[N, H, W, C]`.

    whole: pictures for the top, by their captions.
    """
    top = 12 * max((w.shape[0] for w in whole.values()), default=0) / max(1, sum(w.shape[1] for w in whole.values()))
    figure = Figure(figsize=(12, 9 + top), layout="constrained")
    text = "\n".join(fill(line, WIDTH, subsequent_indent="    ") for line in text.splitlines())
    figure.suptitle(text, fontsize=8, family="monospace", x=0.01, ha="left")
    heights = [*([top] if whole else []), 2.25, 6.75]
    rows = figure.add_gridspec(len(heights), height_ratios=heights)
    for i, (name, image) in enumerate(whole.items()):
        axes = figure.add_subplot(rows[0].subgridspec(1, len(whole))[i])
        axes.set_title(name, fontsize=8)
        axes.imshow(image)
        axes.axis("off")
    curves, shown = (figure.add_subplot(rows[i]) for i in (-2, -1))
    for name, points in losses.items():
        curves.plot([step for step, _ in points], [y or math.nan for _, y in points], ".-", label=f"loss, {name}")
    curves.set(xlabel="step", yscale="log")
    curves.legend()
    shown.set_title("source | sample | target")
    shown.imshow(grid(columns, rows=6, groups=5), interpolation="nearest")
    shown.axis("off")
    return figure


def heading(metric: str) -> str:
    """A metric's name, and which way is better."""
    return f"{metric}\u00a0{'↑' if METRICS[metric].higher_is_better else '↓'}"


def number(value: float | None) -> str:
    """A value to four digits."""
    if value == math.inf:
        return "∞"
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.4g}"
