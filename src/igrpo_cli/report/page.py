"""The HTML page: figures, tables and problems of runs in a template. The template escapes all text from files."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from igrpo_cli.inspection.curves import IterationFigures, Point, StageCost
from igrpo_cli.inspection.run_state import CURVES, findings
from igrpo_cli.records import VERDICTS
from igrpo_cli.report.figures import SECTIONS, Figure
from igrpo_cli.report.samples import KINDS, Samples
from igrpo_cli.report.svg import NEUTRAL, Axis, Line, chart, number
from igrpo_cli.store.layout import STAGES
from igrpo_cli.ui.console import printable
from igrpo_cli.ui.quoting import in_line, shortened
from igrpo_cli.ui.tables import setting_text

HERE = Path(__file__).parent
VERDICT_MARKS = dict(zip(VERDICTS, "✓✗∅?", strict=True))
ACTIONS = {"condition": "refined with a draft", "bare": "refined without draft", "drop": "not refined"}
GLANCE = {
    "draft/verdict_correct": "Accuracy without draft",
    "refine/verdict_correct": "Accuracy with draft",
    "draft/groups_with_gradient": "Groups with reward variance, without draft",
    "refine/groups_with_gradient": "Groups with reward variance, with draft",
    "refine/fix_rate": "Fix rate",
    "refine/break_rate": "Break rate",
    "refine/copy_rate": "Copy rate",
    "draft/truncated": "Truncated, without draft",
}
"""The shares at the top of the page, by metric."""


@dataclass(frozen=True)
class ReportedRun:
    """What could be read of one run."""

    name: str
    iterations: list[IterationFigures]
    evaluations: list[Mapping[str, str]]
    """A row for each evaluation: cells by column."""
    settings: str
    """The text of run.toml."""
    changes: Sequence[tuple[int, str]]
    """(first iteration, `section.key = value`) of each setting that was changed after `igrpo init`."""
    origin: str | None
    """Where the run was forked from, or None."""
    facts: Mapping[str, str]
    """What the run is: model, data, method, engine, dates."""
    flat_settings: Mapping[str, Any]
    """The latest settings as {section.key: value}."""
    held_out: Mapping[str, Mapping[int, Point]]
    """Accuracy by policy, under the name of an evaluation: `columns/without draft`, `columns/with draft`."""
    samples: Samples
    unreadable: list[str]

    @property
    def cost(self) -> dict[str, StageCost]:
        """The cost of the whole run by stage."""
        by_stage = {stage: [each.costs[stage] for each in self.iterations if stage in each.costs] for stage in STAGES}
        return {stage: sum(costs, StageCost()) for stage, costs in by_stage.items() if costs}

    @property
    def findings(self) -> list[str]:
        """Signs that drafts do not help as they could."""
        points = [each.points for each in self.iterations]
        curves = {name: [each[name].value for each in points if name in each] for name in CURVES}
        return findings(curves, self.flat_settings)

    @property
    def num_groups(self) -> int:
        """Groups of drafts. A problem that is sampled in two iterations counts twice."""
        return self.cost["draft"].groups if "draft" in self.cost else 0

    @property
    def num_rollouts(self) -> int:
        """Drafts and refinements."""
        return sum(cost.rollouts for cost in self.cost.values())

    @property
    def num_tokens(self) -> int:
        """Tokens of the drafts and refinements."""
        return sum(cost.tokens for cost in self.cost.values() if cost.rollouts)


def render(runs: Sequence[ReportedRun]) -> str:
    """Return the page. The same runs give the same bytes."""
    return render_template(
        "page.html",
        runs=runs,
        axes={name: axis.label for name, axis in _axes(runs).items()},
        sections=_sections(runs),
        glance=_glance(runs),
        facts=_common_facts(runs),
        differing=_differing(runs),
        kinds=[*KINDS, "other"],
        marks=VERDICT_MARKS,
        actions=ACTIONS,
    )


def render_template(name: str, **content: Any) -> str:
    """Return a template with its content, and with the style sheet and the script of all pages."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(shown=_shown, in_line=in_line, printable=printable, number=number, between=between)
    style, script = (Markup((HERE / file).read_text("utf-8")) for file in ("page.css", "page.js"))
    return environment.get_template(name).render(
        style=style, script=script, style_hash=_csp_hash(style), script_hash=_csp_hash(script), **content
    )


