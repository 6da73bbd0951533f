"""Charts: a value is drawn where it belongs, in colours of the page."""

import math
import re

import pytest

from scripts.report.charts import COLOURS, MOST_POINTS, chart, number


def places(drawn, curve=0):
    """The points of a curve, as they lie in the picture."""
    paths = re.findall(rf'<path d="([^"]*)"[^>]*stroke: var\(--s{curve}\)', drawn.svg)
    path = max(paths, key=len)  # the others are the shapes of its dots
    return [tuple(map(float, pair)) for pair in re.findall(r"[ML] (\S+) (\S+)", path)]


@pytest.mark.parametrize("log, share", [(False, 9 / 999), (True, 1 / 3)])
def test_places_follow_the_value_or_its_logarithm(log, share):
    (drawn,) = chart("t", {"a": [(i, i) for i in (1, 10, 1000)] * 20}, "x", log_x=log, log_y=log)
    first, middle, last = places(drawn)[:3]
    for axis in (0, 1):
        assert (middle[axis] - first[axis]) / (last[axis] - first[axis]) == pytest.approx(share, abs=1e-3)
    assert first[0] < last[0] and first[1] > last[1]


def test_points_that_cannot_be_drawn():
    points = [(1, None), (2, math.nan), (3, math.inf), (4, 0.0), *((i, 1.0 * i) for i in range(5, 50))]
    (drawn,) = chart("t", {"a": points}, "x")
    assert len(places(drawn)) == 46
    assert chart("t", {"a": points[:3], "b": []}, "x") == []
    (single,) = chart("t", {"a": [(5, 3.0)]}, "x", log_x=True)
    assert single.label == "t by x: a from 3 at 5 to 3 at 5" and ">5</text>" in single.svg
    (long,) = chart("t", {"a": [(i, float(i)) for i in range(9999)]}, "x")
    assert len(places(long)) <= MOST_POINTS and "a from 0 at 0 to 9998 at 9998" in long.label


def test_a_curve_keeps_its_colour_and_nothing_leads_out_of_the_page():
    points = [(1, 1.0), (2, 2.0)]
    (drawn,) = chart("t", {"a": [], "<b>": points}, "<x>")
    assert drawn.names == {1: "<b>"} and "var(--s1)" in drawn.svg and "var(--s0)" not in drawn.svg
    assert "<x>" not in drawn.svg and not re.search(r"http|#[0-9a-f]{6}[;\"]", drawn.svg)
    (many,) = chart("t", {str(i): points for i in range(COLOURS + 3)}, "x")
    assert list(many.names) == list(range(COLOURS)) and all(f"var(--s{i})" in many.svg for i in many.names)


def test_dots_and_the_diagonal_of_a_square():
    points = [(0.0, 1.0), (4.0, 3.0), (2.0, 2.0)]
    (drawn,) = chart("t", {"a": points}, "x", joined=False, square=8)
    assert drawn.label == "t by x: a, 3 dots"
    dots = [tuple(map(float, pair)) for pair in re.findall(r'<use [^>]*x="(\S+)" y="(\S+)"', drawn.svg)]
    ((left, bottom), (right, top)) = diagonal = [
        tuple(map(float, pair))
        for path in re.findall(r'<path d="([^"]*)"[^>]*stroke: var\(--muted\)', drawn.svg)
        for pair in re.findall(r"[ML] (\S+) (\S+)", path)
    ]
    assert len(diagonal) == 2
    assert [(x - left) / (right - left) * 8 for x, _ in dots] == pytest.approx([x for x, _ in points], abs=0.01)
    assert [(bottom - y) / (bottom - top) * 8 for _, y in dots] == pytest.approx([y for _, y in points], abs=0.01)
    assert "stroke: var(--s0)" in drawn.svg and not re.search(r'<path d="[^"]*"[^>]*stroke: var\(--s0\)', drawn.svg)
    (line,) = chart("t", {"a": points}, "x")
    assert len(places(line)) == 3 and not re.search(r'<path d="[^"]*"[^>]*stroke: var\(--muted\)', line.svg)


def test_numbers():
    values = [None, math.nan, 0.0, 1e-5, 0.0123, 0.5, 14.276, -7.25, 123.456, 12345.6]
    shown = ["–", "–", "0.000", "1.000e-05", "0.01230", "0.5000", "14.28", "-7.250", "123.5", "12346"]
    assert [number(value) for value in values] == shown
