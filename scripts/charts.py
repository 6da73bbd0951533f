"""Line charts as inline SVG, whose colours are variables of the page, so that they suit light and dark alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from .pictures import evenly

WIDTH, HEIGHT = 440, 250
TOP, RIGHT, BOTTOM = 10, 14, 38  # margins; the left one is as wide as the numbers there
LETTER = 7.6  # width of a digit
MOST_POINTS = 500  # of a curve
MOST_MARKS = 30  # a curve of fewer points has a dot at each
COLOURS = 8  # curves that can be told apart

STYLE = """
:root { --s0: #1d5fbf; --s1: #c2410c; --s2: #15803d; --s3: #9d2bb5; --s4: #846a00; --s5: #0e7490; --s6: #be185d;
  --s7: #57534e; }
@media screen and (prefers-color-scheme: dark) { :root { --s0: #6ea8fe; --s1: #fb923c; --s2: #4ade80; --s3: #d8a1f5;
  --s4: #facc15; --s5: #22d3ee; --s6: #f472b6; --s7: #a8a29e; } }
.charts { display: grid; gap: 1.5rem; margin-bottom: 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 25rem), 1fr)); }
.chart { margin: 0; max-width: 34rem; break-inside: avoid; }
.chart figcaption { font-weight: 600; }
.chart svg { display: block; width: 100%; height: auto; overflow: visible; }
.chart text { fill: var(--muted); font: 13px system-ui, sans-serif; }
.chart .rule { stroke: var(--line); }
.chart path, .legend line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .2rem 0 0; padding: 0; list-style: none;
  font-size: .85rem; }
.legend svg { display: inline-block; width: 28px; height: 8px; margin-right: .4rem; vertical-align: middle; }
""" + "".join(
    f".s{i} {{ stroke: var(--s{i}); stroke-dasharray: {dash}; }} circle.s{i} {{ fill: var(--s{i}); stroke: none; }}\n"
    for i, dash in enumerate(["none", "7 3", "2 3", "9 3 2 3"] * 2)
)


class Series(NamedTuple):
    """A curve; points whose y is None or not finite are left out."""

    name: str
    points: Sequence[tuple[float, float | None]]


class Axis(NamedTuple):
    """From a value to a place in the picture, and the values that are named there."""

    place: Callable[[float], float]
    ticks: list[float]


def chart(title: str, series: Sequence[Series], x: str, *, log_x: bool = False, log_y: bool = False) -> str:
    """A figure with the first `COLOURS` curves, x the name of their axis; "" where there are no points at all.

    A curve without points keeps its colour, so that it is the same in all charts of the same curves.
    """
    known = ((i, s.name, finite(s.points, log_x, log_y)) for i, s in enumerate(series[:COLOURS]))
    drawn = [(i, name, points) for i, name, points in known if points]
    if not drawn:
        return ""
    xs, ys = ([p[i] for _, _, points in drawn for p in points] for i in (0, 1))
    vertical = axis(ys, HEIGHT - BOTTOM, TOP, log_y)
    left = 10 + LETTER * max(len(short(value)) for value in vertical.ticks)
    across = axis(xs, left + 6, WIDTH - RIGHT, log_x)
    parts = []
    for value in vertical.ticks:
        at = vertical.place(value)
        parts.append(f'<line class="rule" x1="{left}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{short(value)}</text>')
    for value in across.ticks:
        at = across.place(value)
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{short(value)}</text>')
    middle = (left + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x)}</text>')
    for i, _, points in drawn:
        places = [(across.place(a), vertical.place(b)) for a, b in points]
        parts.append(f'<path class="s{i}" d="M{" ".join(f"{a:.1f},{b:.1f}" for a, b in places)}"/>')
        if len(places) <= MOST_MARKS:
            parts += [f'<circle class="s{i}" cx="{a:.1f}" cy="{b:.1f}" r="2.5"/>' for a, b in places]
    ends = [(name, *map(short, (*points[0], *points[-1]))) for _, name, points in drawn]
    said = "; ".join(f"{name} from {b} at {a} to {d} at {c}" for name, a, b, c, d in ends)
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{title} by {x}: {said}")}">'
        f"{''.join(parts)}</svg>{legend([(i, name) for i, name, _ in drawn]) if len(series) > 1 else ''}</figure>"
    )


def legend(names: Sequence[tuple[int, str]]) -> str:
    """Which curve is which."""
    key = '<svg viewBox="0 0 28 8" aria-hidden="true"><line class="s{}" x1="0" x2="28" y1="4" y2="4"/></svg>'
    return f'<ul class="legend">{"".join(f"<li>{key.format(i)}{escape(name)}</li>" for i, name in names)}</ul>'


def finite(points: Sequence[tuple[float, float | None]], log_x: bool, log_y: bool) -> list[tuple[float, float]]:
    """The points that can be drawn, of many some, evenly chosen."""
    known = [
        (x, y)
        for x, y in points
        if y is not None and math.isfinite(y) and (x > 0 or not log_x) and (y > 0 or not log_y)
    ]
    return [known[i] for i in evenly(len(known), MOST_POINTS)] if known else []


def axis(values: Sequence[float], start: float, end: float, log: bool) -> Axis:
    """An axis that holds all values; `start` and `end` are the places of its ends."""
    to: Callable[[float], float] = math.log10 if log else float
    low, high = to(min(values)), to(max(values))
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):  # one value: in the middle
        pad = math.log10(2) if log else abs(low) / 2 or 1.0
        low, high = low - pad, high + pad
    else:
        low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)
    ticks = log_ticks(low, high) if log else linear_ticks(low, high)
    return Axis(lambda value: start + (end - start) * (to(value) - low) / (high - low), ticks)


def linear_ticks(low: float, high: float) -> list[float]:
    """About five round values in [low, high]."""
    raw = (high - low) / 5
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    return [
        round(i * step, 12 - math.floor(math.log10(step))) for i in range(math.ceil(low / step), int(high // step) + 1)
    ]


def log_ticks(low: float, high: float) -> list[float]:
    """At most seven round values whose logarithms lie in [low, high]; where there are hardly any, as on a line."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    for marks in ((1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**k for k in decades for m in marks if low <= math.log10(m * 10.0**k) <= high]
        if len(found) <= 7:
            break
    else:
        found = found[:: -(-len(found) // 7)]
    return found if len(found) > 1 else linear_ticks(10**low, 10**high)


def short(value: float) -> str:
    return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e")
