"""A row before it is a problem, and what can be wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

AnswerForm = Literal["auto", "plain", "solution"]
"""How the reference answer stands in its column (see `answers`)."""

MAX_ROW_BYTES = 1_000_000
"""Longest JSON line (bytes), problem and answer (characters); longer ones are broken exports."""

BLANK_LINE = "blank_line"
"""The one kind that is ignored rather than refused."""


class BadRow(Exception):
    """A row that cannot become a problem: `reason` completes `FILE row N: …`, `kind` is what it counts as.

    Kinds: of the file `blank_line`, `invalid_utf8`, `invalid_json`, `half_last_line`, `row_too_long`,
    `not_an_object`, `duplicate_key`; of a value `empty_problem`, `empty_answer`, `empty_id`, `wrong_type`,
    `nul`, `no_final_answer`, `several_answers`; of choices `empty_choice`, `duplicate_choice`, `unknown_choice`,
    `wrong_number_of_choices`; among rows `duplicate_problem`, `conflicting_answer`,
    `duplicate_id`.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


RawRow = tuple[int, "dict[str, Any] | BadRow"]
"""Row number from 1 (the line number in JSON lines) and its values, or why there are none."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows with the same columns: one file, or one config of a Hub set."""

    label: str
    """What error messages and `Problem.source` call it."""
    id_prefix: str
    """Identifiers of rows without one are `<id_prefix>-<row>`."""
    rows: Iterator[RawRow]


def text_of(value: object, what: str) -> str:
    """`value` without the white space around it; `what` says whether it is a problem, an answer, an id or a choice.

    Raises `BadRow` for text that is missing, empty, invisible, too long, holds NUL or does not fit UTF-8,
    and for other types.
    """
    if isinstance(value, bytes):
        raise BadRow("invalid_utf8", f"the {what} is not UTF-8")
    if value is not None and not isinstance(value, str):
        raise BadRow("wrong_type", f"the {what} is not a text but {type(value).__name__}")
    text = (value or "").strip()
    if not any(character.isprintable() and not character.isspace() for character in text):
        raise BadRow(f"empty_{what}", f"the {what} is {'missing' if value is None else 'empty'}")
    if "\0" in text:
        raise BadRow("nul", f"the {what} holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRow("invalid_utf8", f"the {what} holds half a surrogate pair") from None
    if len(text) > MAX_ROW_BYTES:
        raise BadRow("row_too_long", f"the {what} has {len(text):,} characters, the limit is {MAX_ROW_BYTES:,}")
    return text
