"""Curves with their intervals as SVG, for the page and for PNG files.

The drawing has classes and no colours: the style sheet of the page gives them. Our own code draws it, because the page
must work offline and in dark mode.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from igrpo_cli.extras import importing_extra
from igrpo_cli.inspection.curves import Point

WIDTH, PLOT_HEIGHT = 380, 190
LEFT, RIGHT, BELOW = 46, 12, 40
LINE_HEIGHT = 16
CHARACTER_WIDTH = 5.9
"""Average width of a character in a legend (11 px). Only used to break its lines."""
MAX_MARKERS = 8
"""Maximum number of markers on a curve."""
_SHAPES = (
    "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
    "M-3-3h6v6h-6z",
    "M0-4 3.8 3h-7.6z",
    "M0-4 4 0 0 4-4 0z",
    "M0 4 3.8-3h-7.6z",
    "M-4-1h3v-3h2v3h3v2h-3v3h-2v-3h-3z",
    "M0-4l1.2 2.8 2.8.3-2 2 .6 2.9L0 2.5-2.6 4-2 1.1l-2-2 2.8-.3z",
    "M-4-2h8v4h-8z",
)
MAX_COLOURS = len(_SHAPES)
NEUTRAL = MAX_COLOURS
"""The colour of a legend entry that explains only a dash. It has no marker."""
MAX_LABEL_LENGTH = 48
PNG_ZOOM = 2.5
"""Pixels per unit of the drawing: sharp on paper, in the column of an article."""


@dataclass(frozen=True, slots=True)
class Line:
    """One curve."""

    label: str
    colour: int
    """Number of the colour, from 0. Each colour has its own marker, so that colour is never the only difference."""
    dash: int
    """Number of the dash pattern; 0 is a solid line."""
    points: Sequence[tuple[float, Point]]
    """Positions on the x-axis in order, with their figures."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a plot."""

    label: str
    is_share: bool = False
    """The values are shares and are drawn in per cent."""
    starts_at_zero: bool = True
    marks: Sequence[tuple[float, str]] = ()
    """Positions of vertical lines, with what they mean."""


@dataclass(frozen=True, slots=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float
    """Positions of `low` and `high` in pixels."""

    def __call__(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        return round(self.start + (inside - self.low) / (self.high - self.low) * (self.end - self.start), 1)


def chart(lines: Sequence[Line], legend: Sequence[Line], x_axis: Axis, y_axis: Axis, title: str) -> str:
    """Return the `<svg>` of one plot. `legend` are the lines that explain colours and dashes above it."""
    places = _legend_places(legend)
    top = LINE_HEIGHT * (places[-1][1] + 2) + 12
    drawn = [place for line in lines for place in line.points]
    ends = [end for _, point in drawn for end in (point.value, point.low, point.high) if end is not None]
    x_low, x_high = min(x for x, _ in drawn), max(x for x, _ in drawn)
    x = _Scale(x_low, x_high if x_high > x_low else x_low + 1, LEFT, WIDTH - RIGHT)
    y_ticks = _ticks([*ends, *([0.0] if y_axis.starts_at_zero else [])])
    y = _Scale(y_ticks[0], y_ticks[-1], top + PLOT_HEIGHT, top)
    height = y.start + BELOW
    plot = " ".join(map(str, (x.start, y.end, x.end, y.start, x.low, x.high, y.low, y.high)))
    share = ' data-share=""' if y_axis.is_share else ""
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" data-plot="{plot}"{share} data-x="{escape(x_axis.label)}"',
        f' role="img" aria-label="{escape(_spoken(title, lines, y_axis))}">',
        *(_legend_entry(line, *place) for line, place in zip(legend, places, strict=True)),
        f'<text x="{LEFT}" y="{top - 9}">{escape(y_axis.label)}</text>',
        *(_y_tick(y(tick), number(100 * tick if y_axis.is_share else tick)) for tick in y_ticks),
        *(_x_tick(x(tick), y.start, number(tick)) for tick in _ticks([x_low, x_high]) if x.low <= tick <= x.high),
        f'<path class="axis" d="M{LEFT} {y.start}H{WIDTH - RIGHT}"/>',
        f'<text class="middle" x="{(x.start + x.end) / 2}" y="{height - 6}">{escape(x_axis.label)}</text>',
        *(_mark(x(at), y, meaning) for at, meaning in x_axis.marks if x.low <= at <= x.high),
        *(_band(line, x, y) for line in lines),
        *(_curve(line, x, y) for line in lines),
        "</svg>",
    ]
    return "".join(parts)


def number(value: float, *, is_share: bool = False) -> str:
    """Return a short number: shares in per cent, large numbers with k, M or G."""
    if is_share:
        return f"{100 * value:.1f} %"
    for size, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= 10 * size or (abs(value) >= size and size > 1e3):
            return f"{value / size:.3g}{suffix}"
    return f"{value:.4g}".replace("e-0", "e-")


def standalone(svg: str, css: str) -> str:
    """Return a drawing as the content of an SVG file, in the light colours of the style sheet `css`."""
    light = _light_colours(css)
    paper = f'<rect width="100%" height="100%" fill="{light["paper"]}"/>'
    begin, rest = svg.split(">", 1)
    named = begin.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" font-size="11" ', 1)
    return f"{named}><style>{_light_style(css)}</style>{paper}{rest}\n"


def rasterise(svg: str, css: str) -> bytes:
    """Return a drawing as PNG, in the light colours of the style sheet `css`. Raises UsageError without `[png]`.

    The font comes from a package, because many machines for training have none.
    """
    with importing_extra("png", "--png"):
        import font_roboto
        import resvg_py
    fonts = Path(font_roboto.__file__).parent / "files"
    return bytes(
        resvg_py.svg_to_bytes(
            svg_string=svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" font-size="11" ', 1),
            style_sheet=_light_style(css),
            font_files=[str(fonts / "Roboto-Regular.ttf")],
            font_family="Roboto",
            skip_system_fonts=True,
            background=_light_colours(css)["paper"],
            zoom=PNG_ZOOM,
        )
    )


def _light_colours(css: str) -> dict[str, str]:
    return dict(re.findall(r"--(\w+): (#\w+)", css[: css.index("@media")]))


def _light_style(css: str) -> str:
    """Return the rules of a drawing with the light colours in place of their names."""
    light = _light_colours(css)
    rules = "".join(re.findall(r"^\.chart .*$", css, re.MULTILINE))
    return re.sub(r"var\(--(\w+)\)", lambda name: light[name[1]], rules)


def _ticks(values: Sequence[float], max_steps: int = 5) -> list[float]:
    """Return round numbers over the range of `values`, at most `max_steps` steps of 1, 2 or 5 times a power of ten."""
    low, high = min(values), max(values)
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-300):
        high = low + (abs(low) if abs(low) > 1e-300 else 1.0)
    power = 10.0 ** math.floor(math.log10((high - low) / max_steps))
    step = next(power * each for each in (1, 2, 5, 10) if (high - low) / (power * each) <= max_steps)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [each * step for each in range(first, last + 1)]


