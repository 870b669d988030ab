from __future__ import annotations

import math
import re
from xml.etree import ElementTree

from hypothesis import example, given
from hypothesis import strategies as st

from igrpo_cli.inspection.curves import Point
from igrpo_cli.report.svg import LEFT, MAX_COLOURS, PLOT_HEIGHT, RIGHT, WIDTH, Axis, Line, chart, number


def drawn(*lines: Line, **axis) -> ElementTree.Element:
    return ElementTree.fromstring(chart(lines, lines, Axis("iteration"), Axis("reward", **axis), "Reward"))


def curve(svg: ElementTree.Element, place: int = 0) -> list[tuple[float, float]]:
    group = svg.findall("g[@data-label]")[place]
    path = group.find("path").get("d")
    return [tuple(map(float, point.split())) for point in path[1:].split("L")]


def test_points_lie_where_the_axes_say():
    svg = drawn(Line("mine", 0, 0, [(0, Point(0.0)), (5, Point(1.0)), (10, Point(2.0))]))
    left, top, right, bottom, *ranges = map(float, svg.get("data-plot").split())
    assert ranges == [0, 10, 0, 2]
    assert (left, right, bottom - top) == (LEFT, WIDTH - RIGHT, PLOT_HEIGHT)
    assert curve(svg) == [(left, bottom), ((left + right) / 2, (top + bottom) / 2), (right, top)]


def test_the_band_goes_along_the_upper_ends_and_back_along_the_lower():
    svg = drawn(Line("mine", 0, 0, [(0, Point(1, 0, 2)), (1, Point(1, 0, 2))]))
    left, top, right, bottom = map(float, svg.get("data-plot").split()[:4])
    (band,) = [path.get("d") for path in svg.findall("path") if "band" in path.get("class")]
    assert band == f"M{left:g} {top:g}L{right:g} {top:g}L{right:g} {bottom:g}L{left:g} {bottom:g}z"


def test_a_single_point_is_seen():
    svg = drawn(Line("mine", 0, 0, [(3, Point(0.5, 0.25, 0.75))]))
    assert len(svg.findall("g[@data-label]/path[@class='marker']")) == 1


def test_lines_differ_in_more_than_colour():
    lines = [Line(str(colour), colour, 0, [(0, Point(1.0)), (1, Point(2.0))]) for colour in range(MAX_COLOURS)]
    markers = [group.find("path[@class='marker']").get("d") for group in drawn(*lines).findall("g[@data-label]")]
    assert len(set(markers)) == MAX_COLOURS


def test_labels_are_text_and_nothing_else():
    name = "</text><script>alert(1)</script>&\"'"
    svg = drawn(Line(name, 0, 0, [(0, Point(1.0))]))
    assert svg.find("g[@data-label]").get("data-label") == name
    assert not svg.findall(".//script")


@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=20), st.booleans())
@example([5e-324], False)
def test_any_figures_can_be_drawn(values, starts_at_zero):
    svg = drawn(Line("mine", 0, 0, [(x, Point(y)) for x, y in enumerate(values)]), starts_at_zero=starts_at_zero)
    left, top, right, bottom = map(float, svg.get("data-plot").split()[:4])
    assert all(left <= x <= right and top <= y <= bottom for x, y in curve(svg))
    assert 2 <= len(svg.findall("path[@class='grid']")) <= 8


@given(st.floats(-1e12, 1e12))
def test_a_short_number_is_near_the_number(value):
    match = re.fullmatch(r"(\S+)( [kMG])?", number(value))
    size = {None: 1, " k": 1e3, " M": 1e6, " G": 1e9}[match[2]]
    assert math.isclose(float(match[1]) * size, value, rel_tol=6e-3)


def test_shares_are_told_in_per_cent():
    assert number(0.12345, is_share=True) == "12.3 %"
