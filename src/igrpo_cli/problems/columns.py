"""Find the columns of problem, answer, choices and identifier, and read their values from a row."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from igrpo_cli.errors import UsageError
from igrpo_cli.problems.answers import (
    is_index,
    listed_choices,
    problem_with_choices,
    reference_answer,
    reference_letter,
    shuffled_choices,
)
from igrpo_cli.problems.rows import AnswerForm, BadRow, text_of
from igrpo_cli.problems.sources import ProblemSource

PROBLEM_NAMES = ("problem", "question", "prompt")
ANSWER_NAMES = ("answer", "final_answer", "expected_answer", "reward_model.ground_truth")
SOLUTION_NAME = "solution"
ID_NAMES = ("id", "problem_id", "unique_id", "uuid")
CHOICES_NAMES = ("options", "choices")
INDEX_NAME = "answer_index"
RIGHT_NAMES = ("correct answer", "correct_answer")
WRONG_NAME = re.compile(r"incorrect[ _]answer[ _]\d+", re.IGNORECASE)
NONE = "none"
"""Value of a `*_column` setting that disables a column even if a column with a known name exists."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Holds the column names of one table. `a.b` means key `b` of the object in column `a`."""

    problem: str
    answer: str
    id: str | None
    """None: rows are numbered."""
    answer_form: AnswerForm
    choices: str | None = None
    """Column with the list of choices; None without multiple choice."""
    wrong: tuple[str, ...] = ()
    """Columns of the wrong choices, if each choice has its own column; `answer` then holds the right one."""
    counts_from_zero: bool = False
    """True if a numeric answer is known to be the 0-based index of a choice."""


def find_columns(rows: Sequence[Mapping[str, Any]], source: ProblemSource, label: str) -> Columns:
    """Return the columns named in `source`, or else the columns of `rows` with a known name, in any letter case.

    A solution column is used only if no column holds the answer itself. Choices are either one column of lists, or
    several columns: the right choice and the wrong ones. Numeric answers count from 0 if the name of their column ends
    in `index` or if one of `rows` contains a 0. Raises `UsageError`, with the names of the columns, when a named
    column is missing, and when no column or more than one matches.
    """
    names = _names_of(rows)
    problem = _named(source.problem_column, names, label) or _only_one("problem", PROBLEM_NAMES, names, label)
    id_column = _id_column(source.id_column, names, label)
    right, wrong = _right_and_wrong(source, names, label)
    if right is not None:
        return Columns(problem, right, id_column, "plain", wrong=wrong)
    choices = _choices_column(rows, source.choices_column, names, label)
    answer = _named(source.answer_column, names, label)
    if answer is None:
        candidates = (ANSWER_NAMES, *([] if choices is None else [(INDEX_NAME,)]))
        known = next((known for known in candidates if _matching(known, names)), (SOLUTION_NAME,))
        answer = _only_one("answer", known, names, label)
    form = source.answer_form
    if form == "auto" and answer.lower() == SOLUTION_NAME:
        form = "solution"
    is_zero_based = answer.lower().endswith("index") or any(
        is_index(value) and value == 0 for value in (_value(row, answer) for row in rows)
    )
    return Columns(problem, answer, id_column, form, choices, counts_from_zero=is_zero_based)


def problem_and_answer(row: Mapping[str, Any], columns: Columns) -> tuple[str, str]:
    """Return the problem text (with its choices, if any) and the reference answer of `row`.

    Raises `BadRow` when the row has no usable problem or answer.
    """
    question = _question(row, columns)
    answer = _value(row, columns.answer)
    if columns.wrong:
        values = {name: _value(row, name) for name in (columns.answer, *columns.wrong)}
        choices, letter = shuffled_choices(question, columns.answer, values)
        return problem_with_choices(question, choices), letter
    if columns.choices is None:
        return question, reference_answer(answer, columns.answer_form)
    choices = listed_choices(_value(row, columns.choices))
    letter = reference_letter(answer, columns.answer_form, len(choices), columns.counts_from_zero)
    return problem_with_choices(question, choices), letter


def id_text(row: Mapping[str, Any], columns: Columns) -> str | None:
    """Return the identifier of `row` as text, or None if rows are numbered. Raises `BadRow` when it is not usable."""
    if columns.id is None:
        return None
    value = _value(row, columns.id)
    return text_of(str(value) if type(value) is int else value, "id")


def _question(row: Mapping[str, Any], columns: Columns) -> str:
    """Return the value of the problem column; for a chat, the content of its only user message."""
    value = _value(row, columns.problem)
    if isinstance(value, list) and value:
        value = _user_message(value)
    return text_of(value, "problem")


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
        message = f"{label}: no column has a known name for the {role} (its columns: {', '.join(names)})"
    raise UsageError(message, hint=f"name the column: --set data.{role}_column=NAME")


def _choices_column(rows: Sequence[Mapping[str, Any]], wanted: str | None, names: list[str], label: str) -> str | None:
    """Return the column with lists of choices, or None. A known name counts only if the column contains lists."""
    if wanted == NONE and NONE not in names:
        return None
    if wanted is not None:
        return _named(wanted, names, label)
    lists = [name for name in names if any(isinstance(value := _value(row, name), list) and value for row in rows)]
    return _only_one("choices", CHOICES_NAMES, lists, label) if _matching(CHOICES_NAMES, lists) else None


def _right_and_wrong(source: ProblemSource, names: list[str], label: str) -> tuple[str | None, tuple[str, ...]]:
    """Return the columns of the right choice and of the wrong ones, or None if choices are not stored that way."""
    if source.wrong_columns:
        for name in (source.answer_column, *source.wrong_columns):
            _named(name, names, label)
        return source.answer_column, source.wrong_columns
    right = [name for name in _matching(RIGHT_NAMES, names) if source.answer_column in (None, name)]
    wrong = tuple(name for name in names if WRONG_NAME.fullmatch(name))
    if source.choices_column is not None or len(right) != 1 or not wrong:
        return None, ()
    return right[0], wrong


def _id_column(wanted: str | None, names: list[str], label: str) -> str | None:
    if wanted == NONE and NONE not in names:
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
    user_messages = [message for message in messages if message.get("role", "user") == "user"]
    if len(user_messages) != 1:
        raise BadRow("wrong_type", f"the problem is a chat with {len(user_messages)} user messages")
    return user_messages[0].get("content")
