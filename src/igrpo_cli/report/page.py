"""The page: what was read of the runs, put into the template. Everything from files is escaped by the template."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from igrpo_cli.inspection.curves import IterationFigures, Point, StageCost
from igrpo_cli.records import VERDICTS
from igrpo_cli.report.figures import SECTIONS, Figure
from igrpo_cli.report.samples import KINDS, Samples
from igrpo_cli.report.svg import NEUTRAL, Axis, Line, chart, number
from igrpo_cli.store.layout import SHARD_STAGES
from igrpo_cli.ui.console import printable
from igrpo_cli.ui.quoting import in_line, shortened

STAGES = (*SHARD_STAGES, "update")
HERE = Path(__file__).parent
VERDICT_MARKS = dict(zip(VERDICTS, "✓✗∅?", strict=True))
GLANCE = {
    "draft/verdict_correct": "Accuracy, bare",
    "refine/verdict_correct": "Accuracy, conditioned",
    "draft/groups_with_gradient": "Groups with a gradient, bare",
    "refine/groups_with_gradient": "Groups with a gradient, conditioned",
    "refine/fix_rate": "Fix rate",
    "refine/break_rate": "Break rate",
    "refine/copy_rate": "Copy rate",
    "draft/truncated": "Truncated, bare",
}
"""Shares that the page says first, by metric."""


@dataclass(frozen=True)
class ReportedRun:
    """One run as far as it could be read."""

    name: str
    iterations: list[IterationFigures]
    evaluations: list[Mapping[str, str]]
    """Cells by column."""
    settings: str
    """Its run.toml."""
    samples: Samples
    unreadable: list[str]

    @property
    def cost(self) -> dict[str, StageCost]:
        """Of the whole run, by stage."""
        by_stage = {stage: [each.costs[stage] for each in self.iterations if stage in each.costs] for stage in STAGES}
        return {stage: sum(costs, StageCost()) for stage, costs in by_stage.items() if costs}

    @property
    def num_groups(self) -> int:
        """Problems drafted so far; one that comes up in two iterations counts twice."""
        return self.cost["draft"].groups if "draft" in self.cost else 0

    @property
    def num_rollouts(self) -> int:
        """Sampled so far, drafts and refinements."""
        return sum(cost.rollouts for cost in self.cost.values())

    @property
    def num_tokens(self) -> int:
        """Of those rollouts."""
        return sum(cost.tokens for cost in self.cost.values() if cost.rollouts)


def render(runs: Sequence[ReportedRun]) -> str:
    """The whole page; the same bytes for the same runs."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(shown=_shown, in_line=in_line, printable=printable, number=number, between=between)
    style, script = (Markup((HERE / name).read_text("utf-8")) for name in ("page.css", "page.js"))
    return environment.get_template("page.html").render(
        style=style,
        script=script,
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
        runs=runs,
        axes={name: axis.label for name, axis in _axes(runs).items()},
        sections=_sections(runs),
        glance=_glance(runs),
        kinds=[*KINDS, "other"],
        marks=VERDICT_MARKS,
    )


