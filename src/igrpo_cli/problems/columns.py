"""Find the columns of problem, answer, choices and identifier, and read their values from a row."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from igrpo_cli.errors import UsageError
from igrpo_cli.problems.answers import reference_answer
from igrpo_cli.problems.choices import (
    LETTERS,
    is_index,
    names_a_text,
    problem_with_choices,
    read_choices,
    reference_letter,
    shuffled_choices,
)
from igrpo_cli.problems.rows import BadRow, number_as_text, text_of, written_value
from igrpo_cli.problems.sources import ProblemSource
from igrpo_cli.records import AnswerForm

PROBLEM_NAMES = ("problem", "question", "prompt")
ANSWER_NAMES = ("answer", "final_answer", "expected_answer", "reward_model.ground_truth")
SOLUTION_NAME = "solution"
ID_NAMES = ("id", "problem_id", "unique_id", "uuid")
FURTHER_ANSWER_NAMES = ("ground_truth",)
"""Counts only if there is no other answer, but before a solution."""
TEXT_KEYS = ("text", "content", "value", "ground_truth")
"""The key that holds the text of a problem or an answer that is an object."""
CHOICES_NAMES = ("options", "choices")
LETTERED_NAME = re.compile(r"(?:[A-Z]|(?:option|choice|opt|op)[ _-]?(?P<letter>[A-Za-z]))", re.ASCII)
"""A column with one of the choices, such as `A`, `option_a`, `Choice B`."""
LABEL_NAMES = ("answer_index", "answer_idx", "answerkey", "answer_key", "correct", "correct_option", "label")
"""Names of columns of answers that count only if the rows have choices, in order of precedence."""
RIGHT_NAMES = ("correct answer", "correct_answer")
SYSTEM_NAMES = ("system_prompt", "system")
WRONG_NAME = re.compile(r"incorrect[ _]answer[ _]\d+", re.IGNORECASE)
SYSTEM_ROLES = frozenset({"system", "developer"})
CHAT = re.compile(r"\s*\[\s*\{")
ROLE = re.compile(r"""(['"])role\1\s*:""")
CHAT_CURE = "let user and assistant take turns, or name another column: --set data.problem_column=NAME"
ELSEWHERE = "; in data.mix, name it in its source; in a benchmark, rename it"
SHOWN_COLUMNS = 40
"""Maximum number of columns in an error."""
_INDEX = re.compile(r"-?\d+")
NONE = "none"
"""Value of a `*_column` setting that disables a column even if a column with a known name exists."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Holds the column names of one table. `a.b` means key `b` of the object in column `a`, see `_value`."""

    problem: str
    answer: str
    id: str | None
    """None: rows are numbered."""
    answer_form: AnswerForm
    choices: str | None = None
    """Column with the choices; None without one."""
    lettered: tuple[str, ...] = ()
    """Columns of the choices A, B, C, …, if each choice has its own column."""
    wrong: tuple[str, ...] = ()
    """Columns of the wrong choices, if each choice has its own column; `answer` then holds the right one."""
    counts_from_zero: bool = False
    """True if a numeric answer is known to be the 0-based index of a choice."""
    answers_are_texts: bool = False
    """True if answers repeat the text of a choice. It then takes precedence over a letter."""
    system: str | None = None
    """Column of the system prompts; None without one."""
    kept: tuple[str, ...] | None = None
    """Other columns that the source names; None: all."""

    def others_of(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns of `row` besides those that a problem already holds, or those that the source names.

        An answer column of another name than `answer` is one of them, since reward functions may know it by that name.
        """
        if self.kept is not None:
            return {name: row.get(name) for name in self.kept}
        held = {self.problem, self.id, self.system, *([self.answer] if self.answer.lower() == "answer" else [])}
        return {name: value for name, value in row.items() if name not in held}


def find_columns(rows: Sequence[Mapping[str, Any]], source: ProblemSource, label: str) -> Columns:
    """Return the columns named in `source`, or else the columns of `rows` with a known name, in any letter case.

    A solution column is used only if no column holds the answer itself. Choices are one column, a column for each
    letter, or the right choice and the wrong ones. Numeric answers count from 0 if the name of their column ends in
    `index` or `idx`, or if one of `rows` contains a 0. Raises `UsageError`, with the names of the columns, when a named
    column is missing, and when no column or more than one matches.
    """
    names = _names_of(rows)
    problem = _named(source.problem_column, rows, names, label)
    problem = problem or _text_within("problem", _only_one("problem", PROBLEM_NAMES, names, label), rows, label)
    id_column = _id_column(source.id_column, rows, names, label)
    system, kept = _system_column(source.system_column, rows, names, label), source.columns
    whole = list(dict.fromkeys(name for row in rows for name in row))
    if missing := [name for name in kept or () if name not in whole]:
        raise UsageError(f"data.columns: {label} has no column {missing[0]} (its columns: {_listing(whole)})")
    right, wrong = _right_and_wrong(source, rows, names, label)
    if right is not None:
        return Columns(problem, right, id_column, "plain", wrong=wrong, system=system, kept=kept)
    choices = _choices_column(rows, source.choices_column, names, label)
    lettered = () if choices is not None or source.choices_column is not None else _lettered_columns(names)
    answer = _named(source.answer_column, rows, names, label)
    if answer is None:
        labels = [(name,) for name in LABEL_NAMES] if choices is not None or lettered else []
        tiers = (ANSWER_NAMES, *labels, FURTHER_ANSWER_NAMES)
        known = next((known for known in tiers if _matching(known, names)), (SOLUTION_NAME,))
        answer = _text_within("answer", _only_one("answer", known, names, label), rows, label)
    form = source.answer_form
    if form == "auto" and answer.lower().rpartition(".")[2] == SOLUTION_NAME:
        form = "solution"
    columns = Columns(problem, answer, id_column, form, choices, lettered, system=system, kept=kept)
    values = [_value(row, answer) for row in rows]
    counts_from_zero = _is_index_name(answer) or any(is_index(value) and value == 0 for value in values)
    are_texts = answer.lower() not in LABEL_NAMES and any(
        names_a_text(value, form, _choices_of(row, columns))
        for row, value in zip(rows, values, strict=True)
        if choices is not None or lettered
    )
    return replace(columns, counts_from_zero=counts_from_zero, answers_are_texts=are_texts)


class Chat(NamedTuple):
    """The messages of a problem column."""

    question: str
    """The last user turn."""
    earlier_turns: str = ""
    """As in `records.Problem`."""
    prefill: str = ""
    """The turn of the assistant at the end, as it is written."""
    system: str = ""
    """The system turns, or the system prompt in a column of its own."""


def chat_and_answer(row: Mapping[str, Any], columns: Columns) -> tuple[Chat, str]:
    """Return the problem of `row`, its question with the choices if there are any, and the reference answer.

    Raises `BadRow` when the row has no usable problem or answer.
    """
    chat = _chat(row, columns)
    question, answer = _question_and_answer(chat.question, row, columns)
    return chat._replace(question=question), answer


def _question_and_answer(question: str, row: Mapping[str, Any], columns: Columns) -> tuple[str, str]:
    answer = _value(row, columns.answer)
    if columns.wrong:
        values = {name: _value(row, name) for name in (columns.answer, *columns.wrong)}
        texts, letter = shuffled_choices(question, columns.answer, values)
        return problem_with_choices(question, texts), letter
    if columns.choices is None and not columns.lettered:
        return question, reference_answer(answer, columns.answer_form)
    if isinstance(answer, str) and answer.strip().isdecimal() and _is_index_name(columns.answer):
        answer = int(answer)  # as CSV stores it
    choices = read_choices(_choices_of(row, columns))
    zero_based, is_text = columns.counts_from_zero, columns.answers_are_texts
    letter = reference_letter(answer, columns.answer_form, choices, counts_from_zero=zero_based, is_text=is_text)
    return problem_with_choices(question, choices.texts), letter


def id_text(row: Mapping[str, Any], columns: Columns) -> str | None:
    """Return the identifier of `row` as text, or None if rows are numbered. Raises `BadRow` when it is not usable."""
    if columns.id is None:
        return None
    value = _value(row, columns.id)
    return text_of(number_as_text(value, "id"), "id")


def _chat(row: Mapping[str, Any], columns: Columns) -> Chat:
    value = _value(row, columns.problem)
    if isinstance(value, str) and CHAT.match(value):
        value = written if isinstance(written := written_value(value), list) else value
        if isinstance(value, str) and ROLE.search(value):
            raise BadRow("wrong_type", "the problem is a chat written as text, and is not JSON", "write a JSON list")
    chat = _read_chat(value) if isinstance(value, list) and value else Chat(text_of(value, "problem"))
    written = None if columns.system is None else _value(row, columns.system)
    if written is None or (isinstance(written, str) and not written.strip()):
        return chat
    system = text_of(written, "system_prompt")
    if chat.system not in ("", system):
        reason = f"the chat has a system turn, and column {columns.system} has another system prompt"
        raise BadRow("chat_turns", reason, "remove one of them, or ignore the column: --set data.system_column=none")
    return chat._replace(system=system)


def _choices_of(row: Mapping[str, Any], columns: Columns) -> Any:
    """Return the choices of a row in one of the forms that `read_choices` takes."""
    if columns.choices is not None:
        return _value(row, columns.choices)
    of_letters = {name[-1].upper(): _value(row, name) for name in columns.lettered}
    return {letter: None if text == "" else text for letter, text in of_letters.items()}


def _names_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of all columns, then those of the keys of objects in them, at any depth."""
    names = dict.fromkeys(name for row in rows for name in row)
    nested = dict.fromkeys(key for row in rows for name, value in row.items() for key in _keys_below(name, value))
    return [*names, *nested]


def _keys_below(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        with suppress(BadRow):
            value = written_value(value)
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield f"{name}.{key}"
            yield from _keys_below(f"{name}.{key}", each)


def _named(wanted: str | None, rows: Sequence[Mapping[str, Any]], names: list[str], label: str) -> str | None:
    """Return the column that a setting names. It exists if some row has it: a list is not among `names`."""
    if wanted is None or wanted in names or any(_value(row, wanted) is not None for row in rows):
        return wanted
    raise UsageError(f"{label} has no column {wanted} (its columns: {_listing(names)})")


def _listing(names: list[str]) -> str:
    return ", ".join(names[:SHOWN_COLUMNS]) + (", …" if len(names) > SHOWN_COLUMNS else "")


def _text_within(role: str, column: str, rows: Sequence[Mapping[str, Any]], label: str) -> str:
    """Return `column`, or the key with the text if its values are objects. Raises `UsageError` if no key is known."""
    values = [value for row in rows if (value := _value(row, column)) is not None]
    if not values or not all(isinstance(value, dict) for value in values):
        return column
    keys = list(dict.fromkeys(key for value in values for key in value))
    found = [key for key in keys if key.lower() in TEXT_KEYS]
    if len(found) == 1:
        return f"{column}.{found[0]}"
    shown = _listing([f"{column}.{key}" for key in keys])
    raise UsageError(
        f"{label}: the {role} in column {column} is an object ({shown})",
        hint=f"name one of its keys: --set data.{role}_column={column}.KEY{ELSEWHERE}",
    )


def _matching(known: Sequence[str], names: list[str]) -> list[str]:
    return [name for name in names if name.lower() in known]


def _only_one(role: str, known: Sequence[str], names: list[str], label: str) -> str:
    found = _matching(known, names)
    if len(found) == 1:
        return found[0]
    message = f"{label}: {len(found)} columns may hold the {role}: {', '.join(found)}"
    if not found:
        message = f"{label}: no column has a known name for the {role} (its columns: {_listing(names)})"
    raise UsageError(message, hint=f"name the column: --set data.{role}_column=NAME{ELSEWHERE}")


def _choices_column(rows: Sequence[Mapping[str, Any]], wanted: str | None, names: list[str], label: str) -> str | None:
    """Return the column of the choices, or None. A known name counts only if the column is not empty."""
    if wanted == NONE and NONE not in names:
        return None
    if wanted is not None:
        return _named(wanted, rows, names, label)
    known = [name for name in _matching(CHOICES_NAMES, names) if any(_value(row, name) for row in rows)]
    return _only_one("choices", CHOICES_NAMES, known, label) if known else None


def _lettered_columns(names: list[str]) -> tuple[str, ...]:
    """Return the columns A, B, C, … of at least three choices, all with the same words before the letter; or ()."""
    found: dict[str, dict[str, str]] = {}
    for name in filter(LETTERED_NAME.fullmatch, names):
        found.setdefault(name[:-1], {})[name[-1].upper()] = name
    for columns in found.values():
        letters = "".join(sorted(columns))
        if len(letters) > 2 and LETTERS.startswith(letters):
            return tuple(columns[letter] for letter in letters)
    return ()


def _is_index_name(name: str) -> bool:
    return name.lower().endswith(("index", "idx"))


def _right_and_wrong(
    source: ProblemSource, rows: Sequence[Mapping[str, Any]], names: list[str], label: str
) -> tuple[str | None, tuple[str, ...]]:
    """Return the columns of the right choice and of the wrong ones, or None if choices are not stored that way."""
    if source.wrong_columns:
        for name in (source.answer_column, *source.wrong_columns):
            _named(name, rows, names, label)
        return source.answer_column, source.wrong_columns
    right = [name for name in _matching(RIGHT_NAMES, names) if source.answer_column in (None, name)]
    wrong = tuple(name for name in names if WRONG_NAME.fullmatch(name))
    if source.choices_column is not None or len(right) != 1 or not wrong:
        return None, ()
    return right[0], wrong


def _id_column(wanted: str | None, rows: Sequence[Mapping[str, Any]], names: list[str], label: str) -> str | None:
    if wanted == NONE and NONE not in names:
        return None
    if wanted is not None:
        return _named(wanted, rows, names, label)
    found = sorted(_matching(ID_NAMES, names), key=lambda name: ID_NAMES.index(name.lower()))
    return found[0] if found else None


def _system_column(wanted: str | None, rows: Sequence[Mapping[str, Any]], names: list[str], label: str) -> str | None:
    """Return the column of the system prompts, or None. A known name counts only if the column holds texts alone."""
    if wanted == NONE and NONE not in names:
        return None
    if wanted is not None:
        return _named(wanted, rows, names, label)
    known = [
        name
        for name in _matching(SYSTEM_NAMES, names)
        if all(isinstance(_value(row, name), str | None) for row in rows)
    ]
    return _only_one("system", SYSTEM_NAMES, known, label) if known else None


def _value(row: Mapping[str, Any], column: str) -> Any:
    """Return the value of a column, or what is below it: `a.b.0` is the first element of the list `b` in object `a`.

    Objects and lists may be written as text. A value that does not exist is None.
    """
    return row[column] if column in row else _below(row, column)


def _below(value: Any, path: str) -> Any:
    """Return what is at `path` in nested objects and lists. The name of a key may itself contain a dot."""
    if isinstance(value, str):
        try:
            value = written_value(value)
        except BadRow:
            return None
    if isinstance(value, list):
        place, _, path = path.partition(".")
        index = int(place) if _INDEX.fullmatch(place) else len(value)
        found = value[index] if -len(value) <= index < len(value) else None
        return _below(found, path) if path else found
    if not isinstance(value, Mapping):
        return None
    parts = path.split(".")
    for number in range(len(parts), 0, -1):
        key, path = ".".join(parts[:number]), ".".join(parts[number:])
        if key in value:
            return _below(value[key], path) if path else value[key]
    return None


def _read_chat(messages: list[Any]) -> Chat:
    """Return the parts of a chat: system turns, turns of user and assistant, and perhaps the beginning of an answer.

    Several system turns are joined with blank lines between them. Raises `BadRow` for any other order of roles.
    """
    if not all(isinstance(message, dict) for message in messages):
        raise BadRow("wrong_type", "the problem is a list, but not one of chat messages")
    if any("from" in message and "value" in message for message in messages):
        raise BadRow("chat_turns", "the messages of the chat have from and value", "name them role and content")
    roles = [message.get("role", "user") for message in messages]
    num_system = next((place for place, role in enumerate(roles) if role not in SYSTEM_ROLES), len(roles))
    turns = roles[num_system:]
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2) + ["user"] * (len(turns) % 2):
        raise BadRow("chat_turns", f"the problem is a chat of {', '.join(map(str, roles))}", CHAT_CURE)
    prefill = ""
    if turns[-1] == "assistant":
        prefill = _content(messages[-1])
        text_of(prefill, "turn")  # White space at the end of the beginning of an answer counts.
        messages = messages[:-1]
    texts = [text_of(_content(message), "turn") for message in messages]
    system, (*earlier, question) = "\n\n".join(texts[:num_system]), texts[num_system:]
    return Chat(question, json.dumps(earlier, ensure_ascii=False) if earlier else "", prefill, system)


def _content(message: Mapping[str, Any]) -> Any:
    """Return the content of a chat message; parts of text are joined. Raises `BadRow` for content elsewhere."""
    if further := [key for key in ("reasoning_content", "reasoning", "thinking", "tool_calls") if message.get(key)]:
        reason = f"a message of the chat has {further[0]}, which is in no prompt"
        raise BadRow("chat_turns", reason, "write it into the content of the message, as the model writes it")
    content = message.get("content")
    if not isinstance(content, list):
        return content
    parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
    texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
    return "".join(texts) if len(texts) == len(content) else content
