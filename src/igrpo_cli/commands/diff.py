"""`igrpo diff`: how two iterations, with the policies that sampled them, or two runs differ."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from igrpo_cli.errors import MissingInputError, UsageError
from igrpo_cli.inspection.curves import IterationFigures, Point, read_figures
from igrpo_cli.inspection.differences import (
    Flip,
    Side,
    Transitions,
    changed_settings,
    evaluations_of_both,
    read_transitions,
)
from igrpo_cli.inspection.shard_states import EvaluationState
from igrpo_cli.inspection.stories import complete_shards
from igrpo_cli.pipeline.session import Session, open_session
from igrpo_cli.store.layout import RunDirectory, command_line
from igrpo_cli.ui.console import Console
from igrpo_cli.ui.difference_screen import iterations_markdown, iterations_text

USAGE = "igrpo diff RUN 3 7; igrpo diff RUN_A RUN_B; igrpo diff RUN_A/iteration_0003 RUN_B/policies/0007"
_PLACE = re.compile(r"(?:(?P<run>.*)/)?(?:iteration_|policies/)(?P<number>[0-9]{4,9})/?")


def run(names: Sequence[str], iteration: int | None, console: Console, *, markdown: bool = False) -> None:
    """Print how the second of two differs from the first; `iteration` is that of two whole runs."""
    roots, numbers = zip(*_places(names), strict=True)
    if iteration is not None and None not in numbers:
        raise UsageError("--iteration goes with two runs", hint=USAGE)
    with (
        open_session(roots[0], [], console, only_looks=True) as first,
        open_session(roots[1], [], console, only_looks=True) as second,
    ):
        a, b = _sides(first, second, [iteration if number is None else number for number in numbers])
        settings = [session.config.model_dump(mode="json") for session in (first, second)]
    evaluations = list(evaluations_of_both(a, b, newest=numbers == (None, None)))
    if not evaluations:
        _require_drafts(a, b)
    problems = read_transitions(a, b)
    figures = [read_figures(side.run, side.iteration) for side in (a, b)]
    for sentence in [sentence for found in figures for sentence in found.unreadable]:
        console.note(sentence)
    payload = {
        "a": {"run": str(a.run.root), "iteration": a.iteration},
        "b": {"run": str(b.run.root), "iteration": b.iteration},
        "figures": _figures(*figures),
        "problems": {stage: _transitions(found) for stage, found in problems.items()},
        "settings": changed_settings(a, b, settings),
        "evaluations": [_evaluations(*pair) for pair in evaluations],
    }
    console.data(payload, (iterations_markdown if markdown else iterations_text)(payload))


def _places(names: Sequence[str]) -> list[tuple[Path, int | None]]:
    """Run and iteration of both; None for a run as a whole. Raises UsageError."""
    if len(names) == 3 and names[1].isdecimal() and names[2].isdecimal():
        return [(Path(names[0]), int(name)) for name in names[1:]]
    if len(names) != 2:
        raise UsageError(f"two are compared, and {' '.join(names)!r} names something else", hint=USAGE)
    return [_place_of(name) for name in names]


def _place_of(name: str) -> tuple[Path, int | None]:
    if name.isdecimal():
        return Path(), int(name)
    place = _PLACE.fullmatch(name)
    if place is not None and not (Path(name) / "run.toml").exists():
        return Path(place["run"] or ""), int(place["number"])
    return Path(name), None


def _sides(first: Session, second: Session, numbers: Sequence[int | None]) -> list[Side]:
    """A side without a number takes that of the other; without any it is the newest iteration that both have."""
    known = next((number for number in numbers if number is not None), None)
    if known is None:
        known = _newest_of_both(first.run, second.run)
    sides = []
    for session, number in zip((first, second), numbers, strict=True):
        side = Side(session.run, known if number is None else number)
        # A run of n iterations has the policies 0 to n.
        if side.iteration > session.num_iterations():
            what = f"iteration {side.iteration} does not exist: {side.run.root} has {session.num_iterations()}"
            raise UsageError(f"{what}, counted from 0", hint=command_line(side.run.root, "status"))
        sides.append(side)
    return sides


def _newest_of_both(first: RunDirectory, second: RunDirectory) -> int:
    """The newest iteration that both have finished, or else sampled."""

    def both(has: Callable[[RunDirectory, int], bool]) -> set[int]:
        of_first, of_second = ({number for number in run.iterations() if has(run, number)} for run in (first, second))
        return of_first & of_second

    found = both(lambda run, number: run.update(number).manifest.exists())
    found = found or both(lambda run, number: bool(complete_shards(run, number, "draft")))
    if not found:
        what = f"no iteration was sampled both in {first.root} and in {second.root}"
        raise MissingInputError(what, hint=command_line(first.root, "status"))
    return max(found)


def _require_drafts(*sides: Side) -> None:
    for side in sides:
        if not complete_shards(side.run, side.iteration, "draft"):
            what = f"iteration {side.iteration} of {side.run.root} has no finished draft shard"
            raise MissingInputError(what, hint=command_line(side.run.root, "draft", f"--iteration {side.iteration}"))


def _figures(a: IterationFigures, b: IterationFigures) -> dict[str, Any]:
    names = dict.fromkeys([*a.points, *b.points])
    return {name: _figure(a.points.get(name), b.points.get(name)) for name in names}


def _figure(a: Point | None, b: Point | None) -> dict[str, Any]:
    difference = None if a is None or b is None else b.value - a.value
    return {"a": a and asdict(a), "b": b and asdict(b), "difference": difference}


def _evaluations(a: EvaluationState, b: EvaluationState) -> dict[str, Any]:
    sides = {"a": a, "b": b}
    return {
        "bench": a.bench,
        "conditioned": a.selection,
        **{name: {"policy": each.model, "accuracy": each.accuracy, "ci95": each.ci95} for name, each in sides.items()},
        "difference": None if a.accuracy is None or b.accuracy is None else b.accuracy - a.accuracy,
    }


def _transitions(found: Transitions) -> dict[str, Any]:
    return {
        "shared": found.num_shared,
        "solved": found.num_solved,
        "unsolved": found.num_unsolved,
        "gained": [_flip(flip) for flip in found.gained],
        "lost": [_flip(flip) for flip in found.lost],
        "difference": None if found.difference is None else found.difference.difference,
        "difference_ci95": None if found.difference is None else found.difference.ci95,
        "p_value": None if found.difference is None else found.difference.p_value,
    }


def _flip(flip: Flip) -> dict[str, Any]:
    problem = flip.problem
    return {
        "problem_id": problem.problem_id,
        "problem": problem.problem,
        "answer": problem.answer,
        "a": flip.a,
        "b": flip.b,
    }
