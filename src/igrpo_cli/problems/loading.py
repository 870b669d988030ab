"""Load the problems of a run: every row becomes a `Problem`, is an error, or is counted by the kind of its fault."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from reprlib import repr as short
from typing import Any, TypedDict, Unpack

from igrpo_cli.errors import IgrpoError, UsageError
from igrpo_cli.problems.columns import Columns, chat_and_answer, find_columns, id_text
from igrpo_cli.problems.files import digest_of, open_file, problem_files
from igrpo_cli.problems.hub import open_hub
from igrpo_cli.problems.rows import BLANK_LINE, BadRow, BinaryValueError, RawRow, Table, column_text
from igrpo_cli.problems.sources import ProblemSource, resolve_training
from igrpo_cli.records import AnswerForm, Problem

NUM_ROWS_FOR_COLUMNS = 100
MAX_COLUMN_LENGTH = 64 << 20
"""Maximum number of characters of another column as JSON, over all rows, unless the settings name it."""
SKIP_HINT = "or skip and count such rows: --skip-bad-rows"


@dataclass(frozen=True, slots=True)
class LoadedProblems:
    """Holds the problems of a source, and the identity of that source."""

    problems: list[Problem]
    """In the order of the source."""
    counts: dict[str, int]
    """`rows`, `kept`, and the number of skipped rows by kind (see `BadRow`); `rows` is the sum of all others."""
    source: str
    sha256: str
    """SHA-256 of the file or of the list of files (see `files.digest_of`), for a Hub dataset of its problems."""
    revision: str | None
    """Commit of a Hub dataset; None for local files."""
    left_out_columns: dict[str, str] = field(default_factory=dict)
    """Other columns that are not kept, each with the reason."""


class Reading(TypedDict, total=False):
    """How problems are read: fields of `ProblemSource`, where None leaves those of the source."""

    split: str | None
    config: str | Sequence[str] | None
    problem_column: str | None
    answer_column: str | None
    id_column: str | None
    answer_form: AnswerForm
    choices_column: str | None
    system_column: str | None
    columns: Sequence[str] | None
    revision: str | None


def load_problems(
    source: str | ProblemSource, *, skip_bad_rows: bool = False, **reading: Unpack[Reading]
) -> LoadedProblems:
    """Load the problems of `source`: a name for `resolve_training`, or a `ProblemSource`.

    `reading` takes precedence over the fields of `source`, and those over values found from the data.

    Of several rows with the same problem the first is kept (`duplicate_problem`). If their answers differ, none is
    kept, because the right answer is unknown (`conflicting_answer`). Blank lines are counted and ignored.

    Raises `IgrpoError` with the place of the first bad row; with `skip_bad_rows` bad rows are counted and left out
    instead. Raises `MissingInputError` when the source does not exist, `UsageError` when a column, split or config must
    be named, and `DamagedFileError` when a whole file is unreadable.
    """
    deduplicator = _ProblemDeduplicator(skip_bad_rows)
    location, sha256, commit = _read_source(source, reading, deduplicator)
    return deduplicator.loaded(location, sha256, commit)


def load_mix(sources: Mapping[str, tuple[str, Reading]], *, skip_bad_rows: bool = False) -> LoadedProblems:
    """Load the problems of several sources by name, each from what `load_problems` takes. Raises as it does.

    The ids and places of problems begin with the name of their source. Duplicates and conflicts are found across
    sources. `sha256` is that of the lines `<sha256>  <name>`, and `revision` has the commits of Hub datasets.
    """
    deduplicator = _ProblemDeduplicator(skip_bad_rows)
    digests, commits = "", []
    for name, (source, reading) in sources.items():
        _, sha256, commit = _read_source(source, reading, deduplicator, name)
        digests += f"{sha256}  {name}\n"
        commits += [f"{name} {commit}"] if commit else []
    for name in sources:
        if not deduplicator.of_source(name):
            raise IgrpoError(f"{name} contributes no problem", hint="remove it from data.mix, or correct its rows")
    sha256 = hashlib.sha256(digests.encode()).hexdigest()
    return deduplicator.loaded(", ".join(sources), sha256, ", ".join(commits) or None)


def _read_source(
    source: str | ProblemSource, reading: Reading, deduplicator: _ProblemDeduplicator, name: str = ""
) -> tuple[str, str, str | None]:
    """Add the problems of a source. Return its location, the SHA-256 of its files or problems, and its commit."""
    known = resolve_training(source) if isinstance(source, str) else source
    config = reading.get("config") or ()
    resolved = replace(
        known,
        split=reading.get("split") or known.split,
        configs=(config,) if isinstance(config, str) else tuple(config) or known.configs,
        problem_column=reading.get("problem_column") or known.problem_column,
        answer_column=reading.get("answer_column") or known.answer_column,
        id_column=reading.get("id_column") or known.id_column,
        answer_form=known.answer_form if reading.get("answer_form", "auto") == "auto" else reading["answer_form"],
        choices_column=reading.get("choices_column") or known.choices_column,
        system_column=reading.get("system_column") or known.system_column,
        columns=known.columns if (kept := reading.get("columns")) is None else tuple(kept),
        revision=reading.get("revision") or known.revision,
    )
    tables, sha256, commit = _open(resolved)
    for table in tables:
        _read_table(replace(table, source=name), resolved, deduplicator)
    return str(resolved.location), sha256 or _digest_of_problems(deduplicator.of_source(name)), commit


def problems_in_both(problems: Sequence[Problem], others: Sequence[Problem]) -> list[Problem]:
    """Return the members of `problems` whose text also occurs in `others`, white space aside."""
    texts = {" ".join(other.problem.split()) for other in others}
    return [problem for problem in problems if " ".join(problem.problem.split()) in texts]


def _open(source: ProblemSource) -> tuple[list[Table], str | None, str | None]:
    """Return the tables, the SHA-256 of local files and the commit of a Hub dataset."""
    if isinstance(source.location, str):
        tables, commit = open_hub(source)
        return tables, None, commit
    files = problem_files(source.location, source.split, source.configs)
    folder = source.location if source.location.is_dir() else source.location.parent
    return [open_file(path, folder) for path in files], digest_of(files, folder), None


_Text = tuple[str, str, str, str]


def _text(problem: Problem) -> _Text:
    """Return everything that a prompt shows of a problem."""
    return problem.system_prompt, problem.earlier_turns, problem.problem, problem.prefill


@dataclass(slots=True)
class _OtherColumns:
    """Collects the columns of rows besides problem and answer, as JSON by name, and leaves out whole columns."""

    rows: dict[str, dict[str, str]] = field(default_factory=dict)
    """By the id of the problem."""
    sizes: Counter[str] = field(default_factory=Counter)
    """Number of characters by column, in the order in which the columns appeared."""
    left_out: dict[str, str] = field(default_factory=dict)
    named: set[str] = field(default_factory=set)
    """Columns that the settings of some source name, whatever their size."""

    def add(self, problem_id: str, values: Mapping[str, Any], *, are_named: bool) -> None:
        """Keep the values of a row. Raises `UsageError` for binary data in a column that the settings name."""
        texts = self.rows[problem_id] = {}
        self.named.update(values if are_named else ())
        for name, value in values.items():
            if name in self.left_out:
                continue
            try:
                texts[name] = column_text(value)
            except BinaryValueError:
                if are_named:
                    what = f"the column {name} holds binary data, which cannot be kept"
                    raise UsageError(what, hint="remove it from data.columns") from None
                self._leave_out(name, "it holds binary data")
                continue
            self.sizes[name] += len(texts[name])
            if self.sizes[name] > MAX_COLUMN_LENGTH and name not in self.named:
                reason = f"it has more than {MAX_COLUMN_LENGTH >> 20} MiB"
                self._leave_out(name, f"{reason}; to keep it, name the columns to keep: data.columns=[…]")

    def added_to(self, problems: Iterable[Problem]) -> list[Problem]:
        """Return the problems with their other columns. All have all names, in one order, null where there is none."""
        names = {name: json.dumps(name, ensure_ascii=False) for name in self.sizes}
        return [replace(each, columns=self._object(each.problem_id, names)) for each in problems]

    def _object(self, problem_id: str, names: Mapping[str, str]) -> str:
        texts = self.rows[problem_id]
        return "{" + ", ".join(f"{written}: {texts.get(name, 'null')}" for name, written in names.items()) + "}"

    def _leave_out(self, name: str, reason: str) -> None:
        self.left_out[name] = reason
        del self.sizes[name]
        for texts in self.rows.values():
            texts.pop(name, None)


@dataclass(slots=True)
class _ProblemDeduplicator:
    """Collects the problems of all tables, and detects duplicates and conflicts among them."""

    skip_bad_rows: bool
    kept: dict[_Text, Problem] = field(default_factory=dict)
    """Problems by their text, in the order of the source."""
    conflicting: set[_Text] = field(default_factory=set)
    """Texts of the problems that occurred with different answers."""
    places: dict[str, str] = field(default_factory=dict)
    """Place of the first row with each identifier."""
    counts: Counter[str] = field(default_factory=Counter)
    """Number of rows that were not kept, by kind."""
    others: _OtherColumns = field(default_factory=_OtherColumns)

    def of_source(self, name: str) -> list[Problem]:
        """Return the problems of one of several sources, or all for an empty name."""
        return self.others.added_to(
            each for each in self.kept.values() if not name or each.problem_id.startswith(f"{name}/")
        )

    def loaded(self, location: str, sha256: str, commit: str | None) -> LoadedProblems:
        """Return the problems that were kept. Raises `IgrpoError` when there are none."""
        problems = self.of_source("")
        if not problems:
            raise IgrpoError(f"{location} contains no usable problem ({_as_words(self.counts) or 'no rows'})")
        num_rows = self.counts.total() + len(problems)
        counts = {"rows": num_rows, "kept": len(problems), **dict(sorted(self.counts.items()))}
        return LoadedProblems(problems, counts, location, sha256, commit, self.others.left_out)

    def add(self, problem: Problem, others: Mapping[str, Any], *, are_named: bool) -> None:
        """Keep `problem` with its other columns. Raises `BadRow` when it repeats or contradicts an earlier one."""
        text, place = _text(problem), problem.source
        if text in self.conflicting:
            raise BadRow("conflicting_answer", "earlier rows give different answers to the problem")
        first = self.kept.get(text)
        if first is not None and first.answer == problem.answer:
            raise BadRow("duplicate_problem", f"problem and answer equal those of {first.source}")
        if first is not None:
            self._discard(first)
            answers = f"{short(problem.answer)}, not {short(first.answer)}"
            reason = f"the problem equals that of {first.source}, but the answer is {answers}"
            raise BadRow("conflicting_answer", reason)
        if problem.problem_id in self.places:
            reason = f"the id {short(problem.problem_id)} is already used by {self.places[problem.problem_id]}"
            raise BadRow("duplicate_id", reason)
        self.others.add(problem.problem_id, others, are_named=are_named)
        self.kept[text] = problem
        self.places[problem.problem_id] = place

    def _discard(self, problem: Problem) -> None:
        del self.kept[_text(problem)]
        self.conflicting.add(_text(problem))
        self.counts["conflicting_answer"] += 1

    def reject(self, bad: BadRow, place: str) -> None:
        """Count a bad row. Raises `IgrpoError` when bad rows must not be skipped."""
        self.counts[bad.kind] += 1
        if not self.skip_bad_rows and bad.kind != BLANK_LINE:
            raise IgrpoError(f"{place}: {bad.reason}", hint=f"{bad.cure}, {SKIP_HINT}")


def _read_table(table: Table, source: ProblemSource, deduplicator: _ProblemDeduplicator) -> None:
    seen: list[RawRow] = []
    samples: list[dict[str, Any]] = []
    for raw in table.rows:
        seen.append(raw)
        if not isinstance(raw[1], BadRow):
            samples.append(raw[1])
        elif not deduplicator.skip_bad_rows and raw[1].kind != BLANK_LINE:
            break
        if len(samples) == NUM_ROWS_FOR_COLUMNS:
            break
    columns = find_columns(samples, source, table.full_label) if samples else None
    for number, values in chain(seen, table.rows):
        try:
            if isinstance(values, BadRow):
                raise values
            assert columns is not None, "the first good row is among the samples"
            problem, others = _problem(number, values, columns, table), columns.others_of(values)
            deduplicator.add(problem, others, are_named=source.columns is not None)
        except BadRow as bad:
            deduplicator.reject(bad, f"{table.full_label} row {number}")


def _problem(number: int, values: dict[str, Any], columns: Columns, table: Table) -> Problem:
    problem_id = id_text(values, columns) or f"{table.id_prefix}-{number}"
    if table.source:
        problem_id = f"{table.source}/{problem_id.removeprefix(f'{table.source}-')}"
    chat, answer = chat_and_answer(values, columns)
    return Problem(
        problem_id=problem_id,
        problem=chat.question,
        answer=answer,
        source=f"{table.full_label}:{number}",
        earlier_turns=chat.earlier_turns,
        prefill=chat.prefill,
        system_prompt=chat.system,
    )


def _digest_of_problems(problems: Sequence[Problem]) -> str:
    rows = [[*_text(row), row.problem_id, row.answer, row.columns] for row in problems]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _as_words(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {kind.replace('_', ' ')}" for kind, number in sorted(counts.items()))
