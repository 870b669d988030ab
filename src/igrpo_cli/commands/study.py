"""`igrpo study`: train all arms of a study with all seeds, evaluate their policies, and compare the arms."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igrpo_cli.commands.init import create_run, require_same_settings
from igrpo_cli.commands.run import evaluate_policy, run_iteration, unfinished
from igrpo_cli.config import RunConfig
from igrpo_cli.config.files import write_config
from igrpo_cli.config.study import FIGURES, PAGE, Cell, Study, read_study
from igrpo_cli.errors import EXIT_CTRL_C, EXIT_INTERRUPTED, ConflictError, IgrpoError, MissingInputError, UsageError
from igrpo_cli.inspection.run_config import flat_settings
from igrpo_cli.pipeline.plan import iteration_arithmetic
from igrpo_cli.pipeline.session import open_session
from igrpo_cli.problems.sources import PACKAGED_SETS, packaged_studies
from igrpo_cli.store.hints import shell_path
from igrpo_cli.store.layout import RunDirectory, bench_name, format_shards, parse_shards
from igrpo_cli.store.locks import locked
from igrpo_cli.store.settings import read_changes
from igrpo_cli.torchrun import refuse_ranks
from igrpo_cli.ui.console import Console, printable
from igrpo_cli.ui.tables import plain_table

if TYPE_CHECKING:
    from igrpo_cli.inspection.study import StudyResults

POLL_SECONDS = 1.0
"""Time between two looks at the cells of other processes."""


@dataclass(frozen=True)
class StudyRequest:
    """The options of the command line."""

    file: Path
    output: Path | None = None
    """None means `runs/<name of the study>`."""
    arms: tuple[str, ...] = ()
    seeds: tuple[str, ...] = ()
    cells: str | None = None
    """Numbers of cells; None and `all` mean all. With `arms` and `seeds`, a cell must be in each."""
    sets: tuple[str, ...] = ()
    bench_dir: Path | None = None
    only_report: bool = False
    dry_run: bool = False
    as_png: bool = False


def study_file(name: Path) -> Path:
    """Return the file of a study: a path, or a packaged study by its name, as `published`.

    Raises UsageError with the names of the packaged studies for a file that does not exist.
    """
    if name.exists():
        return name
    packaged = packaged_studies()
    if str(name) not in packaged:
        names = ", ".join(packaged)
        raise UsageError(
            f"there is no study file {name}", hint=f"docs/studies.md describes the file. Packaged: {names}"
        )
    return packaged[str(name)]


def run(request: StudyRequest, console: Console, *, markdown: bool = False) -> None:
    """Run the requested cells that are not complete, then print and write what the whole study has.

    With `only_report`, nothing is run, and the results are those of the requested cells.
    """
    refuse_ranks("study")
    study, cells = read_study(request.file, request.sets)
    study = _with_bench(study, cells[0].config, request.file)
    root = request.output or Path("runs") / study.name
    chosen = _chosen(study, cells, request)
    elsewhere = f"undo the change in {request.file}, or use another directory: --output {shell_path(root)}-2"
    for cell in cells:
        require_same_settings(RunDirectory(root / cell.path), cell.config, elsewhere)
        _require_unchanged(cell, root)
    if not request.only_report:
        _require_policies(study, chosen, root)
    if request.dry_run:
        _print_plan(study, cells, root, request, console)
        return
    failed = [] if request.only_report else _run_cells(study, cells, chosen, root, request, console)
    if not failed or len(failed) < len(chosen):
        _report(study, chosen if request.only_report else cells, root, request, console, markdown=markdown)
    if failed:
        cell, error = failed[0]
        error.message = f"{len(failed)} of {len(chosen)} cells failed; the first, {cell.name}: {error.message}"
        raise error


def _require_unchanged(cell: Cell, root: Path) -> None:
    """Raise ConflictError for a cell whose settings or length were changed after it was created."""
    run = RunDirectory(root / cell.path)
    if changes := read_changes(run):
        settings = ", ".join(flat_settings(changes[0]["settings"]))
        raise ConflictError(
            f"{cell.name} is no cell of the study any more: {run.changes} has {settings}, from iteration "
            f"{changes[0]['from_iteration']}",
            hint=f"move {shell_path(run.root)} away, and the cell is trained again; for such a run, first igrpo fork",
        )


def _with_bench(study: Study, config: RunConfig, file: Path) -> Study:
    """Return the study with a benchmark: its own, or the packaged set that it trains on."""
    if study.eval_bench:
        return study
    if config.data.train not in PACKAGED_SETS:
        raise UsageError(f"{file}: eval_bench is not set", hint='for example eval_bench = "aime24"; igrpo eval --list')
    return study.model_copy(update={"eval_bench": config.data.train})


def _require_policies(study: Study, cells: Sequence[Cell], root: Path) -> None:
    """Raise ConflictError for policies that are still to be evaluated and were removed (`keep_policies`)."""
    bench = bench_name(study.eval_bench)
    removed: list[tuple[str, str]] = []
    for cell in cells:
        run, kinds = RunDirectory(root / cell.path), cell.evaluations
        wanted = (each for each in study.evaluated(cell.config)[1:] if run.update(each - 1).manifest.exists())
        gone = [
            policy
            for policy in wanted
            # A policy is moved from its update to its place, so this order does not miss it.
            if not (run.update(policy - 1).policy.is_dir() or run.policy(policy).is_dir())
            and not all(run.eval_summary(bench, policy, conditioned=kind).exists() for kind in kinds)
        ]
        removed += [(cell.name, format_shards(gone))] if gone else []
    if removed:
        name, policies = removed[0]
        others = f", and of {len(removed) - 1} more cells" if len(removed) > 1 else ""
        raise ConflictError(
            f"the policies {policies} of {name}{others} cannot be evaluated: they were removed, because "
            f"keep_policies = 'evaluated' keeps only those that were evaluated then, and the last two",
            hint=f"give eval_every the value it had, or train again: --output {shell_path(root)}-2",
        )


def _chosen(study: Study, cells: Sequence[Cell], request: StudyRequest) -> list[Cell]:
    """Return the requested cells. Raises UsageError for an arm, seed or number that the study does not have."""
    if unknown := [each for each in request.arms if each not in study.arms]:
        raise UsageError(f"{request.file} has no arm {unknown[0]}", hint=f"its arms: {', '.join(study.arms)}")
    seeds = {seed for text in request.seeds for seed in _seeds(study, text, request.file)} or {*study.seeds}
    whole = request.cells in (None, "all")
    numbers = range(len(cells)) if whole else parse_shards(str(request.cells), len(cells), "cell")
    return [
        cells[number]
        for number in numbers
        if cells[number].arm in (request.arms or study.arms) and cells[number].seed in seeds
    ]


def _seeds(study: Study, text: str, file: Path) -> set[int]:
    """Return the seeds of a study that `0,10-14` names. Raises UsageError for a piece that names none."""
    found: set[int] = set()
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        is_range = first.isdecimal() and (last.isdecimal() or not dash)
        named = {each for each in study.seeds if is_range and int(first) <= each <= int(last or first)}
        if not named:
            known = ", ".join(map(str, study.seeds))
            raise UsageError(f"{file} has no seed {piece.strip()}", hint=f"its seeds: {known}")
        found |= named
    return found


def _run_cells(
    study: Study, cells: Sequence[Cell], chosen: Sequence[Cell], root: Path, request: StudyRequest, console: Console
) -> list[tuple[Cell, IgrpoError]]:
    """Run cells until each chosen one is complete or has failed; return those that failed, with their errors.

    A cell that another process works on is waited for. The lock of a process that dies is free, so its cell is
    continued here. Two processes that work on one cell would still write the same files. An interruption ends all.
    """
    todo = [cell for cell in chosen if not _is_complete(root, study, cell)]
    failed: list[tuple[Cell, IgrpoError]] = []
    is_waiting = False
    while todo:
        busy = []
        for cell in todo:
            with locked(root / cell.lock) as is_ours:
                if not is_ours:
                    busy.append(cell)
                elif not _is_complete(root, study, cell):
                    console.note(f"cell {cells.index(cell)} (of 0 to {len(cells) - 1}): {cell.name}")
                    related = [root / each.path for each in cells if each is not cell]
                    is_waiting = False
                    try:
                        _run_cell(study, cell, root, related, request, console)
                    except IgrpoError as error:
                        if error.exit_code in (EXIT_INTERRUPTED, EXIT_CTRL_C):
                            raise
                        failed.append((cell, error))
                        console.note(f"{cell.name} failed: {error.message}")
        todo = [cell for cell in busy if not _is_complete(root, study, cell)]
        if todo:
            if not is_waiting:
                console.note(f"waiting for other processes: {', '.join(cell.name for cell in todo)}")
            is_waiting = True
            time.sleep(POLL_SECONDS)
    return failed


def _is_complete(root: Path, study: Study, cell: Cell) -> bool:
    """Return True if the run has its settings, problems, updates and evaluations, from the existence of files alone."""
    run, policies, bench = RunDirectory(root / cell.path), study.evaluated(cell.config), bench_name(study.eval_bench)
    problems = (run.problems(), run.eval_problems(bench))
    kinds = cell.evaluations
    return (
        run.run_toml.exists()
        and all(path.data.exists() and path.manifest.exists() for path in problems)
        and all(_is_updated(run, iteration) for iteration in range(policies[-1]))
        and all(run.eval_summary(bench, policy, conditioned=kind).exists() for policy in policies for kind in kinds)
    )


def _is_updated(run: RunDirectory, iteration: int) -> bool:
    """Return True if the update of an iteration has its manifest and its metrics."""
    update = run.update(iteration)
    return update.manifest.exists() and update.metrics.exists()


def _run_cell(
    study: Study, cell: Cell, root: Path, related: Sequence[Path], request: StudyRequest, console: Console
) -> None:
    """Train one arm with one seed, and evaluate its policies as they come."""
    path, policies = root / cell.path, study.evaluated(cell.config)
    create_run(path, cell.config, console)
    with open_session(path, [], console) as session:
        session.require_extras(*session.config.stages())
        session.related_runs = tuple(related)
        todo = unfinished(session)
        lost = [each for each in range(todo[0] if todo else policies[-1]) if not _is_updated(session.run, each)]
        todo = [*range(lost[0], policies[-1])] if lost else todo
        reached = todo[0] if todo else policies[-1]
        for policy in (each for each in policies if each <= reached):
            evaluate_policy(session, policy, study.eval_bench, request.bench_dir)
        session.last_iteration = policies[-1] - 1
        for iteration in todo:
            run_iteration(session, iteration)
            if iteration + 1 == policies[-1] and study.keep_policies == "evaluated":
                # Before the last evaluation, as a complete cell is not opened again. The last update names its policy.
                _remove_policies(session.run, keep=[*policies, iteration])
            if iteration + 1 in policies:
                evaluate_policy(session, iteration + 1, study.eval_bench, request.bench_dir)


def _remove_policies(run: RunDirectory, keep: Sequence[int]) -> None:
    from igrpo_cli.store.atomic import remove_directory

    for iteration in run.policy_iterations():
        if iteration not in keep:
            remove_directory(run.policy(iteration))


def _print_plan(study: Study, cells: Sequence[Cell], root: Path, request: StudyRequest, console: Console) -> None:
    """Print all cells: what is complete, and the most tokens that the others still sample."""
    from igrpo_cli.problems.loading import load_problems
    from igrpo_cli.problems.sources import default_repeats, resolve_bench

    problems = len(load_problems(resolve_bench(study.eval_bench, request.bench_dir)).problems)
    plans = []
    for number, cell in enumerate(cells):
        run, policies = RunDirectory(root / cell.path), study.evaluated(cell.config)
        section, last = cell.config.eval, policies[-1]
        evaluated = min(section.limit or problems, problems) * (section.repeats or default_repeats(study.eval_bench))
        plans.append(
            {
                "cell": number,
                "arm": cell.arm,
                "seed": cell.seed,
                "run": str(root / cell.path),
                "complete": _is_complete(root, study, cell),
                "iterations": last,
                "iterations_done": sum(run.update(each).manifest.exists() for each in range(last)),
                "max_tokens_sampled": last * iteration_arithmetic(cell.config)["max_tokens_sampled"],
                "max_eval_tokens": len(policies) * len(cell.evaluations) * evaluated * section.max_gen_toks,
            }
        )
    open_cells = format_shards(number for number, plan in enumerate(plans) if not plan["complete"])
    payload = {"study": study.name, "output": str(root), "open_cells": open_cells, "cells": plans}
    rows = [{key: _shown(value) for key, value in plan.items() if key != "run"} for plan in plans]
    left = f"open cells: {open_cells}" if open_cells else "all cells are complete"
    left += f"; evaluated on {study.eval_bench}"
    console.data(payload, f"{plain_table(rows)}\n\n{printable(str(root))}, {left}")


def _shown(value: object) -> str:
    return "yes" if value is True else "no" if value is False else f"{value:,}" if type(value) is int else str(value)


def _report(
    study: Study, cells: Sequence[Cell], root: Path, request: StudyRequest, console: Console, *, markdown: bool
) -> None:
    """Write the page and the figures, and print the tables. Raises MissingInputError where no cell has begun."""
    from igrpo_cli.inspection.study import read_study_results
    from igrpo_cli.report.study_page import figure_files, render_study
    from igrpo_cli.store.atomic import publish_bytes
    from igrpo_cli.ui.study_tables import study_text

    try:
        results = read_study_results(root, study, cells)
        if not any(arm.cells for arm in results.arms):
            raise MissingInputError(f"{root} has no results yet")
    except MissingInputError as error:
        error.hint = error.hint or _command(request)
        raise
    page, folder, source = root / PAGE, root / FIGURES, request.file.read_text("utf-8")
    settings = {cell.arm: write_config(cell.config).decode() for cell in reversed(cells)}
    publish_bytes(page, render_study(results, source, request.sets, settings).encode(), replace=True)
    figures = []
    for name, content in figure_files(results, as_png=request.as_png).items():
        publish_bytes(folder / name, content, replace=True)
        figures.append(str(folder / name))
    payload = {**_payload(results), "output": str(root), "page": str(page), "figures": figures}
    written = f"{printable(str(page))}, and {len(figures)} figures in {printable(str(folder))}"
    missing = len(cells) - sum(len(arm.complete) for arm in results.arms)
    left = f"\n{missing} of {len(cells)} cells are not complete" if missing else ""
    console.data(payload, f"{study_text(results, markdown=markdown)}\n\n{written}{left}")


def _command(request: StudyRequest) -> str:
    """Return the command that makes what is missing."""
    flags = [f"--output {shell_path(request.output)}"] if request.output else []
    flags += [f"--set {shlex.quote(text)}" for text in request.sets]
    return " ".join(["igrpo study", shell_path(request.file), *flags])


def _payload(results: StudyResults) -> dict[str, Any]:
    """Return the `--json` object: scores, curves and costs of each arm, and the comparisons."""
    from igrpo_cli.inspection.study import SCORES

    def point(value: Any) -> Any:
        return (
            None
            if value is None
            else {"value": value.value, "ci95": None if value.low is None else [value.low, value.high]}
        )

    arms = {
        arm.name: {
            "seeds": [cell.cell.seed for cell in arm.cells],
            "complete": [cell.cell.seed for cell in arm.complete],
            "scores": {name: point(results.score(arm.name, name)) for name in SCORES},
            "cost_of_target": results.cost_of_target(arm.name),
            "spent": {axis: values[-1] for axis, values in arm.spent.items()},
            "curves": {name: [{"at": at, **point(each)} for at, each in points] for name, points in arm.curves.items()},
            "tokens": arm.spent.get("tokens"),
        }
        for arm in results.arms
    }
    comparisons = [
        {
            "arm": each.arm,
            "score": each.score,
            "seeds": each.seeds,
            "difference": each.difference.value,
            "difference_ci95": None if each.difference.low is None else [each.difference.low, each.difference.high],
            "p_value": each.p_value,
            "p_corrected": each.corrected,
        }
        for each in results.comparisons
    ]
    return {
        "study": results.study.name,
        "baseline": results.study.reference,
        "target_accuracy": results.target,
        "equal_tokens": results.budget,
        "arms": arms,
        "comparisons": comparisons,
    }
