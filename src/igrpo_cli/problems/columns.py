"""Which column holds the problem, the answer and the identifier, and their values in a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from igrpo_cli.errors import UsageError
from igrpo_cli.problems.answers import reference_answer
from igrpo_cli.problems.benches import AnswerForm, ProblemSource
from igrpo_cli.problems.rows import BadRow, text_of

PROBLEM_NAMES = ("problem", "question", "prompt")
ANSWER_NAMES = ("answer", "final_answer", "expected_answer", "reward_model.ground_truth")
SOLUTION_NAME = "solution"
ID_NAMES = ("id", "problem_id", "unique_id", "uuid")
NO_ID_COLUMN = "none"


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of one table. `a.b` means key `b` of the object in column `a`."""

    problem: str
    answer: str
    id: str | None
    """None: rows are numbered."""
    answer_form: AnswerForm


def find_columns(rows: Sequence[Mapping[str, Any]], source: ProblemSource, label: str) -> Columns:
    """The columns named in `source`, or else those of `rows` that bear a known name, in any letter case.

    A solution is read for its answer only where no column holds the answer itself. Raises `UsageError`
    with the columns found where a named one is missing, or no column or several come into question.
    """
    names = _names_of(rows)
    problem = _named(source.problem_column, names, label) or _only_one("problem", PROBLEM_NAMES, names, label)
    answer = _named(source.answer_column, names, label)
    if answer is None:
        known = ANSWER_NAMES if _matching(ANSWER_NAMES, names) else (SOLUTION_NAME,)
        answer = _only_one("answer", known, names, label)
    form = source.answer_form
    if form == "auto" and answer.lower() == SOLUTION_NAME:
        form = "solution"
    return Columns(problem, answer, _id_column(source.id_column, names, label), form)


def problem_text(row: Mapping[str, Any], columns: Columns) -> str:
    """The problem of `row`; of a chat, the content of its one user message. Raises `BadRow`."""
    value = _value(row, columns.problem)
    if isinstance(value, list) and value:
        value = _user_message(value)
    return text_of(value, "problem")


def answer_text(row: Mapping[str, Any], columns: Columns) -> str:
    """The reference answer of `row`. Raises `BadRow`."""
    return reference_answer(_value(row, columns.answer), columns.answer_form)


def id_text(row: Mapping[str, Any], columns: Columns) -> str | None:
    """The identifier of `row` as text, None where rows are numbered. Raises `BadRow`."""
    if columns.id is None:
        return None
    value = _value(row, columns.id)
    return text_of(str(value) if type(value) is int else value, "id")


def _names_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for row in rows for name in row)
    nested = dict.fromkeys(
        f"{name}.{key}" for row in rows for name, value in row.items() if isinstance(value, dict) for key in value
    )
    return [*names, *nested]


def _named(wanted: str | None, names: list[str], label: str) -> str | None:
    if wanted is None or wanted in names:
        return wanted
    raise UsageError(f"{label} has no column {wanted} (its columns: {', '.join(names)})")


def _matching(known: Sequence[str], names: list[str]) -> list[str]:
    return [name for name in names if name.lower() in known]


def _only_one(role: str, known: Sequence[str], names: list[str], label: str) -> str:
    found = _matching(known, names)
    if len(found) == 1:
        return found[0]
    message = f"{label}: {len(found)} columns may hold the {role}: {', '.join(found)}"
    if not found:
        message = f"{label}: no column is known to hold the {role} (its columns: {', '.join(names)})"
    raise UsageError(message, hint=f"name the column: --set data.{role}_column=NAME")


def _id_column(wanted: str | None, names: list[str], label: str) -> str | None:
    if wanted == NO_ID_COLUMN and NO_ID_COLUMN not in names:
        return None
    if wanted is not None:
        return _named(wanted, names, label)
    found = sorted(_matching(ID_NAMES, names), key=lambda name: ID_NAMES.index(name.lower()))
    return found[0] if found else None


def _value(row: Mapping[str, Any], column: str) -> Any:
    if column in row:
        return row[column]
    outer, _, key = column.partition(".")
    nested = row.get(outer)
    return nested.get(key) if isinstance(nested, dict) else None


def _user_message(messages: list[Any]) -> Any:
    if not all(isinstance(message, dict) for message in messages):
        raise BadRow("wrong_type", "the problem is a list, but not one of chat messages")
    asked = [message for message in messages if message.get("role", "user") == "user"]
    if len(asked) != 1:
        raise BadRow("wrong_type", f"the problem is a chat with {len(asked)} user messages")
    return asked[0].get("content")
