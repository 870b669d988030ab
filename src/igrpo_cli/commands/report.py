"""`igrpo report`: one or several runs as a single HTML file that needs nothing else."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from igrpo_cli.errors import IgrpoError, MissingInputError, UsageError
from igrpo_cli.store.checksummed_json import read_summary, settings_fault
from igrpo_cli.store.layout import RunDirectory, command_line, no_run_error
from igrpo_cli.ui.console import Console, printable
from igrpo_cli.ui.tables import summary_row

if TYPE_CHECKING:
    from igrpo_cli.report.page import ReportedRun


@dataclass(frozen=True)
class ReportRequest:
    """What the command line asked for."""

    runs: tuple[Path, ...]
    output: Path | None
    """None for `report.html` in the run, or here for several runs."""
    as_png: bool = False
    """Whether to write the figures as PNG as well, into a folder beside the report."""


def run(request: ReportRequest, console: Console) -> None:
    """Write the report and say where it is. Raises MissingInputError where there is nothing to report on."""
    from igrpo_cli.report.page import render
    from igrpo_cli.report.svg import MAX_COLOURS
    from igrpo_cli.store.atomic import publish_bytes

    if len({path.resolve() for path in request.runs}) < len(request.runs):
        raise UsageError("a run is named twice", hint="igrpo report RUN OTHER_RUN")
    if len(request.runs) > MAX_COLOURS:
        raise UsageError(f"{len(request.runs)} runs cannot be told apart in one plot: {MAX_COLOURS} are the most")
    started = time.monotonic()
    output = request.output or (request.runs[0] if len(request.runs) == 1 else Path()) / "report.html"
    runs = [
        _read(RunDirectory(path), name, len(request.runs), console)
        for path, name in zip(request.runs, _names(request.runs), strict=True)
    ]
    page = render(runs).encode()
    publish_bytes(output, page, replace=True)
    unreadable = [message for each in runs for message in each.unreadable]
    figures = _write_figures(runs, output.with_suffix("")) if request.as_png else []
    payload = {
        "report": str(output),
        "runs": [each.name for each in runs],
        "iterations": sum(len(each.iterations) for each in runs),
        "rollouts": sum(each.num_rollouts for each in runs),
        "problems": sum(len(each.samples.samples) for each in runs),
        "bytes": len(page),
        "seconds": round(time.monotonic() - started, 3),
        "figures": [str(path) for path in figures],
        "unreadable": unreadable,
    }
    for message in unreadable:
        console.note(f"not in the report: {message}")
    told = f"{payload['iterations']} iterations, {payload['rollouts']:,} rollouts, {len(page) / 1e6:.1f} MB"
    drawn = f"\n{output.with_suffix('')}: {len(figures)} figures" if figures else ""
    console.data(payload, printable(f"{output}: {told}{drawn}"))


def _names(paths: Sequence[Path]) -> list[str]:
    """What runs are called: their directories, with the path where two are called alike."""
    names = [path.resolve().name for path in paths]
    alike = Counter(names)
    return [str(path) if alike[name] > 1 else name for path, name in zip(paths, names, strict=True)]


def _read(run: RunDirectory, name: str, num_runs: int, console: Console) -> ReportedRun:
    from igrpo_cli.inspection.curves import IterationFigures, read_curves
    from igrpo_cli.report.page import ReportedRun
    from igrpo_cli.report.samples import choose_samples

    if not run.run_toml.exists():
        raise no_run_error(run.root)
    iterations: list[IterationFigures] = []
    with console.progress(f"reading {name}", len(run.iterations()), "iterations") as progress:
        for figures in read_curves(run):
            iterations.append(figures)
            progress.advance()
    if not any(each.costs for each in iterations):
        raise MissingInputError(f"{run.root} has no finished shard to report on", hint=command_line(run.root, "run"))
    drafted = [each.iteration for each in iterations if "draft" in each.costs]
    samples = choose_samples(run, drafted, num_runs)
    evaluations, unreadable = _evaluations(run)
    damaged = [message for each in iterations for message in each.unreadable]
    if fault := settings_fault(run.run_toml):
        console.note(f"{run.run_toml} {fault[0]}")
    settings = run.run_toml.read_text("utf-8", errors="backslashreplace")
    return ReportedRun(name, iterations, evaluations, settings, samples, [*damaged, *samples.unreadable, *unreadable])


def _evaluations(run: RunDirectory) -> tuple[list[Mapping[str, str]], list[str]]:
    """The rows of all summaries, and what is wrong with the others."""
    rows: list[Mapping[str, str]] = []
    unreadable = []
    for path in run.eval_summaries():
        try:
            rows.append({"bench": path.parent.parent.name, **summary_row(read_summary(path))})
        except IgrpoError as error:
            unreadable.append(error.message)
        except (KeyError, TypeError, ValueError):
            unreadable.append(f"{path} is no summary of an evaluation")
    return rows, unreadable


def _write_figures(runs: Sequence[ReportedRun], directory: Path) -> list[Path]:
    """A PNG for each figure; over every x-axis where there are several runs to compare."""
    from igrpo_cli.report.figures import SECTIONS
    from igrpo_cli.report.page import HERE, charts
    from igrpo_cli.report.png import rasterise
    from igrpo_cli.store.atomic import publish_bytes

    css = (HERE / "page.css").read_text("utf-8")
    written = []
    for figure in (figure for figures in SECTIONS.values() for figure in figures):
        for axis, svg in charts(figure, runs).items():
            if len(runs) == 1 and axis != "iteration":
                continue
            path = directory / (f"{figure.name}.png" if len(runs) == 1 else f"{figure.name}-by-{axis}.png")
            publish_bytes(path, rasterise(svg, css), replace=True)
            written.append(path)
    return written
