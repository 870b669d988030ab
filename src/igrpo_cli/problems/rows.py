"""Rows as they are read from a source, and the reasons for which a row is rejected."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

AnswerForm = Literal["auto", "plain", "solution"]
"""How a column holds the reference answer (see `answers.reference_answer`)."""

MAX_ROW_BYTES = 1_000_000
"""Maximum length of a JSON line (bytes), of a problem and of an answer (characters)."""

BLANK_LINE = "blank_line"
"""The only kind of bad row that is counted without an error."""


class BadRow(Exception):
    """Signals that a row cannot become a problem.

    `reason` completes the message `FILE row N: …`. `kind` is the name under which the row is counted:

    - errors of the file: `blank_line`, `invalid_utf8`, `invalid_json`, `half_last_line`, `row_too_long`,
      `not_an_object`, `duplicate_key`
    - errors of a value: `empty_problem`, `empty_answer`, `empty_id`, `wrong_type`, `nul`, `no_final_answer`,
      `several_answers`
    - errors of choices: `empty_choice`, `duplicate_choice`, `unknown_choice`, `wrong_number_of_choices`
    - conflicts with other rows: `duplicate_problem`, `conflicting_answer`, `duplicate_id`
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


RawRow = tuple[int, "dict[str, Any] | BadRow"]
"""Row number from 1 (in JSON lines: the line number), and the values of the row or the reason why it has none."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows with the same columns: one file, or one config of a Hub dataset."""

    label: str
    """Name of the table in error messages and in `Problem.source`."""
    id_prefix: str
    """A row without an identifier gets `<id_prefix>-<row>`."""
    rows: Iterator[RawRow]


def text_of(value: object, what: str) -> str:
    """Return the text `value` without surrounding white space.

    `what` names the value in messages: `problem`, `answer`, `id` or `choice`. Raises `BadRow` when the value is not a
    text, or when the text is missing, empty, invisible or too long, contains NUL, or cannot be encoded as UTF-8.
    """
    if isinstance(value, bytes):
        raise BadRow("invalid_utf8", f"the {what} is not UTF-8")
    if value is not None and not isinstance(value, str):
        raise BadRow("wrong_type", f"the {what} is not a text but {type(value).__name__}")
    text = (value or "").strip()
    if not any(character.isprintable() and not character.isspace() for character in text):
        raise BadRow(f"empty_{what}", f"the {what} is {'missing' if value is None else 'empty'}")
    if "\0" in text:
        raise BadRow("nul", f"the {what} contains a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRow("invalid_utf8", f"the {what} contains half a surrogate pair") from None
    if len(text) > MAX_ROW_BYTES:
        raise BadRow("row_too_long", f"the {what} has {len(text):,} characters, the limit is {MAX_ROW_BYTES:,}")
    return text
