"""Reference answers as text, changed only where the meaning stays the same.

In this order:
1. One-element lists give their element; integers their digits; floats their shortest form, whole ones without
   `.0`; true, false, NaN, infinities, objects and longer lists are refused.
2. What marks the answer goes away: all up to the `####` of the last line (GSM8K), or around `\\boxed{…}`.
3. Behind `####`, thousands commas of a number go away (`1,234`). Elsewhere a comma may part two answers.
4. A decimal number loses zeros that are its whole fraction (`27.0` gives `27`; `2.50` stays).
All else stays as it stands, `023`, `336^\\circ` and `\\$18` included: to judge those is the grader's work.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal

from igrpo_cli.problems.benches import AnswerForm
from igrpo_cli.problems.rows import BadRow, text_of

GSM8K_ANSWER = re.compile(r"####([^\n#]*)\Z")
THOUSANDS = re.compile(r"-?\d{1,3}(,\d{3})+(\.\d+)?")
WHOLE_DECIMAL = re.compile(r"([+-]?\d+)\.0+")
BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?:\s*\{|\s+(?P<bare>[^\s${}][^$\n]*))")
TEX_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
EXACT_FLOATS = 2.0**53


def reference_answer(value: object, form: AnswerForm) -> str:
    """The answer that stands in `value`. Raises `BadRow` where there is none.

    `plain` takes the whole value; `solution` wants a marked answer (the last `\\boxed{…}`, or behind
    `####`); `auto` takes a marked answer if there is one (of several boxes all must agree), else the
    whole value.
    """
    text = text_of(_as_text(value), "answer")
    if form != "plain":
        text = text_of(_marked_answer(text, form), "answer")
    return WHOLE_DECIMAL.sub(r"\1", text) if WHOLE_DECIMAL.fullmatch(text) else text


def boxed_answers(text: str) -> list[str]:
    """What stands in each outermost `\\boxed{…}`, `\\fbox{…}` or `\\framebox{…}`; a box that never closes is left out.

    `\\boxed 42$`, as some solutions of MATH write it, runs to the dollar or the end of the line.
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
    """A number as text, anything else as it is; `what` names it in the `BadRow` that true, false and NaN raise."""
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
        raise BadRow("several_answers", f"the answer holds {len(boxes)} boxes that differ")
    return boxes[0] if boxes else text


def _closing_brace(text: str, start: int) -> int | None:
    depth = 1
    for match in TEX_BRACES.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return match.start()
    return None
