"""Rows as they are read from a source, and the reasons for which a row is rejected."""

from __future__ import annotations

import ast
import io
import json
import math
import tokenize
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from igrpo_cli.texts import JSON_CURE, control_fault

MAX_ROW_BYTES = 1_000_000
"""Maximum length of a JSON line (bytes), of a problem and of an answer (characters)."""

EXACT_FLOATS = 2.0**53

BLANK_LINE = "blank_line"
"""The only kind of bad row that is counted without an error."""


class BadRow(Exception):
    """Signals that a row cannot become a problem.

    `reason` completes the message `FILE row N: …`. `kind` is the name under which the row is counted:

    - errors of the file: `blank_line`, `invalid_utf8`, `invalid_json`, `half_last_line`, `row_too_long`,
      `not_an_object`, `duplicate_key`, `wrong_number_of_cells`
    - errors of a value: `empty_problem`, `empty_answer`, `empty_id`, `wrong_type`, `nul`, `control_character`,
      `no_final_answer`, `several_answers`, `chat_turns`, `empty_turn`
    - errors of choices: `empty_choice`, `duplicate_choice`, `unknown_choice`, `wrong_number_of_choices`
    - conflicts with other rows: `duplicate_problem`, `conflicting_answer`, `duplicate_id`
    """

    def __init__(self, kind: str, reason: str, cure: str = "correct the row") -> None:
        """`cure` says in the imperative how the row becomes usable."""
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
        self.cure = cure


RawRow = tuple[int, "dict[str, Any] | BadRow"]
"""Row number from 1 (in lines of text: the line number), and the values of the row or the reason why it has none."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows with the same columns: one file, or one config of a Hub dataset."""

    label: str
    """Name of the table in error messages and in `Problem.source`."""
    id_prefix: str
    """A row without an identifier gets `<id_prefix>-<row>`."""
    rows: Iterator[RawRow]
    source: str = ""
    """Name of the source among several, with which ids and places begin; empty for the only one."""

    @property
    def full_label(self) -> str:
        """Label after the name of the source."""
        return f"{self.source}: {self.label}" if self.source else self.label


def text_of(value: object, what: str) -> str:
    """Return the text `value` without surrounding white space.

    `what` names the value in messages: `problem`, `turn`, `answer`, `id` or `choice`. Raises `BadRow` when the value is
    not a text, or when the text is missing, empty, invisible or too long, contains NUL or another control character
    (see `texts.control_fault`), or cannot be encoded as UTF-8.
    """
    if isinstance(value, bytes):
        raise BadRow("invalid_utf8", f"the {what} is not UTF-8")
    if value is not None and not isinstance(value, str):
        raise BadRow("wrong_type", f"the {what} is not a text but {type(value).__name__}")
    text = (value or "").strip()
    if text and len(text) <= MAX_ROW_BYTES and value and value.isprintable():
        return text  # Nothing below applies. Most texts end here.
    if (
        (fault := control_fault(value or "", is_mathematics=what in ("answer", "choice")))
        and value
        and "\0" not in value
    ):
        raise BadRow("control_character", f"the {what} contains {fault} (character {fault.position + 1})", JSON_CURE)
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


def number_as_text(value: object, what: str) -> object:
    """Return a number as text and any other value unchanged.

    `what` names the value in messages. Raises `BadRow` for booleans, NaN and infinities.
    """
    if isinstance(value, bool):
        raise BadRow("wrong_type", f"the {what} is true or false, not a text or a number")
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _float_as_text(value, what)
    if isinstance(value, Decimal) and value.is_finite():
        return f"{value:f}"
    return value


def _float_as_text(value: float, what: str) -> str:
    if not math.isfinite(value):
        raise BadRow("wrong_type", f"the {what} is {value}")
    return str(int(value)) if value.is_integer() and abs(value) < EXACT_FLOATS else repr(value)


def written_value(text: str) -> Any:
    """Return the list or object that `text` is the notation of, in JSON or Python; None for any other text.

    Raises `BadRow` for a list whose elements have no commas between them, as NumPy prints it.
    """
    text = text.strip()
    if (text[:1], text[-1:]) not in (("[", "]"), ("{", "}")):
        return None
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    with suppress(ValueError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of escapes that it does not know.
        value = ast.literal_eval(text)
        if not isinstance(value, list | dict):
            return None
        if _num_strings(text) != sum(token.type == tokenize.STRING for token in _tokens(text)):
            raise BadRow("wrong_type", "a list is written as text, and a comma is missing in it", "write a JSON list")
        return value
    return None


def _num_strings(text: str) -> int:
    """Return the number of texts in Python notation. Texts without a comma between them are one."""
    nodes = ast.walk(ast.parse(text, mode="eval"))
    return sum(isinstance(node, ast.Constant) and isinstance(node.value, str) for node in nodes)


def _tokens(text: str) -> Iterator[tokenize.TokenInfo]:
    return tokenize.generate_tokens(io.StringIO(text).readline)


class BinaryValueError(Exception):
    """A value holds bytes or a Python object, such as an image."""


def column_text(value: object) -> str:
    """Return a value of a column as JSON: NaN and infinity as null, dates and times as text.

    Raises `BinaryValueError` for bytes and objects at any depth.
    """
    try:
        text = _JSON.encode(value)
    except (ValueError, TypeError):  # NaN, infinity, or a key that JSON does not have
        text = _JSON.encode(_for_json(value))
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()  # half a surrogate pair


def _for_json(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _for_json(each) for key, each in value.items()}
    return [_for_json(each) for each in value] if isinstance(value, list | tuple) else value


def _other_kind(value: object) -> object:
    if isinstance(value, Decimal):
        return float(value) if value.is_finite() else None
    if isinstance(value, date | time | timedelta | UUID):
        return str(value)
    raise BinaryValueError


_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_other_kind)
