"""`igrpo report`: write one HTML file about one or several runs, which needs no other file."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from igrpo_cli.errors import IgrpoError, MissingInputError, UsageError
from igrpo_cli.inspection.run_config import described_changes, described_fork, flat_settings
from igrpo_cli.store.checksummed_json import read_summary
from igrpo_cli.store.hints import command_line, no_run_error
from igrpo_cli.store.layout import RunDirectory, read_eval_name
from igrpo_cli.store.manifest import read_update_figures
from igrpo_cli.store.settings import settings_fault
from igrpo_cli.ui.console import Console, printable
from igrpo_cli.ui.tables import summary_row

if TYPE_CHECKING:
    from igrpo_cli.config import RunConfig
    from igrpo_cli.inspection.curves import Point
    from igrpo_cli.report.page import ReportedRun


@dataclass(frozen=True)
class ReportRequest:
    """The options of the command line."""

    runs: tuple[Path, ...]
    output: Path | None
    """None means `report.html` in the run, or in the current directory for several runs."""
    as_png: bool = False
    """Also write the figures as PNG files, into a folder next to the report."""


def run(request: ReportRequest, console: Console) -> None:
    """Write the report and print its path. Raises MissingInputError when a run has no complete shard."""
    from igrpo_cli.report.page import render
    from igrpo_cli.report.svg import MAX_COLOURS
    from igrpo_cli.store.atomic import publish_bytes

    if len({path.resolve() for path in request.runs}) < len(request.runs):
        raise UsageError("a run is named twice", hint="igrpo report RUN OTHER_RUN")
    if len(request.runs) > MAX_COLOURS:
        raise UsageError(f"{len(request.runs)} runs in one report: at most {MAX_COLOURS} can be told apart in a plot")
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
    summary = f"{payload['iterations']} iterations, {payload['rollouts']:,} rollouts, {len(page) / 1e6:.1f} MB"
    drawn = f"\n{output.with_suffix('')}: {len(figures)} figures" if figures else ""
    console.data(payload, printable(f"{output}: {summary}{drawn}"))


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the names of the runs: the last parts of each path, as many as tell it from the others."""
    parts = [path.resolve().parts[1:] for path in paths]

    def length(own: tuple[str, ...]) -> int:
        lengths = range(1, len(own) + 1)
        return next((n for n in lengths if sum(each[-n:] == own[-n:] for each in parts) == 1), len(own))

    return ["/".join(each[-length(each) :]) for each in parts]


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
        raise MissingInputError(f"{run.root} has no complete shard to report on", hint=command_line(run.root, "run"))
    drafted = [each.iteration for each in iterations if "draft" in each.costs]
    samples = choose_samples(run, drafted, num_runs)
    evaluations, held_out, unreadable = _evaluations(run)
    damaged = [message for each in iterations for message in each.unreadable]
    if fault := settings_fault(run.run_toml):
        console.note(f"{run.run_toml} {fault[0]}")
    settings = run.run_toml.read_text("utf-8", errors="backslashreplace")
    unreadable = [*damaged, *samples.unreadable, *unreadable]
    config, origin = _config(run), described_fork(run)
    return ReportedRun(
        name,
        iterations,
        evaluations,
        settings,
        described_changes(config),
        origin,
        _facts(run, config),
        flat_settings(config.latest.model_dump(mode="json")),
        held_out,
        samples,
        unreadable,
    )


def _config(run: RunDirectory) -> RunConfig:
    """Return the settings of a run, or the defaults: a report shows what can be read, without run.toml too."""
    from igrpo_cli.config import RunConfig
    from igrpo_cli.inspection.run_config import read_run_config

    try:
        return read_run_config(run)
    except IgrpoError:
        return RunConfig()


def _facts(run: RunDirectory, config: RunConfig) -> dict[str, str]:
    """Return what the run is, in words."""
    latest = config.latest
    drafts, refinements = latest.draft.num_generations, latest.refine.num_generations
    refines = "refine" in latest.stages()
    method = f"iGRPO, {drafts} drafts + {refinements} refinements" if refines else f"GRPO, {drafts} completions"
    trained = f"{latest.update.train_on}, learning rate {latest.update.learning_rate:g}"
    found = {
        "model": latest.policy.model,
        "data": f"{latest.data.train}, {latest.data.problems_per_iteration} problems an iteration",
        "method": f"{method} of each problem",
        "draft shown": latest.select.strategy if refines else "",
        "trained on": trained,
        "engine": latest.engine.name,
        "dates": _dates(run),
    }
    return {name: value for name, value in found.items() if value}


def _dates(run: RunDirectory) -> str:
    """Return the days of the first and the last complete update."""
    complete = [each for each in run.iterations() if run.update(each).manifest.exists()]
    try:
        ends = [read_update_figures(run.update(each).shard) for each in (complete[:1] + complete[-1:])]
    except IgrpoError:
        return ""
    days = sorted({each.finished[:10] for each in ends})
    return " to ".join(days)


HeldOut = dict[str, dict[int, "Point"]]


def _evaluations(run: RunDirectory) -> tuple[list[Mapping[str, str]], HeldOut, list[str]]:
    """Return the rows of all summaries, the accuracies of policies, and a sentence for each unreadable summary."""
    from igrpo_cli.inspection.curves import Point

    rows: list[Mapping[str, str]] = []
    held_out: HeldOut = {}
    unreadable = []
    for path in run.eval_summaries():
        bench = path.parent.parent.name
        try:
            summary = read_summary(path)
            rows.append({"bench": bench, **summary_row(summary)})
            policy, selection = read_eval_name(path.parent.name)
            if isinstance(policy, int) and summary["avg_at_k"] is not None and selection in (None, "each"):
                kind = "without draft" if selection is None else "with draft"
                point = Point(summary["avg_at_k"], *(summary["ci95"] or (None, None)))
                held_out.setdefault(f"{bench}/{kind}", {})[policy] = point
        except IgrpoError as error:
            unreadable.append(error.message)
        except (KeyError, TypeError, ValueError):
            unreadable.append(f"{path} is not a summary of an evaluation")
    return rows, held_out, unreadable


def _write_figures(runs: Sequence[ReportedRun], directory: Path) -> list[Path]:
    """Write a PNG for each figure. To compare several runs, write one for each x-axis."""
    from igrpo_cli.report.figures import SECTIONS
    from igrpo_cli.report.page import HERE, charts
    from igrpo_cli.report.svg import rasterise
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
