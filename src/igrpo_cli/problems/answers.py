"""Normalise reference answers to text, and turn multiple-choice rows into problems with a letter as the answer.

The steps change the notation of an answer and never its meaning:

1. A list with one element becomes its element. An integer becomes its digits, and a float its shortest form, without
   `.0` for a whole number. Booleans, NaN, infinities, objects and longer lists are rejected.
2. The marker of the answer is removed: everything up to the last `####` (GSM8K), or the `\\boxed{…}` around it.
3. After `####`, thousands separators are removed (`1,234`). Elsewhere a comma may separate two answers.
4. A fraction of zeros is removed (`27.0` becomes `27`, `2.50` stays).

Everything else is kept, for example `023`, `336^\\circ` and `\\$18`: the grader compares those.
"""

from __future__ import annotations

import hashlib
import math
import re
import string
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TypeGuard

from igrpo_cli.problems.rows import AnswerForm, BadRow, text_of

GSM8K_ANSWER = re.compile(r"####([^\n#]*)\Z")
THOUSANDS = re.compile(r"-?\d{1,3}(,\d{3})+(\.\d+)?")
WHOLE_DECIMAL = re.compile(r"([+-]?\d+)\.0+")
BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?:\s*\{|\s+(?P<bare>[^\s${}][^$\n]*))")
TEX_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
EXACT_FLOATS = 2.0**53


def reference_answer(value: object, form: AnswerForm) -> str:
    """Return the reference answer in `value`.

    The form `plain` takes the whole value. `solution` takes the marked answer: the text after `####`, or else the last
    `\\boxed{…}`. `auto` takes a marked answer if there is one (several boxes must agree), or else the whole value.
    Raises `BadRow` when there is no answer.
    """
    text = text_of(_as_text(value), "answer")
    if form != "plain":
        text = text_of(_marked_answer(text, form), "answer")
    return WHOLE_DECIMAL.sub(r"\1", text) if WHOLE_DECIMAL.fullmatch(text) else text


def boxed_answers(text: str) -> list[str]:
    """Return the content of each outermost `\\boxed{…}`, `\\fbox{…}` or `\\framebox{…}`, in order.

    A box that is never closed is left out. `\\boxed 42$`, as in some solutions of MATH, ends at the dollar sign or at
    the end of the line.
    """
    found: list[str] = []
    position = 0
    while match := BOX.search(text, position):
        position = match.end()
        if match["bare"] is not None:
            found.append(match["bare"].strip())
        elif (end := _closing_brace(text, position)) is not None:
            found.append(text[position:end].strip())
            position = end
    return found


def _as_text(value: object) -> object:
    while isinstance(value, list):
        if len(value) > 1:
            raise BadRow("wrong_type", f"the answer is a list of {len(value)}")
        value = value[0] if value else None
    return number_as_text(value, "answer")


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


def _marked_answer(text: str, form: AnswerForm) -> str:
    if match := GSM8K_ANSWER.search(text):
        answer = match[1].strip()
        return answer.replace(",", "") if THOUSANDS.fullmatch(answer) else answer
    boxes = boxed_answers(text)
    if form == "solution":
        if not boxes:
            raise BadRow("no_final_answer", "the solution marks no answer (neither \\boxed{…} nor ####)")
        return boxes[-1]
    if len(set(boxes)) > 1:
        raise BadRow("several_answers", f"the answer contains {len(boxes)} different boxes")
    return boxes[0] if boxes else text


def _closing_brace(text: str, start: int) -> int | None:
    depth = 1
    for match in TEX_BRACES.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return match.start()
    return None


LETTERS = string.ascii_uppercase
INSTRUCTION = "Answer with the letter of the right choice."
"""The last line of every problem with choices."""

_LETTER = re.compile(r"(?P<opened>\()?(?P<letter>[A-Za-z])(?(opened)\)|[).]?)")


def problem_with_choices(question: str, choices: Sequence[str]) -> str:
    """Return the text of a problem: the question, the choices as lines `(A) …`, and `INSTRUCTION`."""
    lettered = [f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([question, "", *lettered, "", INSTRUCTION])


def listed_choices(value: object) -> list[str]:
    """Return the choices in a list of texts or numbers, each as one line. Raises `BadRow` when they are not usable."""
    if value is not None and not isinstance(value, list):
        raise BadRow("wrong_type", f"the choices are not a list but {type(value).__name__}")
    return _checked({f"number {number}": choice for number, choice in enumerate(value or [], 1)})


def shuffled_choices(question: str, right: str, values: Mapping[str, object]) -> tuple[list[str], str]:
    """Return the choices in `values` (by column) in a shuffled order, and the letter of the choice in column `right`.

    The choices are sorted by the SHA-256 of question and choice. The order is therefore the same on every machine and
    for every order of the columns, and each letter is right about equally often. Raises `BadRow` when the choices are
    not usable.
    """
    choices = dict(zip(values, _checked(values), strict=True))
    ordered = sorted(choices.values(), key=lambda choice: hashlib.sha256(f"{question}\0{choice}".encode()).digest())
    return ordered, _reference(ordered.index(choices[right]))


def reference_letter(value: object, form: AnswerForm, num_choices: int, counts_from_zero: bool) -> str:
    """Return the reference answer, such as `(B)`, for a letter (`B`, `(B)`, `b`, `B.`) or an index.

    An index is accepted only if it is known to count from 0. Raises `BadRow` for a letter or index outside the
    choices, for an index with an unknown base, and for any other value.
    """
    if is_index(value):
        if not counts_from_zero:
            reason = f"the answer is the number {value}, and it is unknown whether choices are counted from 0 or 1"
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
    """Return True for a whole number; Parquet may store it as a float."""
    is_int = isinstance(value, int) and not isinstance(value, bool)
    return is_int or (isinstance(value, float) and value.is_integer())


def _checked(values: Mapping[str, object]) -> list[str]:
    """Return the choices as texts of one line. Raises `BadRow` for a wrong number of choices and for duplicates."""
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