def _glance(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """By metric, the first and the last figure of each run that has any."""
    tiles = []
    for metric, label in GLANCE.items():
        points = {run.name: [each.points[metric] for each in run.iterations if metric in each.points] for run in runs}
        ends = {name: (found[0], found[-1]) for name, found in points.items() if found}
        tiles += [{"label": label, "ends": ends}] if ends else []
    return tiles


def charts(figure: Figure, runs: Sequence[ReportedRun]) -> dict[str, str]:
    """The SVG of a figure by the name of its x-axis; empty where no run has its metrics."""
    y_axis = Axis(figure.unit, figure.is_share, figure.starts_at_zero)
    drawn = {}
    for name, axis in _axes(runs).items():
        lines = _lines(figure, runs, name)
        if lines:
            drawn[name] = chart(lines, _legend(figure, runs, lines), axis, y_axis, figure.title)
    return drawn


def budgets(run: ReportedRun, axis: str) -> list[float]:
    """Where each iteration lies: what was spent before it, which is what its policy had cost."""
    if axis == "iteration":
        return [float(each.iteration) for each in run.iterations]
    # An update reads tokens again that were sampled before.
    skipped = {"update"} if axis == "tokens" else set()
    spent = [
        sum(getattr(c, axis) for stage, c in each.costs.items() if stage not in skipped) for each in run.iterations
    ]
    return list(accumulate(spent, initial=0.0))[:-1]


def _axes(runs: Sequence[ReportedRun]) -> dict[str, Axis]:
    """The x-axes by name. Time is that of GPUs where all runs had some."""
    has_gpus = all(any(cost.gpu_seconds for cost in run.cost.values()) for run in runs)
    return {
        "iteration": Axis("iteration"),
        "rollouts": Axis("rollouts sampled before"),
        "tokens": Axis("tokens sampled before"),
        **({"gpu_seconds": Axis("GPU seconds before")} if has_gpus else {"seconds": Axis("seconds of work before")}),
    }


def _lines(figure: Figure, runs: Sequence[ReportedRun], axis: str) -> list[Line]:
    """Runs differ by colour and marker, the curves of one run by dash; in a single run curves have colours too."""
    lines = []
    for place, run in enumerate(runs):
        for dash, (metric, label) in enumerate(figure.curves.items()):
            figures = zip(budgets(run, axis), run.iterations, strict=True)
            points = [(at, each.points[metric]) for at, each in figures if _is_drawn(each.points.get(metric))]
            label, colour = (f"{run.name}, {label}", place) if len(runs) > 1 else (label, dash)
            lines += [Line(label, colour, dash, points)] if points else []
    return lines


def _is_drawn(point: Point | None) -> bool:
    return point is not None and math.isfinite(point.value)


def _legend(figure: Figure, runs: Sequence[ReportedRun], lines: Sequence[Line]) -> list[Line]:
    if len(runs) == 1:
        return list(lines)
    drawn = sorted({line.colour for line in lines})
    dashes = sorted({line.dash for line in lines})
    labels = list(figure.curves.values())
    by_dash = [Line(labels[dash], NEUTRAL, dash, []) for dash in dashes]
    return [*(Line(runs[colour].name, colour, 0, []) for colour in drawn), *by_dash]


def _sections(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """Each heading with its figures, and the titles of those that are zero throughout and need no plot."""
    sections = []
    for title, figures in SECTIONS.items():
        drawn, idle = [], []
        for figure in figures:
            lines = _lines(figure, runs, "iteration")
            if any(point.value for line in lines for _, point in line.points):
                drawn.append({"figure": figure, "charts": charts(figure, runs), "table": _table(figure, lines)})
            elif lines:
                idle.append(figure.title)
        sections.append({"title": title, "figures": drawn, "idle": idle})
    return [section for section in sections if section["figures"] or section["idle"]]


def _table(figure: Figure, lines: Sequence[Line]) -> list[list[str]]:
    """The numbers of a plot: a row of labels, then one per iteration."""
    columns = [{int(at): told(point, figure.is_share) for at, point in line.points} for line in lines]
    iterations = sorted({iteration for column in columns for iteration in column})
    rows = [[str(iteration), *(column.get(iteration, "–") for column in columns)] for iteration in iterations]
    return [["iteration", *(line.label for line in lines)], *rows]


def told(point: Point, is_share: bool) -> str:
    """A figure with its interval."""
    return " ".join(filter(None, (number(point.value, is_share=is_share), between(point, is_share))))


def between(point: Point, is_share: bool) -> str:
    """The interval of a figure, in its unit; empty where there is none."""
    if point.low is None or point.high is None:
        return ""
    low, high = (number(end, is_share=is_share).removesuffix(" %") for end in (point.low, point.high))
    return f"({low} to {high})"


def _shown(text: str) -> str:
    """`text` with its control characters visible, the middle of a long one left out and counted."""
    return "".join(printable(piece) for _, piece in shortened([("same", text)]))


def _csp_hash(text: str) -> str:
    """How a Content-Security-Policy allows exactly this inline text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
