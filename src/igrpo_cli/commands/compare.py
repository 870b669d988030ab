"""`igrpo eval --compare A B`: two evaluations of the same problems, their difference, and the problems that flipped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igrpo_cli.config.files import apply_overrides, check_config, read_toml
from igrpo_cli.errors import ConflictError, MissingInputError, UsageError
from igrpo_cli.evaluation.results import EvalResults, read_results
from igrpo_cli.evaluation.summary import paired_figures, summarise
from igrpo_cli.records import Problem
from igrpo_cli.store.completion import read_problems
from igrpo_cli.store.layout import (
    RunDirectory,
    bench_name,
    command_line,
    directory_name,
    eval_flags,
    shards_in,
    shell_path,
)
from igrpo_cli.ui.console import Console, percent, table
from igrpo_cli.ui.tables import difference_text, markdown_table, plain_table, summary_row

SHOWN_FLIPS = 10
"""Problems that the text lists of those gained, and of those lost; `--json` has all."""


@dataclass(frozen=True)
class CompareRequest:
    """What the command line asked for."""

    root: Path
    """The run, or the folder that `--output` named."""
    names: tuple[str, str]
    """Each a policy of the run by its number, a model by its name, or a directory of results."""
    conditioned: bool = False
    sets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluated:
    """An evaluation that is on disk, whole, with its problems by their id."""

    results: EvalResults
    bench: str
    problems: dict[str, Problem]

    @property
    def directory(self) -> Path:
        """Where it lies."""
        return self.results.directory

    def correct(self) -> dict[str, list[float]]:
        """1.0 (correct) and 0.0 of each sample, by problem."""
        correct: defaultdict[str, list[float]] = defaultdict(list)
        for rollout in self.results.rollouts:
            correct[rollout.problem_id].append(float(rollout.verdict == "correct"))
        return dict(correct)

    def figures(self) -> dict[str, Any]:
        """Its summary, and where it lies."""
        model = {"name": self.directory.name}
        figures = summarise(self.results.rollouts, self.bench, model, self.results.known_consensus)
        return {"directory": str(self.directory), **figures}


def run(request: CompareRequest, benches: Sequence[str], console: Console, *, markdown: bool = False) -> None:
    """Print how the second evaluation differs from the first, on each benchmark."""
    payloads = []
    for bench in benches or [""]:
        before, after = (_read(_find(request, bench, name), request, bench, name) for name in request.names)
        payloads.append(compare(before, after))
    payload = payloads[0] if len(payloads) == 1 else {"benches": payloads}
    console.data(payload, "\n\n".join(map(_markdown if markdown else comparison_text, payloads)))


def compare(before: Evaluated, after: Evaluated) -> dict[str, Any]:
    """The `--json` object. Raises ConflictError where the two are not of the same problems."""
    first, second = before.correct(), after.correct()
    _require_same_problems(before, after, first.keys(), second.keys())
    flips = [_flip(before.problems[name], first[name], second[name]) for name in first]
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
    }


def comparison_text(payload: dict[str, Any]) -> str:
    """The comparison for a terminal."""
    gained, lost, flipped = payload["gained"], payload["lost"], payload["flipped"]
    lines = [
        f"{payload['bench']}: {payload['problems']} problems, paired",
        plain_table([summary_row(payload[side]) for side in ("before", "after")]),
        f"{difference_text(payload)}\nflipped (right more often than not): {gained} gained, {lost} lost",
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
    return "\n\n".join(lines)


def _markdown(payload: dict[str, Any]) -> str:
    rows = [{"bench": payload["bench"], **summary_row(payload[side])} for side in ("before", "after")]
    return f"{markdown_table(rows)}\n\n{difference_text(payload)}"


def _find(request: CompareRequest, bench: str, name: str) -> Path:
    """The directory of an evaluation. A number is always a policy; a directory counts where it holds shards."""
    if not name.isdecimal() and shards_in(Path(name)):
        return Path(name)
    if not bench:
        raise UsageError(
            f"{name} is no directory of results, and no benchmark is named",
            hint=f"igrpo eval --bench aime24 --compare {' '.join(request.names)}",
        )
    selection = _selection(request) if request.conditioned else None
    policy = int(name) if name.isdecimal() else directory_name(name)
    return RunDirectory(request.root).eval(bench_name(bench), policy, conditioned=selection)


def _read(directory: Path, request: CompareRequest, bench: str, name: str) -> Evaluated:
    """All of an evaluation. Raises MissingInputError where shards are missing, DamagedFileError as they do."""
    found = {key for key, suffixes in shards_in(directory).items() if "json" in suffixes}
    totals = sorted({num_shards for _, num_shards in found})
    if len(totals) > 1:
        what = f"{directory} holds shards of {totals[0]} beside shards of {totals[1]}"
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
    return Evaluated(EvalResults(directory, results.rollouts, results.shards), where.parent.name, by_id)


def _command(directory: Path, request: CompareRequest, bench: str, name: str) -> str:
    """What to type to make what is missing."""
    if directory == Path(name):
        return f"igrpo eval {eval_flags(directory.resolve())}"
    if name.isdecimal():
        command = command_line(request.root, "eval", f"--bench {bench} --iteration {int(name)}")
    else:
        command = f"igrpo eval --model {name} --bench {bench}" + (
            "" if request.root == Path() else f" --output {shell_path(request.root)}"
        )
    if not request.conditioned:
        return command
    selection = _selection(request)
    return f"{command} --conditioned" + (f" --set eval.selection={selection}" if selection != "each" else "")


def _selection(request: CompareRequest) -> str:
    """`eval.selection` of the run, with `--set` laid over it."""
    path = RunDirectory(request.root).run_toml
    settings = read_toml(path) if path.exists() else {}
    return check_config(apply_overrides(settings, request.sets), str(path)).eval.selection


def _require_same_problems(before: Evaluated, after: Evaluated, first: Any, second: Any) -> None:
    hint = "evaluate both on the same problems: the same --bench and eval.limit"
    if only := sorted(first ^ second):
        where = before if only[0] in first else after
        raise ConflictError(f"{len(only)} problems are in one only, such as {only[0]} in {where.directory}", hint=hint)
    for name in first:
        left, right = before.problems[name], after.problems[name]
        if (left.problem, left.answer) != (right.problem, right.answer):
            raise ConflictError(f"problem {name} of {before.directory} is another one in {after.directory}", hint=hint)


def _flip(problem: Problem, before: list[float], after: list[float]) -> dict[str, Any]:
    return {
        "problem_id": problem.problem_id,
        "problem": problem.problem,
        "answer": problem.answer,
        "before": sum(before) / len(before),
        "after": sum(after) / len(after),
    }
