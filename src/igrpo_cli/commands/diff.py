"""`igrpo diff`: compare two iterations, with the policies that sampled them, or two runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from igrpo_cli.errors import MissingInputError, UsageError
from igrpo_cli.inspection.curves import IterationFigures, Point, read_figures
from igrpo_cli.inspection.differences import (
    Flip,
    Side,
    Transitions,
    changed_evaluation,
    changed_settings,
    evaluations_of_both,
    read_transitions,
)
from igrpo_cli.inspection.shard_states import EvaluationState
from igrpo_cli.inspection.stories import complete_shards
from igrpo_cli.pipeline.session import Session, open_session
from igrpo_cli.store.hints import command_line
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.lineage import shared_policies
from igrpo_cli.ui.console import Console, percent
from igrpo_cli.ui.quoting import in_line, markdown_escaped
from igrpo_cli.ui.tables import difference_text, markdown_table, plain_table, setting_rows

USAGE = "igrpo diff RUN 3 7; igrpo diff RUN_A RUN_B; igrpo diff RUN_A/iteration_0003 RUN_B/policies/0007"
_PLACE = re.compile(r"(?:(?P<run>.*)/)?(?:iteration_|policies/)(?P<number>[0-9]{4,9})/?")
SHOWN_FLIPS = 5
"""Maximum number of gained problems, and of lost problems, of each stage in the text. `--json` has all."""
PROMPTS = {"draft": "without draft", "refine": "with draft"}
FIGURES = {
    "/verdict_correct": "accuracy",
    "/reward_mean": "reward",
    "refine/fix_rate": "fix rate",
    "refine/break_rate": "break rate",
    "refine/copy_rate": "copy rate",
    "/groups_with_gradient": "groups with reward variance",
    "select/ties": "ties among drafts",
    "/completion_length_mean": "tokens per completion",
    "/truncated": "truncated",
    "/verdict_no_answer": "without an answer",
    "/verdict_ungraded": "ungraded",
    "/sampled_entropy": "entropy, nats per token",
    "grad_norm": "gradient norm",
    "kl": "KL to the reference",
    "learning_rate": "learning rate",
}
"""The figures in the text, in order. A name that begins with a slash stands for one figure of each stage."""
NO_SHARES = ("reward_mean", "completion_length_mean", "sampled_entropy", "grad_norm", "kl", "learning_rate")

Cells = Mapping[str, str]
Table = Callable[[Sequence[Cells]], str]


def run(names: Sequence[str], iteration: int | None, console: Console, *, markdown: bool = False) -> None:
    """Print the difference between two iterations or runs. `iteration` is used for whole runs."""
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
        "same_policies": shared_policies(a.run, b.run) if a.run.root != b.run.root else None,
        "settings": changed_settings(a, b, settings),
        "evaluations": [{**_evaluations(*pair), "settings": changed_evaluation(a, b, pair)} for pair in evaluations],
    }
    console.data(payload, "\n\n".join(_paragraphs(payload, _escaped_table if markdown else plain_table)))


def _places(names: Sequence[str]) -> list[tuple[Path, int | None]]:
    """Return run and iteration of both sides; None for a whole run. Raises UsageError."""
    if len(names) == 3 and names[1].isdecimal() and names[2].isdecimal():
        return [(Path(names[0]), int(name)) for name in names[1:]]
    if len(names) != 2:
        raise UsageError(f"{' '.join(names)!r} does not name two iterations or runs", hint=USAGE)
    return [_place_of(name) for name in names]


def _place_of(name: str) -> tuple[Path, int | None]:
    if name.isdecimal():
        return Path(), int(name)
    place = _PLACE.fullmatch(name)
    if place is not None and not (Path(name) / "run.toml").exists():
        return Path(place["run"] or ""), int(place["number"])
    return Path(name), None


def _sides(first: Session, second: Session, numbers: Sequence[int | None]) -> list[Side]:
    """Return both sides. A missing number is that of the other side, or else the newest iteration of both runs."""
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
    """Return the newest iteration that both runs have completed, or else sampled."""

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
            what = f"iteration {side.iteration} of {side.run.root} has no complete draft shard"
            hint = command_line(side.run.root, "draft", f"--iteration {side.iteration}")
            evaluated = command_line(side.run.root, "eval", f"--bench BENCH --compare A {side.iteration}")
            raise MissingInputError(what, hint=f"{hint}; the last policy is only evaluated: {evaluated}")


def _figures(a: IterationFigures, b: IterationFigures) -> dict[str, Any]:
    # Without beta no KL is measured, and the update records 0.
    points = [side.points.get("kl") for side in (a, b)]
    unmeasured = {"kl"} if not any(point is not None and point.value for point in points) else set()
    names = [name for name in dict.fromkeys([*a.points, *b.points]) if name not in unmeasured]
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


def _escaped_table(rows: Sequence[Cells]) -> str:
    """Return a Markdown table in which text from problems and settings has no effect."""
    return markdown_table([{name: markdown_escaped(cell) for name, cell in row.items()} for row in rows])


def _paragraphs(payload: Mapping[str, Any], table: Table) -> Iterator[str]:
    sides = {"A": payload["a"], "B": payload["b"]}
    yield table([{"": name, "run": side["run"], "iteration": str(side["iteration"])} for name, side in sides.items()])
    if payload["same_policies"] is not None:
        yield f"The runs part after policy {payload['same_policies']}: until then they have the same policies."
    if rows := list(_figure_rows(payload["figures"])):
        yield table(rows)
    yield from _problem_paragraphs(payload["problems"], table)
    if payload["evaluations"]:
        yield table([_evaluation_row(found) for found in payload["evaluations"]])
    for found in payload["evaluations"]:
        if found["settings"]:
            yield f"Settings that differ between the evaluations on {_evaluation_name(found)}:"
            yield table(setting_rows(found["settings"], ("A", "B")))
    if payload["settings"]:
        yield table(setting_rows(payload["settings"], ("A", "B")))
    elif not any(found["settings"] for found in payload["evaluations"]):
        yield "No setting differs."


def _figure_rows(figures: Mapping[str, Any]) -> Iterator[Cells]:
    """Yield a row for each figure that one of the sides has."""
    for name, label in FIGURES.items():
        staged = {f"{stage}{name}": f"{label}, {prompt}" for stage, prompt in PROMPTS.items()}
        for full_name, full_label in (staged if name.startswith("/") else {name: label}).items():
            if full_name in figures:
                yield _figure_row(full_label, figures[full_name], is_share=not name.endswith(NO_SHARES))


def _figure_row(label: str, found: Mapping[str, Any], *, is_share: bool) -> Cells:
    unit = " %" if is_share else ""

    def shown(point: Mapping[str, float] | None) -> str:
        if point is None:
            return "–"
        value, *ends = (
            f"{100 * each:.1f}" if is_share else f"{each:.3g}" for each in point.values() if each is not None
        )
        return f"{value}{unit}" + (f" ({' to '.join(ends)})" if ends else "")

    difference = found["difference"]
    change = "–" if difference is None else f"{100 * difference:+.1f} points" if is_share else f"{difference:+.3g}"
    return {"figure": label, "A": shown(found["a"]), "B": shown(found["b"]), "B - A": change}


def _problem_paragraphs(problems: Mapping[str, Any], table: Table) -> Iterator[str]:
    shared = {PROMPTS[stage]: found for stage, found in problems.items() if found["shared"]}
    if not shared:
        yield "No problem was sampled by both sides: there are no pairs to compare."
        return
    yield "Problems that both sides sampled. Solved: more than half of the completions are correct."
    yield table([{"prompts": prompt, **_counts(found)} for prompt, found in shared.items()])
    for prompt, found in shared.items():
        yield f"accuracy, {prompt}, same problems: {difference_text(found)}"
    flips = [row for prompt, found in shared.items() for row in _flip_rows(prompt, found)]
    if flips:
        yield table(flips)


def _counts(found: Mapping[str, Any]) -> Cells:
    lengths = {name: len(found[name]) for name in ("gained", "lost")}
    counts = {"shared": found["shared"], "solved by both": found["solved"], **lengths, "by neither": found["unsolved"]}
    return {name: str(count) for name, count in counts.items()}


def _flip_rows(prompt: str, found: Mapping[str, Any]) -> Iterator[Cells]:
    for change in ("gained", "lost"):
        for flip in found[change][:SHOWN_FLIPS]:
            yield {
                "": f"{change}, {prompt}",
                "problem": in_line(flip["problem_id"]),
                "A": percent(flip["a"]),
                "B": percent(flip["b"]),
                "text": in_line(flip["problem"])[:40],
            }


def _evaluation_row(found: Mapping[str, Any]) -> Cells:
    sides = {"A": found["a"], "B": found["b"]}
    return {
        "evaluation": _evaluation_name(found),
        **{name: f"{percent(side['accuracy'])} (policy {side['policy']})" for name, side in sides.items()},
        "B - A": f"{100 * found['difference']:+.1f} points",
    }


def _evaluation_name(found: Mapping[str, Any]) -> str:
    return str(found["bench"]) + ("" if found["conditioned"] is None else f", with draft ({found['conditioned']})")
