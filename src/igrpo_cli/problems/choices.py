"""Read the choices of a row in their common forms, and turn the row into a problem with a letter as the answer.

The forms: a list; an object of letters and choices; an object of a list `text` and a list `label`; a list of objects
with `text` and `label`; a text such as `a) 5, b) 6`; and any of the first four written as text.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from igrpo_cli.problems.answers import reference_answer
from igrpo_cli.problems.rows import BadRow, number_as_text, text_of, written_value
from igrpo_cli.records import AnswerForm

LETTERS = string.ascii_uppercase
INSTRUCTION = "Answer with the letter of the right choice."
"""The last line of every problem with choices."""
NO_CHOICES_CURE = "correct the row, or ignore the column: --set data.choices_column=none (in a benchmark, remove it)"

_LABEL = re.compile(r"(?P<opened>\()?(?P<label>[A-Za-z]|[0-9]{1,2})(?(opened)\)|[).:]?)")
_MARKER = re.compile(r"(?<![\w(])(?P<opened>\(?)(?P<letter>[A-Za-z]) ?(?P<closed>[).:])")


@dataclass(frozen=True, slots=True)
class Choices:
    """Holds the choices of one row."""

    texts: list[str]
    """Each on one line, without its label."""
    labels: list[str]
    """The names by which the answer may refer to them, in capitals: letters, or the labels of the row."""


def problem_with_choices(question: str, choices: Sequence[str]) -> str:
    """Return the text of a problem: the question, the choices as lines `(A) …`, and `INSTRUCTION`."""
    lettered = [f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([question, "", *lettered, "", INSTRUCTION])


def read_choices(value: object) -> Choices:
    """Return the choices in `value`, in any of the forms. Raises `BadRow` when they are not usable."""
    if isinstance(value, str):
        written = written_value(value)
        value = _choices_in_text(value) if written is None else written
    if isinstance(value, dict):
        return _from_object(value)
    if value is not None and not isinstance(value, list):
        raise BadRow("wrong_type", f"the choices are not a list but {type(value).__name__}", NO_CHOICES_CURE)
    choices = list(value or [])
    if choices and all(isinstance(choice, dict) for choice in choices):
        return _from_object({name: [choice.get(name) for choice in choices] for name in ("text", "label")})
    letters, texts = _without_letters(choices)
    return Choices(_checked(dict(zip(letters, texts, strict=True))), letters) if letters else _lettered(choices)


def shuffled_choices(question: str, right: str, values: Mapping[str, object]) -> tuple[list[str], str]:
    """Return the choices in `values` (by column) in a shuffled order, and the letter of the choice in column `right`.

    The choices are sorted by the SHA-256 of question and choice. The order is therefore the same on every machine and
    for every order of the columns, and each letter is right about equally often. Raises `BadRow` when the choices are
    not usable.
    """
    choices = dict(zip(values, _checked(values), strict=True))
    ordered = sorted(choices.values(), key=lambda choice: hashlib.sha256(f"{question}\0{choice}".encode()).digest())
    return ordered, _reference(ordered.index(choices[right]))


def reference_letter(
    value: object, form: AnswerForm, choices: Choices, *, counts_from_zero: bool, is_text: bool
) -> str:
    """Return the reference answer, such as `(B)`, for a label (`B`, `(B)`, `b`, `B.`), an index, or a choice itself.

    With `is_text` the text of a choice takes precedence over a label. An index is accepted only if it is known to count
    from 0. Raises `BadRow` for a value that names none of the choices, and for an index with an unknown base.
    """
    if is_index(value) and (counts_from_zero or 0 <= value <= len(choices.texts)):
        return _reference(_index(int(value), len(choices.texts), counts_from_zero))
    text = reference_answer(value, form)
    by_label, by_text = _with_label(text, choices), _with_text(text, choices)
    found = by_text if by_label is None or (is_text and by_text is not None) else by_label
    if found is None:
        shown = text if len(text) <= 30 else f"{text[:27]}..."
        known = f"{choices.labels[0]} to {choices.labels[-1]}"
        raise BadRow("unknown_choice", f"the answer is {shown!r}, not a letter from {known}, nor one of the choices")
    return _reference(found)


def names_a_text(value: object, form: AnswerForm, choices: object) -> bool:
    """Return True if an answer is the text of a choice and not a label. Unusable values are not."""
    try:
        read = read_choices(choices)
        text = reference_answer(value, form)
    except BadRow:
        return False
    return _with_text(text, read) is not None and _with_label(text, read) is None


def is_index(value: object) -> TypeGuard[int | float]:
    """Return True for a whole number; Parquet may store it as a float."""
    is_int = isinstance(value, int) and not isinstance(value, bool)
    return is_int or (isinstance(value, float) and value.is_integer())


def _from_object(value: Mapping[Any, Any]) -> Choices:
    """Return the choices of an object. Parquet fills the keys that a row lacks with nulls, which are left out."""
    texts, labels = value.get("text"), value.get("label")
    if isinstance(texts, list):
        if not isinstance(labels, list) or all(label is None for label in labels):
            return _lettered(texts)
        if len(labels) != len(texts):
            counts = f"{len(texts)} texts and {len(labels)} labels"
            raise BadRow("wrong_number_of_choices", f"the choices have {counts}")
        names = labels
    else:
        present = {name: text for name, text in value.items() if text is not None}
        texts, names = list(present.values()), list(present)
    matches = [_LABEL.fullmatch(str(name).strip()) for name in names]
    found = [match["label"].upper() for match in matches if match is not None]
    if len(found) != len(names) or len(set(found)) != len(found):
        shown = ", ".join(map(str, names))[:60]
        raise BadRow("wrong_type", f"the choices have the names {shown}, not letters or numbers", NO_CHOICES_CURE)
    return Choices(_checked(dict(zip(found, texts, strict=True))), found)


def _lettered(values: Sequence[object]) -> Choices:
    texts = _checked({f"number {number}": choice for number, choice in enumerate(values, 1)})
    return Choices(texts, list(LETTERS[: len(texts)]))


def _without_letters(choices: list[Any]) -> tuple[list[str], list[str]]:
    """Return the letters `A)`, `B)`, … in front of the choices, in any order, and the texts after them.

    Both are empty unless every choice has a letter of its own.
    """
    markers = [_MARKER.match(choice.strip()) if isinstance(choice, str) else None for choice in choices]
    letters = [marker["letter"].upper() for marker in markers if marker is not None]
    styles = {(marker["opened"], marker["closed"]) for marker in markers if marker is not None}
    if sorted(letters) != list(LETTERS[: len(choices)]) or len(styles) != 1:
        return [], []
    return letters, [choice.strip()[marker.end() :] for choice, marker in zip(choices, markers, strict=True) if marker]


def _choices_in_text(text: str) -> list[str]:
    """Return the choices of a text such as `a) 5, b) 6` or `(A) 5 (B) 6`. The letters must be in order, each once."""
    text = text.strip()
    found = list(_MARKER.finditer(text))
    style = found[0].group("opened", "closed") if found and found[0].start() == 0 else None
    used: list[re.Match[str]] = []
    for marker in found:
        letter = marker["letter"].upper()
        if marker.group("opened", "closed") != style or letter > LETTERS[min(len(used), 25)]:
            continue
        if letter != LETTERS[min(len(used), 25)]:
            raise BadRow("unknown_choice", f"the letter {letter} occurs twice in the choices", NO_CHOICES_CURE)
        used.append(marker)
    if len(used) < 2:
        reason = "the choices are not a list but text in which no letters such as a), b) are found"
        raise BadRow("wrong_type", reason, NO_CHOICES_CURE)
    ends = [*(marker.start() for marker in used[1:]), len(text)]
    return [text[marker.end() : end].strip(" \t\r\n,;") for marker, end in zip(used, ends, strict=True)]


def _index(value: int, num_choices: int, counts_from_zero: bool) -> int:
    if not counts_from_zero:
        reason = f"the answer is the number {value}, and it is unknown whether choices are counted from 0 or 1"
        raise BadRow("unknown_choice", f"{reason} (0-based numbers belong in a column answer_index)")
    if not 0 <= value < num_choices:
        raise BadRow("unknown_choice", f"the answer is {value}, and choices count from 0 to {num_choices - 1}")
    return value


def _with_label(text: str, choices: Choices) -> int | None:
    match = _LABEL.fullmatch(text)
    label = match["label"].upper() if match else None
    return choices.labels.index(label) if label in choices.labels else None


def _with_text(text: str, choices: Choices) -> int | None:
    text = " ".join(text.split())
    return choices.texts.index(text) if text in choices.texts else None


def _checked(values: Mapping[str, object]) -> list[str]:
    """Return the choices as texts of one line. Raises `BadRow` for a wrong number of choices and for duplicates."""
    if not 2 <= len(values) <= len(LETTERS):
        raise BadRow("wrong_number_of_choices", f"the row has {len(values)} choices, not 2 to {len(LETTERS)}")
    places: dict[str, str] = {}
    for place, value in values.items():
        try:
            text = " ".join(text_of(number_as_text(value, "choice"), "choice").split())
        except BadRow as bad:
            raise BadRow(bad.kind, f"{bad.reason} ({place})", bad.cure) from None
        if text in places:
            raise BadRow("duplicate_choice", f"two choices are the same ({places[text]}, {place})")
        places[text] = place
    return list(places)


def _reference(index: int) -> str:
    return f"({LETTERS[index]})"
