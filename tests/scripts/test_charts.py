"""Charts: a value is drawn where it belongs, between round numbers."""

import math
import re
from itertools import pairwise

import pytest

from scripts.charts import COLOURS, HEIGHT, MOST_POINTS, WIDTH, Series, chart, linear_ticks, log_ticks
from scripts.page import number


def places(svg, curve=0):
    """The points of a curve."""
    path = re.search(rf'<path class="s{curve}" d="M([^"]*)"', svg)[1]
    return [tuple(map(float, pair.split(","))) for pair in path.split()]


@pytest.mark.parametrize("log, share", [(False, 9 / 999), (True, 1 / 3)])
def test_places_follow_the_value_or_its_logarithm(log, share):
    points = [(1, 1), (10, 10), (1000, 1000)]
    first, middle, last = places(chart("t", [Series("a", points)], "x", log_x=log, log_y=log))
    for axis in (0, 1):
        assert (middle[axis] - first[axis]) / (last[axis] - first[axis]) == pytest.approx(share, abs=1e-3)
    assert 0 < first[0] < last[0] < WIDTH and HEIGHT > first[1] > last[1] > 0


def test_a_number_beside_the_axis_is_where_a_point_of_that_value_is():
    svg = chart("t", [Series("a", [(0, 0.0), (1, 2.5), (2, 10.0)])], "x")
    height = {float(text): float(y) for y, text in re.findall(r'y="([\d.]+)" text-anchor="end">([\d.]+)<', svg)}
    assert {0, 2.5, 10} <= set(height)
    assert [y for _, y in places(svg)] == pytest.approx([height[v] - 4 for v in (0, 2.5, 10)], abs=0.11)


def test_points_that_cannot_be_drawn():
    points = [(1, None), (2, math.nan), (3, math.inf), (4, 0.0), (5, 1.0), (6, 2.0)]
    assert len(places(chart("t", [Series("a", points)], "x"))) == 3
    assert len(places(chart("t", [Series("a", points)], "x", log_y=True))) == 2
    assert chart("t", [Series("a", points[:3]), Series("b", [])], "x") == ""
    assert "5" in chart("t", [Series("a", [(5, 3.0)])], "x", log_x=True)  # a single one


def test_a_curve_keeps_its_colour_and_its_name_is_escaped():
    points = [(1, 1.0), (2, 2.0)]
    svg = chart("<t>", [Series("a", []), Series("<b>", points)], "x")
    assert (
        places(svg, 1) and 'class="s0"' not in svg and "&lt;b&gt;</li>" in svg and "<b>" not in svg and "<t>" not in svg
    )
    many = chart("t", [Series(str(i), points) for i in range(COLOURS + 3)], "x")
    assert many.count("<path") == many.count("<li>") == COLOURS
    long = chart("t", [Series("a", [(i, float(i)) for i in range(10_000)])], "x")
    assert len(places(long)) == MOST_POINTS and "a from 0 at 0 to 9999 at 9999" in long


@pytest.mark.parametrize("low, high", [(0, 1), (-3, 1e6), (0.0699, 0.0701), (12.3, 12.4), (1e-9, 3e-9)])
def test_linear_ticks(low, high):
    found = linear_ticks(low, high)
    assert 4 <= len(found) <= 7 and low <= found[0] and found[-1] <= high
    steps = {round((b - a) / (found[1] - found[0]), 6) for a, b in pairwise(found)}
    assert steps == {1}


@pytest.mark.parametrize("low, high", [(-9, 9), (0, 1), (-0.2, 0.1), (0.3, 0.301), (-30, 30)])
def test_log_ticks(low, high):
    found = log_ticks(low, high)
    assert 2 <= len(found) <= 7 and found == sorted(found)
    assert all(low - 1e-9 <= math.log10(value) <= high + 1e-9 for value in found)


def test_numbers():
    values = [None, math.nan, 0.0, 1e-5, 0.00123, 0.0123, 0.5, 1.5, 14.276, -7.25, 123.456, 12345.6]
    shown = ["–", "–", "0.00", "1e-05", "0.00123", "0.0123", "0.5000", "1.500", "14.28", "-7.250", "123.46", "12346"]
    assert [number(value) for value in values] == shown