def _glance(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """Return the first and the last value of each metric in `GLANCE`, for each run that has it."""
    tiles = []
    for metric, label in GLANCE.items():
        points = {run.name: [each.points[metric] for each in run.iterations if metric in each.points] for run in runs}
        ends = {name: (found[0], found[-1]) for name, found in points.items() if found}
        tiles += [{"label": label, "ends": ends}] if ends else []
    return tiles


def charts(figure: Figure, runs: Sequence[ReportedRun]) -> dict[str, str]:
    """Return the SVG of a figure for each x-axis; {} when no run has its metrics."""
    y_axis = Axis(figure.unit, figure.is_share, figure.starts_at_zero)
    drawn = {}
    for name, axis in _axes(runs).items():
        lines = _lines(figure, runs, name)
        if lines:
            drawn[name] = chart(lines, _legend(figure, runs, lines), axis, y_axis, figure.title)
    return drawn


def _held_out(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """Return a plot for each benchmark on which at least two policies of a run were evaluated."""
    names = sorted(_names(run.held_out for run in runs), reverse=True)
    found = []
    for bench in sorted({name.partition("/")[0] for name in names}):
        figure = Figure(
            f"held-out-{bench}",
            f"Held-out accuracy: {bench}",
            "% of completions",
            {name: name.partition("/")[2] for name in names if name.startswith(f"{bench}/")},
            "The same problems for every policy. The policy is used without a draft.",
            "The intervals of the first and the last policy overlap.",
        )
        lines = _lines(figure, runs, "iteration")
        if any(len(line.points) > 1 for line in lines):
            heading, *rows = _table(figure, lines)
            table = [["policy", *heading[1:]], *rows]
            found.append({"figure": figure, "charts": charts(figure, runs), "table": table})
    return found


def _differing(runs: Sequence[ReportedRun]) -> list[list[str]]:
    """Return in what several runs differ: a row of names, then a row for each fact and each setting."""
    rows = [[name, *(run.facts.get(name, "–") for run in runs)] for name in _names(run.facts for run in runs)]
    names = sorted(_names(run.flat_settings for run in runs))
    rows += [[name, *(setting_text(run.flat_settings.get(name)) for run in runs)] for name in names]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    return [["", *(run.name for run in runs)], *rows] if rows else []


def _names(tables: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the keys of several tables, each once."""
    return list(dict.fromkeys(name for table in tables for name in table))


def _common_facts(runs: Sequence[ReportedRun]) -> dict[str, str]:
    """Return the facts that all runs share."""
    first = runs[0].facts
    return {name: value for name, value in first.items() if all(run.facts.get(name) == value for run in runs)}


def budgets(run: ReportedRun, axis: str) -> dict[int, float]:
    """Return the x-position of each iteration and of the policy after the last: what was spent before it."""
    numbers = [each.iteration for each in run.iterations]
    numbers += [numbers[-1] + 1]
    if axis == "iteration":
        return {number: float(number) for number in numbers}
    # An update trains on tokens that are already counted.
    skipped = {"update"} if axis == "tokens" else set()
    spent = [
        sum(getattr(c, axis) for stage, c in each.costs.items() if stage not in skipped) for each in run.iterations
    ]
    return dict(zip(numbers, accumulate(spent, initial=0.0), strict=True))


def _axes(runs: Sequence[ReportedRun]) -> dict[str, Axis]:
    """Return the x-axes by name. Time is GPU time when all runs used GPUs."""
    has_gpus = all(any(cost.gpu_seconds for cost in run.cost.values()) for run in runs)
    changes = [change for run in runs for change in run.changes]
    return {
        "iteration": Axis("iteration", marks=[(float(at), f"from iteration {at}: {what}") for at, what in changes]),
        "rollouts": Axis("rollouts sampled before"),
        "tokens": Axis("tokens sampled before"),
        **({"gpu_seconds": Axis("GPU seconds before")} if has_gpus else {"seconds": Axis("seconds of work before")}),
    }


def _lines(figure: Figure, runs: Sequence[ReportedRun], axis: str) -> list[Line]:
    """Return the curves. Runs differ in colour and marker, the curves of a run in dash (and colour, if it is alone)."""
    lines = []
    for place, run in enumerate(runs):
        spent = budgets(run, axis)
        for dash, (metric, label) in enumerate(figure.curves.items()):
            found = _points(run, metric)
            points = [(spent[at], found[at]) for at in sorted(found) if at in spent and math.isfinite(found[at].value)]
            label, colour = (f"{run.name}, {label}", place) if len(runs) > 1 else (label, dash)
            lines += [Line(label, colour, dash, points)] if points else []
    return lines


def _points(run: ReportedRun, metric: str) -> Mapping[int, Point]:
    """Return the figures of a metric by iteration; those of an evaluation by the number of the policy."""
    found = run.held_out.get(metric)
    return found or {each.iteration: each.points[metric] for each in run.iterations if metric in each.points}


def _legend(figure: Figure, runs: Sequence[ReportedRun], lines: Sequence[Line]) -> list[Line]:
    if len(runs) == 1:
        return list(lines)
    drawn = sorted({line.colour for line in lines})
    dashes = sorted({line.dash for line in lines})
    labels = list(figure.curves.values())
    by_dash = [Line(labels[dash], NEUTRAL, dash, []) for dash in dashes]
    return [*(Line(runs[colour].name, colour, 0, []) for colour in drawn), *by_dash]


def _sections(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """Return each heading with its figures, and the titles of figures that are always zero and need no plot."""
    sections: list[dict[str, Any]] = [{"title": "Held out", "figures": _held_out(runs), "idle": []}]
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
    """Return the numbers of a plot: a row of labels, then a row for each iteration."""
    columns = [{int(at): with_interval(point, figure.is_share) for at, point in line.points} for line in lines]
    iterations = sorted({iteration for column in columns for iteration in column})
    rows = [[str(iteration), *(column.get(iteration, "–") for column in columns)] for iteration in iterations]
    return [["iteration", *(line.label for line in lines)], *rows]


def with_interval(point: Point, is_share: bool) -> str:
    """Return a figure with its interval."""
    return " ".join(filter(None, (number(point.value, is_share=is_share), between(point, is_share))))


def between(point: Point, is_share: bool) -> str:
    """Return the interval of a figure in its unit; empty without interval."""
    if point.low is None or point.high is None:
        return ""
    low, high = (number(end, is_share=is_share).removesuffix(" %") for end in (point.low, point.high))
    return f"({low} to {high})"


def _shown(text: str) -> str:
    """Return `text` with visible control characters. The middle of a long text is left out and counted."""
    return "".join(printable(piece) for _, piece in shortened([("same", text)]))


def _csp_hash(text: str) -> str:
    """Return the hash that allows exactly this inline text in a Content-Security-Policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
