"""`igrpo grade`: grade the rows of a file, or give the completions of a run a further set of scores."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from igrpo_cli.config.files import apply_overrides, check_config
from igrpo_cli.errors import IgrpoError, MissingInputError, UsageError
from igrpo_cli.pipeline.scores import SCORED_STAGES, grade_stage, name_of_weights, parse_weights
from igrpo_cli.pipeline.session import StageRequest, open_session
from igrpo_cli.rewards.grading_pool import GradingPool
from igrpo_cli.store.hints import shell_path
from igrpo_cli.texts import JSON_CURE, control_fault
from igrpo_cli.ui.console import Console, finite

ROWS_PER_BATCH = 256
A_ROW = '{"gold": "42", "answer": "\\\\boxed{42}"}'


@dataclass(frozen=True)
class GradeRequest:
    """The options that apply to a run."""

    stage: str | None = None
    rewards: tuple[str, ...] = ()
    scores: str | None = None
    against: str | None = None
    iteration: int | None = None
    shard: str | None = None
    overwrite: bool = False
    dry_run: bool = False
    source: Path | None = None
    """A file of the user's with rewards."""


def run(path: Path, request: GradeRequest, sets: list[str], console: Console) -> None:
    """Grade a file row by row, or score a stage of a run under a name."""
    if path.is_dir():
        _grade_run(path, request, sets, console)
    elif replace(request, shard=None) != GradeRequest():  # --shard may come from the environment of an array task
        raise UsageError(f"{path} is not a run: only a run has stages and shards", hint="igrpo grade RUN --stage draft")
    else:
        _grade_file(path, sets, console)


def _grade_run(path: Path, request: GradeRequest, sets: list[str], console: Console) -> None:
    if request.stage not in SCORED_STAGES:
        raise UsageError(
            f"grading a run needs the stage: --stage {' or '.join(SCORED_STAGES)}",
            hint=f"igrpo grade {shell_path(path)} --stage draft --reward accuracy",
        )
    if request.source is not None and request.rewards:
        raise UsageError("--from-file brings its own rewards", hint="leave out --reward")
    if request.rewards:
        weights = ", ".join(f"{name} = {weight}" for name, weight in parse_weights(request.rewards).items())
        sets = [*sets, f"reward.weights={{{weights}}}"]
    with open_session(path, sets, console) as session:
        work = StageRequest(
            iteration=session.iteration_or_current(request.iteration),
            shards=session.shards_or_all(request.shard),
            overwrite=request.overwrite,
            dry_run=request.dry_run,
        )
        default = name_of_weights(session.config.reward.weights) if request.source is None else request.source.stem
        grade_stage(session, request.stage, work, request.scores or default, request.against, console, request.source)


def _grade_file(path: Path, sets: list[str], console: Console) -> None:
    """Print one JSON line for each row of `path`, and the number of each verdict on stderr."""
    section = check_config(apply_overrides({}, sets), "--set").reward
    counts: Counter[str] = Counter()
    lost: list[str] = []
    rows = _rows(path, lost)
    # Rows on a terminal show the progress. A bar would be drawn between them.
    shown = nullcontext() if sys.stdout.isatty() else console.progress(f"grade {path.name}", None, "rows")
    with GradingPool(section) as pool, shown as progress:
        while batch := list(islice(rows, ROWS_PER_BATCH)):
            contexts = [{"problem": row["problem"]} if row.get("problem") else {} for row in batch]
            grades = pool.submit([(row["answer"], row["gold"]) for row in batch], contexts).result()
            for row, grade in zip(batch, grades, strict=True):
                counts[grade.verdict] += 1
                result = {
                    **({} if row.get("id") is None else {"id": row["id"]}),
                    "verdict": grade.verdict,
                    "reward": float(grade.verdict == "correct"),
                    "extracted_answer": grade.extracted_answer,
                    "seconds": round(grade.seconds, 4),
                }
                print(json.dumps(finite(result)))
            if progress is not None:
                progress.advance(len(batch), rows=len(batch))
    if not counts:
        raise MissingInputError(f"{path} has no rows", hint=f"one line for each row: {A_ROW}")
    if lost:
        console.note(f"{len(lost)} references have lost a backslash: {lost[0]}; {JSON_CURE}")
    console.note(", ".join(f"{number} {verdict}" for verdict, number in sorted(counts.items())))


def _rows(path: Path, lost: list[str]) -> Iterator[dict[str, Any]]:
    """Yield each row: `answer`, `gold`, and `problem` and `id` if it has them.

    The place of each gold with a lost backslash is added to `lost`.

    Raises IgrpoError, which names the line, for an invalid row.
    """
    try:
        lines = path.open("rb")
    except OSError as error:
        raise MissingInputError(f"cannot read {path}: {error.strerror}", hint="igrpo grade FILE.jsonl") from None
    with lines:
        yield from _parsed(path, lines, lost)


def _parsed(path: Path, lines: Iterable[bytes], lost: list[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not all(isinstance(text, str) for text in (row["answer"], row["gold"], row.get("problem") or "")):
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise IgrpoError(
                f"{path} row {number} is not a JSON object with the texts `gold` and `answer` (and perhaps `problem`)",
                hint=A_ROW,
            ) from None
        if fault := control_fault(row["gold"]):
            lost.append(f"{path} row {number} contains {fault}")
        yield row
