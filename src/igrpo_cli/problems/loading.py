"""Problems from any source: each row becomes a `Problem`, or is refused, or is counted by its fault."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from reprlib import repr as short
from typing import Any

import numpy as np

from igrpo_cli.errors import IgrpoError
from igrpo_cli.problems.columns import Columns, find_columns, id_text, problem_and_answer
from igrpo_cli.problems.files import digest_of, open_file, problem_files
from igrpo_cli.problems.hub import open_hub
from igrpo_cli.problems.rows import BLANK_LINE, AnswerForm, BadRow, RawRow, Table
from igrpo_cli.problems.sources import ProblemSource, resolve_training
from igrpo_cli.records import Problem
from igrpo_cli.seeds import derive_seed

ROWS_THAT_SHOW_COLUMNS = 100
SKIP_HINT = "correct it, or count and skip such rows: --skip-bad-rows"


@dataclass(frozen=True, slots=True)
class LoadedProblems:
    """Problems and where they came from."""

    problems: list[Problem]
    """In the order of the source."""
    counts: dict[str, int]
    """`rows` read, `kept`, and each kind of row left out; `rows` is the sum of all others."""
    source: str
    sha256: str
    """Of the file, or of the list of files (`files.digest_of`); for a Hub set of its problems."""
    revision: str | None
    """Commit of a Hub set, None for local files."""


def load_problems(
    source: str | ProblemSource,
    *,
    split: str | None = None,
    config: str | Sequence[str] | None = None,
    problem_column: str | None = None,
    answer_column: str | None = None,
    id_column: str | None = None,
    answer_form: AnswerForm = "auto",
    choices_column: str | None = None,
    skip_bad_rows: bool = False,
    revision: str | None = None,
) -> LoadedProblems:
    """The problems of `source`: a word that `resolve_training` understands, or what `resolve_bench` returned.

    What is given here goes before what `source` says, which goes before what the data shows. A row that
    cannot be used raises `IgrpoError` with its place; with `skip_bad_rows` it is counted by kind and left
    out. Of rows with the same problem the first is kept (`duplicate_problem`), unless their answers differ:
    then none is, since nothing tells which is right (`conflicting_answer`). Blank lines are ignored, and
    counted. Also raises `MissingInputError` (no such source), `UsageError` (a column, split or config must
    be named) and `DamagedFileError` (the whole file is unreadable).
    """
    known = resolve_training(source) if isinstance(source, str) else source
    configs = (config,) if isinstance(config, str) else tuple(config or ())
    resolved = replace(
        known,
        split=split or known.split,
        configs=configs or known.configs,
        problem_column=problem_column or known.problem_column,
        answer_column=answer_column or known.answer_column,
        id_column=id_column or known.id_column,
        answer_form=known.answer_form if answer_form == "auto" else answer_form,
        choices_column=choices_column or known.choices_column,
        revision=revision or known.revision,
    )
    tables, sha256, commit = _open(resolved)
    sieve = _Sieve(skip_bad_rows)
    for table in tables:
        _read_table(table, resolved, sieve)
    problems = list(sieve.kept.values())
    if not problems:
        raise IgrpoError(f"{resolved.location} holds no usable problem ({_as_words(sieve.counts) or 'no rows'})")
    counts = {
        "rows": sieve.counts.total() + len(problems),
        "kept": len(problems),
        **dict(sorted(sieve.counts.items())),
    }
    return LoadedProblems(problems, counts, str(resolved.location), sha256 or _digest_of_problems(problems), commit)


def _open(source: ProblemSource) -> tuple[list[Table], str | None, str | None]:
    """Tables, SHA-256 of local files, Hub commit."""
    if isinstance(source.location, str):
        tables, commit = open_hub(source)
        return tables, None, commit
    files = problem_files(source.location, source.split, source.configs)
    folder = source.location if source.location.is_dir() else source.location.parent
    return [open_file(path, folder) for path in files], digest_of(files, folder), None


@dataclass(slots=True)
class _Sieve:
    """What was read so far, over all tables."""

    skip_bad_rows: bool
    kept: dict[str, Problem] = field(default_factory=dict)
    """By problem text, in order."""
    conflicting: set[str] = field(default_factory=set)
    places: dict[str, str] = field(default_factory=dict)
    """Place of the first row with an identifier."""
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, problem: Problem) -> None:
        """Keep `problem`, or raise the `BadRow` that says why not."""
        text, place = problem.problem, problem.source
        if text in self.conflicting:
            raise BadRow("conflicting_answer", "the problem stands in earlier rows, with other answers")
        first = self.kept.get(text)
        if first is not None and first.answer == problem.answer:
            raise BadRow("duplicate_problem", f"problem and answer are those of {first.source}")
        if first is not None:
            self._give_up(first)
            answers = f"{short(problem.answer)}, not {short(first.answer)}"
            reason = f"the problem is that of {first.source}, but the answer is {answers}"
            raise BadRow("conflicting_answer", reason)
        if problem.problem_id in self.places:
            reason = f"the id {short(problem.problem_id)} is that of {self.places[problem.problem_id]}"
            raise BadRow("duplicate_id", reason)
        self.kept[text] = problem
        self.places[problem.problem_id] = place

    def _give_up(self, problem: Problem) -> None:
        del self.kept[problem.problem]
        self.conflicting.add(problem.problem)
        self.counts["conflicting_answer"] += 1

    def refuse(self, bad: BadRow, place: str) -> None:
        """Count a bad row, or raise where it may not be skipped."""
        self.counts[bad.kind] += 1
        if not self.skip_bad_rows and bad.kind != BLANK_LINE:
            raise IgrpoError(f"{place}: {bad.reason}", hint=SKIP_HINT)


def _read_table(table: Table, source: ProblemSource, sieve: _Sieve) -> None:
    seen: list[RawRow] = []
    samples: list[dict[str, Any]] = []
    for raw in table.rows:
        seen.append(raw)
        if not isinstance(raw[1], BadRow):
            samples.append(raw[1])
        elif not sieve.skip_bad_rows and raw[1].kind != BLANK_LINE:
            break
        if len(samples) == ROWS_THAT_SHOW_COLUMNS:
            break
    columns = find_columns(samples, source, table.label) if samples else None
    for number, values in chain(seen, table.rows):
        try:
            if isinstance(values, BadRow):
                raise values
            assert columns is not None, "a good row is among the samples, or comes after them"
            sieve.add(_problem(number, values, columns, table))
        except BadRow as bad:
            sieve.refuse(bad, f"{table.label} row {number}")


def _problem(number: int, values: dict[str, Any], columns: Columns, table: Table) -> Problem:
    problem_id = id_text(values, columns) or f"{table.id_prefix}-{number}"
    problem, answer = problem_and_answer(values, columns)
    return Problem(
        problem_id=problem_id,
        problem=problem,
        answer=answer,
        source=f"{table.label}:{number}",
    )


def problems_in_both(problems: Sequence[Problem], others: Sequence[Problem]) -> list[Problem]:
    """Those of `problems` whose text, but for white space, is the text of one of `others`."""
    texts = {" ".join(other.problem.split()) for other in others}
    return [problem for problem in problems if " ".join(problem.problem.split()) in texts]


def _digest_of_problems(problems: Sequence[Problem]) -> str:
    rows = [[row.problem_id, row.problem, row.answer] for row in problems]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _as_words(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {kind.replace('_', ' ')}" for kind, number in sorted(counts.items()))


def problems_of_iteration(num_problems: int, iteration: int, problems_per_iteration: int, run_seed: int) -> list[int]:
    """Indices into the problems for `iteration` (from 0), in the order of their group ids.

    Epoch e is a permutation of all problems; iterations are consecutive slices of the epochs laid end
    to end, so every problem comes once per epoch, and a slice may cross from one epoch into the next.
    Each iteration follows from the run seed alone: nothing is remembered from the ones before.
    """
    if min(num_problems, problems_per_iteration) < 1 or iteration < 0:
        raise ValueError("needs at least one problem, one problem per iteration, and an iteration from 0")
    chosen: list[int] = []
    position = iteration * problems_per_iteration
    end = position + problems_per_iteration
    while position < end:
        epoch, offset = divmod(position, num_problems)
        part = _permutation(num_problems, derive_seed(run_seed, "epoch", epoch))[offset : offset + end - position]
        chosen.extend(part.tolist())
        position += len(part)
    return chosen


def iterations_per_epoch(num_problems: int, problems_per_iteration: int) -> int:
    """Iterations until every problem was met once; the last of them may already take from the next epoch."""
    return -(-num_problems // problems_per_iteration)


def _permutation(size: int, seed: int) -> np.ndarray:
    # Sorting raw bits rather than Generator.permutation: NumPy promises the bit stream of PCG64
    # for ever, but not what its Generator makes of it.
    return np.argsort(np.random.PCG64(seed).random_raw(size), kind="stable")