def _legend_places(legend: Sequence[Line]) -> list[tuple[float, int]]:
    """Return (x, row) of each entry. Rows are filled from the left."""
    places: list[tuple[float, int]] = []
    x, row = float(LEFT), 0
    for line in legend:
        width = 40 + CHARACTER_WIDTH * len(line.label)
        if x > LEFT and x + width > WIDTH:
            x, row = float(LEFT), row + 1
        places.append((round(x, 1), row))
        x += width
    return places


def _legend_entry(line: Line, x: float, row: int) -> str:
    y = LINE_HEIGHT * row + 11
    label = line.label if len(line.label) <= MAX_LABEL_LENGTH else f"{line.label[: MAX_LABEL_LENGTH - 1]}…"
    return (
        f'<g class="c{line.colour}"><path class="line d{line.dash}" d="M{x} {y}h24"/>{_marker(line, x + 12, y)}</g>'
        f'<text x="{x + 29}" y="{y + 4}">{escape(label)}</text>'
    )


def _y_tick(y: float, label: str) -> str:
    return (
        f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>'
        f'<text class="end" x="{LEFT - 6}" y="{y + 4}">{escape(label)}</text>'
    )


def _x_tick(x: float, y: float, label: str) -> str:
    return f'<path class="axis" d="M{x} {y}v4"/><text class="middle" x="{x}" y="{y + 16}">{escape(label)}</text>'


def _mark(x: float, y: _Scale, meaning: str) -> str:
    return f'<path class="mark" d="M{x} {y.start}V{y.end}"><title>{escape(meaning)}</title></path>'


def _band(line: Line, x: _Scale, y: _Scale) -> str:
    """Return the interval as a band, or as a bar for a single point."""
    ends = [(x(at), y(p.low), y(p.high)) for at, p in line.points if p.low is not None and p.high is not None]
    if len(ends) == 1:
        at, low, high = ends[0]
        return f'<path class="line c{line.colour}" d="M{at} {low}V{high}"/>'
    outline = [(at, high) for at, _, high in ends] + [(at, low) for at, low, _ in reversed(ends)]
    return f'<path class="band c{line.colour}" d="M{_path(outline)}z"/>' if outline else ""


def _curve(line: Line, x: _Scale, y: _Scale) -> str:
    if not line.points:
        return ""
    places = [(x(at), y(point.value)) for at, point in line.points]
    every = math.ceil(len(places) / MAX_MARKERS)
    # The curves of a plot have their markers at different points, so that none hides another.
    marked = places[(line.dash * every) // 2 :: every]
    return (
        f'<g class="c{line.colour}" data-label="{escape(line.label)}"><path class="line d{line.dash}" '
        f'd="M{_path(places)}"/>{"".join(_marker(line, *place) for place in marked)}</g>'
    )


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "L".join(f"{x:g} {y:g}" for x, y in places)


def _marker(line: Line, x: float, y: float) -> str:
    if line.colour == NEUTRAL:
        return ""
    return f'<path class="marker" transform="translate({x:g} {y:g})" d="{_SHAPES[line.colour]}"/>'


def _spoken(title: str, lines: Sequence[Line], y_axis: Axis) -> str:
    """Return a description of the plot for screen readers. The numbers are in the table below the plot."""
    ends = [
        f"{line.label} from {number(line.points[0][1].value, is_share=y_axis.is_share)} "
        f"to {number(line.points[-1][1].value, is_share=y_axis.is_share)}"
        for line in lines
        if line.points
    ]
    return f"{title}: {'; '.join(ends)}"
