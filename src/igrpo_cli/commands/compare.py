"""`igrpo eval --compare A B`: compare two evaluations of the same problems, paired by problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from igrpo_cli.config.files import apply_overrides, check_config
from igrpo_cli.errors import ConflictError, MissingInputError, UsageError
from igrpo_cli.evaluation.shards import EvalResults, read_results
from igrpo_cli.evaluation.summary import graded, paired_figures, summarise
from igrpo_cli.inspection.run_config import differing_values, read_run_config
from igrpo_cli.records import Problem
from igrpo_cli.store.completion import read_problems
from igrpo_cli.store.hints import command_line, shell_path
from igrpo_cli.store.layout import RunDirectory, bench_name, directory_name, eval_flags, shards_in
from igrpo_cli.ui.console import Console, percent, table
from igrpo_cli.ui.quoting import markdown_escaped
from igrpo_cli.ui.tables import difference_text, markdown_table, plain_table, setting_rows, summary_row

OTHER_SETTINGS = "These settings differ too, so that the difference is not that of the policies alone."
SHOWN_FLIPS = 10
"""Maximum number of gained problems, and of lost problems, in the text. `--json` has all."""


@dataclass(frozen=True)
class CompareRequest:
    """The options of the command line."""

    root: Path
    """The run, or the folder of `--output`."""
    names: tuple[str, str]
    """Each is a policy of the run by number, a model by name, or a directory of results."""
    with_draft: bool = False
    sets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluated:
    """A complete evaluation on disk, with its problems by id."""

    results: EvalResults
    bench: str
    problems: dict[str, Problem]

    @property
    def directory(self) -> Path:
        """The directory of its shards."""
        return self.results.directory

    def correct(self) -> dict[str, list[float]]:
        """Return 1.0 (correct) or 0.0 for each graded sample, by problem id."""
        correct: dict[str, list[float]] = {rollout.problem_id: [] for rollout in self.results.rollouts}
        for rollout in graded(self.results.rollouts):
            correct[rollout.problem_id].append(float(rollout.verdict == "correct"))
        return correct

    def figures(self) -> dict[str, Any]:
        """Return its summary and its directory."""
        model = {"name": self.directory.name}
        figures = summarise(self.results.rollouts, self.bench, model, self.results.known_consensus)
        return {"directory": str(self.directory), **figures}


def run(request: CompareRequest, benches: Sequence[str], console: Console, *, markdown: bool = False) -> None:
    """Print the difference between the second and the first evaluation, for each benchmark."""
    payloads = []
    for bench in benches or [""]:
        before, after = (_read(_find(request, bench, name), request, bench, name) for name in request.names)
        payloads.append(compare(before, after))
    payload = payloads[0] if len(payloads) == 1 else {"benches": payloads}
    console.data(payload, "\n\n".join(map(_markdown if markdown else comparison_text, payloads)))


def compare(before: Evaluated, after: Evaluated) -> dict[str, Any]:
    """Return the `--json` object. Raises ConflictError when the problems are not the same."""
    first, second = before.correct(), after.correct()
    _require_same_problems(before, after, first.keys(), second.keys())
    flips = [_flip(before.problems[name], first[name], second[name]) for name in first if first[name] and second[name]]
    flipped = [flip for flip in flips if (flip["before"] > 0.5) != (flip["after"] > 0.5)]
    flipped.sort(key=lambda flip: (flip["before"] - flip["after"], flip["problem_id"]))
    return {
        "bench": before.bench,
        "problems": len(first),
        "before": before.figures(),
        "after": after.figures(),
        **paired_figures(list(first.values()), [second[name] for name in first]),
        "gained": sum(flip["after"] > flip["before"] for flip in flipped),
        "lost": sum(flip["after"] < flip["before"] for flip in flipped),
        "flipped": flipped,
        "settings": differing_values(before.results.settings, after.results.settings),
    }


def comparison_text(payload: dict[str, Any]) -> str:
    """Return the comparison as text."""
    gained, lost, flipped = payload["gained"], payload["lost"], payload["flipped"]
    lines = [
        f"{payload['bench']}: {payload['problems']} problems, paired",
        plain_table([summary_row(payload[side]) for side in ("before", "after")]),
        f"{difference_text(payload)}\nsolved (more than half of the samples correct): {gained} gained, {lost} lost",
    ]
    shown = [*flipped[:gained][:SHOWN_FLIPS], *flipped[gained:][-SHOWN_FLIPS:]]
    if shown:
        cells = [
            (flip["problem_id"], percent(flip["before"]), percent(flip["after"]), flip["problem"][:60])
            for flip in shown
        ]
        lines.append(table(("problem", "before", "after", ""), cells))
    if len(shown) < len(flipped):
        lines.append(f"{len(flipped) - len(shown)} more with --json")
    if payload["settings"]:
        lines += [OTHER_SETTINGS, plain_table(setting_rows(payload["settings"], ("before", "after")))]
    return "\n\n".join(lines)


def _markdown(payload: dict[str, Any]) -> str:
    rows = [{"bench": payload["bench"], **summary_row(payload[side])} for side in ("before", "after")]
    paragraphs = [markdown_table(rows), difference_text(payload)]
    if payload["settings"]:
        changed = setting_rows(payload["settings"], ("before", "after"))
        escaped = [{name: markdown_escaped(cell) for name, cell in row.items()} for row in changed]
        paragraphs += [OTHER_SETTINGS, markdown_table(escaped)]
    return "\n\n".join(paragraphs)


def _find(request: CompareRequest, bench: str, name: str) -> Path:
    """Return the directory of an evaluation. A number is always a policy. A directory must hold shards."""
    if not name.isdecimal() and shards_in(Path(name)):
        return Path(name)
    if not bench:
        raise UsageError(
            f"{name} is not a directory of results, and --bench is missing",
            hint=f"igrpo eval --bench aime24 --compare {' '.join(request.names)}",
        )
    selection = _selection(request) if request.with_draft else None
    policy = int(name) if name.isdecimal() else directory_name(name)
    return RunDirectory(request.root).eval(bench_name(bench), policy, conditioned=selection)


def _read(directory: Path, request: CompareRequest, bench: str, name: str) -> Evaluated:
    """Read an evaluation. Raises MissingInputError when shards are missing, DamagedFileError when one is damaged."""
    found = {key for key, suffixes in shards_in(directory).items() if "json" in suffixes}
    totals = sorted({num_shards for _, num_shards in found})
    if len(totals) > 1:
        what = f"{directory} holds shards of {totals[0]} and shards of {totals[1]}"
        raise ConflictError(what, hint="remove those that do not belong there")
    total = totals[0] if totals else 1
    missing = total - len(found)
    if missing:
        what = f"lacks {missing} of its {total} shards" if found else "holds no evaluation"
        raise MissingInputError(f"{directory} {what}", hint=_command(directory, request, bench, name))
    where = directory.resolve()
    root = RunDirectory(where.parents[2])
    results = read_results([root.eval_shard_in(where, shard, total) for shard in range(total)])
    problems = read_problems(root.eval_problems(where.parent.name))
    by_id = {problem.problem_id: problem for problem in problems}
    return Evaluated(replace(results, directory=directory), where.parent.name, by_id)


def _command(directory: Path, request: CompareRequest, bench: str, name: str) -> str:
    """Return the command that samples the missing shards."""
    if directory == Path(name):
        return f"igrpo eval {eval_flags(directory.resolve())}"
    if name.isdecimal():
        command = command_line(request.root, "eval", f"--bench {bench} --iteration {int(name)}")
    else:
        command = f"igrpo eval --model {name} --bench {bench}" + (
            "" if request.root == Path() else f" --output {shell_path(request.root)}"
        )
    if not request.with_draft:
        return command
    selection = _selection(request)
    return f"{command} --with-draft" + (f" --set eval.selection={selection}" if selection != "each" else "")


def _selection(request: CompareRequest) -> str:
    """Return `eval.selection` of the run, or that of `--set`."""
    run = RunDirectory(request.root)
    if run.run_toml.exists():
        return read_run_config(run, request.sets).latest.eval.selection
    return check_config(apply_overrides({}, request.sets), "--set").eval.selection


def _require_same_problems(before: Evaluated, after: Evaluated, first: Any, second: Any) -> None:
    hint = "evaluate both on the same problems: the same --bench and eval.limit"
    if only := sorted(first ^ second):
        where = before if only[0] in first else after
        what = f"{len(only)} problems are only in one of them, for example {only[0]} in {where.directory}"
        raise ConflictError(what, hint=hint)
    for name in first:
        left, right = before.problems[name], after.problems[name]
        if (left.problem, left.answer) != (right.problem, right.answer):
            what = f"problem {name} is not the same in {before.directory} and {after.directory}"
            raise ConflictError(what, hint=hint)


def _flip(problem: Problem, before: list[float], after: list[float]) -> dict[str, Any]:
    return {
        "problem_id": problem.problem_id,
        "problem": problem.problem,
        "answer": problem.answer,
        "before": sum(before) / len(before),
        "after": sum(after) / len(after),
    }
