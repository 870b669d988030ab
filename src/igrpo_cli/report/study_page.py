"""The HTML page of a study and its figures: one curve per arm, over iterations, sampled tokens or time."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from igrpo_cli.inspection.study import HELD_OUT, SHARES, TRAINING, WITH_DRAFT, WITHOUT_DRAFT, StudyResults
from igrpo_cli.report.page import HERE, render_template, with_interval
from igrpo_cli.report.svg import MAX_COLOURS, Axis, Line, chart, rasterise, standalone
from igrpo_cli.ui.study_tables import METRIC_LABELS, study_tables

ACCURACIES = {
    WITHOUT_DRAFT: "Held-out accuracy without draft",
    WITH_DRAFT: "Held-out accuracy with draft",
}


@dataclass(frozen=True)
class StudyFigure:
    """One plot, over each x-axis, with its numbers."""

    name: str
    title: str
    charts: dict[str, str]
    """SVG by x-axis."""
    table: list[list[str]]
    """A row of labels, then a row for each policy or iteration."""


def render_study(results: StudyResults, source: str, overrides: Sequence[str], settings: Mapping[str, str]) -> str:
    """Return the page. The same results give the same bytes.

    `source` is the text of the file of the study, `overrides` are those of the command line, and `settings` are the
    texts of run.toml by arm.
    """
    return render_template(
        "study.html",
        study=results.study,
        tables=study_tables(results),
        figures=study_figures(results),
        axes={name: axis.label for name, axis in _axes(results).items()},
        complete=sum(len(arm.complete) for arm in results.arms),
        cells=len(results.study.arms) * len(results.study.seeds),
        source=source,
        overrides=" ".join(f"--set {shlex.quote(each)}" for each in overrides),
        settings=settings,
    )


def figure_files(results: StudyResults, *, as_png: bool) -> dict[str, bytes]:
    """Return each figure over each x-axis as the content of an SVG file by its name, and of a PNG file if asked."""
    css = (HERE / "page.css").read_text("utf-8")
    files = {}
    for figure in study_figures(results):
        for axis, svg in figure.charts.items():
            files[f"{figure.name}-by-{axis}.svg"] = standalone(svg, css).encode()
            if as_png:
                files[f"{figure.name}-by-{axis}.png"] = rasterise(svg, css)
    return files


def study_figures(results: StudyResults) -> list[StudyFigure]:
    """Return the figures for which at least one arm has values, accuracies first."""
    figures = []
    for curve in (WITHOUT_DRAFT, WITH_DRAFT, *TRAINING, *HELD_OUT):
        is_share = curve in ACCURACIES or curve.endswith(SHARES)
        title = ACCURACIES.get(curve) or METRIC_LABELS[curve].partition(",")[0]
        title = title[0].upper() + title[1:]
        y_axis = Axis(
            f"{title}, {'%' if is_share else 'nats per token'}", is_share, starts_at_zero=curve not in ACCURACIES
        )
        charts = {}
        for name, axis in _axes(results).items():
            lines = _lines(results, curve, name)
            if lines:
                charts[name] = chart(lines, lines, axis, y_axis, title)
        if charts:
            table = _table(_lines(results, curve, "iteration"), is_share=is_share)
            figures.append(StudyFigure(curve.replace("/", "-").replace("_", "-"), title, charts, table))
    return figures


def _axes(results: StudyResults) -> dict[str, Axis]:
    seconds = "GPU seconds before" if results.seconds == "gpu_seconds" else "seconds of work before"
    return {
        "iteration": Axis("iteration"),
        "tokens": Axis("tokens sampled before"),
        results.seconds: Axis(seconds),
    }


def _lines(results: StudyResults, curve: str, axis: str) -> list[Line]:
    """Return the curve of each arm that has it. Arms differ in colour and marker, and beyond those in dash."""
    lines = []
    for place, arm in enumerate(results.arms):
        points = arm.curves.get(curve, [])
        spent = None if axis == "iteration" else arm.spent.get(axis, [])
        drawn = [
            (float(at) if spent is None else spent[at], point)
            for at, point in points
            if spent is None or at < len(spent)
        ]
        lines += [Line(arm.name, place % MAX_COLOURS, place // MAX_COLOURS, drawn)] if drawn else []
    return lines


def _table(lines: Sequence[Line], *, is_share: bool) -> list[list[str]]:
    columns = [{int(at): with_interval(point, is_share) for at, point in line.points} for line in lines]
    places = sorted({at for column in columns for at in column})
    rows = [[str(at), *(column.get(at, "–") for column in columns)] for at in places]
    return [["iteration", *(line.label for line in lines)], *rows]
