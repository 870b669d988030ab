"""Multiple choice: a question with its choices becomes a problem that asks for a letter, such as `(B)`."""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Mapping, Sequence
from typing import TypeGuard

from igrpo_cli.problems.answers import number_as_text, reference_answer
from igrpo_cli.problems.benches import AnswerForm
from igrpo_cli.problems.rows import BadRow, text_of

LETTERS = string.ascii_uppercase
INSTRUCTION = "Answer with the letter of the right choice."
"""Ends every problem with choices."""

_LETTER = re.compile(r"(?P<opened>\()?(?P<letter>[A-Za-z])(?(opened)\)|[).]?)")


def problem_with_choices(question: str, choices: Sequence[str]) -> str:
    """The question, a blank line, the choices as `(A) …` one a line, and the instruction."""
    lettered = [f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([question, "", *lettered, "", INSTRUCTION])


def listed_choices(value: object) -> list[str]:
    """The choices in a list of texts or numbers, each on one line. Raises `BadRow`."""
    if value is not None and not isinstance(value, list):
        raise BadRow("wrong_type", f"the choices are not a list but {type(value).__name__}")
    return _checked({f"number {number}": choice for number, choice in enumerate(value or [], 1)})


def shuffled_choices(question: str, right: str, values: Mapping[str, object]) -> tuple[list[str], str]:
    """The choices in `values` (by column) in an order of their own, and the letter of that in column `right`.

    They are sorted by the SHA-256 of the question and the choice. So the order is the same on every machine and
    however the columns stand, it says nothing of which choice is right, and every letter is right about equally often.
    Raises `BadRow`.
    """
    choices = dict(zip(values, _checked(values), strict=True))
    ordered = sorted(choices.values(), key=lambda choice: hashlib.sha256(f"{question}\0{choice}".encode()).digest())
    return ordered, _reference(ordered.index(choices[right]))


def reference_letter(value: object, form: AnswerForm, num_choices: int, counts_from_zero: bool) -> str:
    """The reference answer for a letter (`B`, `(B)`, `b`, `B.`), or for an index where it is known to count from 0.

    Raises `BadRow` for a letter or an index beyond the choices, for an index of unknown base, and for anything else.
    """
    if is_index(value):
        if not counts_from_zero:
            reason = f"the answer is the number {value}, and nothing tells whether choices are counted from 0 or 1"
            raise BadRow("unknown_choice", f"{reason} (0-based numbers belong in a column answer_index)")
        if not 0 <= value < num_choices:
            raise BadRow("unknown_choice", f"the answer is {value}, and choices count from 0 to {num_choices - 1}")
        return _reference(int(value))
    text = reference_answer(value, form)
    match = _LETTER.fullmatch(text)
    index = LETTERS.index(match["letter"].upper()) if match else num_choices
    if index >= num_choices:
        shown = text if len(text) <= 30 else f"{text[:27]}..."
        raise BadRow("unknown_choice", f"the answer is {shown!r}, not a letter from A to {LETTERS[num_choices - 1]}")
    return _reference(index)


def is_index(value: object) -> TypeGuard[int | float]:
    """Whether `value` is a whole number; Parquet may hold it as a float."""
    is_int = isinstance(value, int) and not isinstance(value, bool)
    return is_int or (isinstance(value, float) and value.is_integer())


def _checked(values: Mapping[str, object]) -> list[str]:
    """The choices as texts on one line, after a look at their number and for two that are the same."""
    if not 2 <= len(values) <= len(LETTERS):
        raise BadRow("wrong_number_of_choices", f"the row has {len(values)} choices, not 2 to {len(LETTERS)}")
    places: dict[str, str] = {}
    for place, value in values.items():
        try:
            text = " ".join(text_of(number_as_text(value, "choice"), "choice").split())
        except BadRow as bad:
            raise BadRow(bad.kind, f"{bad.reason} ({place})") from None
        if text in places:
            raise BadRow("duplicate_choice", f"two choices are the same ({places[text]}, {place})")
        places[text] = place
    return list(places)


def _reference(index: int) -> str:
    return f"({LETTERS[index]})"
