"""Normalise reference answers to text.

The steps change the notation of an answer and never its meaning:

1. A list with one element becomes its element, and so does a list of texts that is written as text (`['7']`). An
   integer becomes its digits, and a float its shortest form, without `.0` for a whole number. Booleans, NaN,
   infinities, objects and longer lists are rejected.
2. The marker of the answer is removed: everything up to the last `####` (GSM8K), or the `\\boxed{…}` around it.
   A worked solution must have one. A text that is only a number, a formula or a word is not a worked solution.
3. After `####`, thousands separators are removed (`1,234`). Elsewhere a comma may separate two answers.
4. A fraction of zeros is removed (`27.0` becomes `27`, `2.50` stays).

Everything else is kept, for example `023`, `336^\\circ` and `\\$18`: the grader compares those.
"""

from __future__ import annotations

import re

from igrpo_cli.problems.rows import BadRow, number_as_text, text_of, written_value
from igrpo_cli.records import AnswerForm

GSM8K_ANSWER = re.compile(r"####([^\n#]*)\Z")
THOUSANDS = re.compile(r"-?\d{1,3}(,\d{3})+(\.\d+)?")
WHOLE_DECIMAL = re.compile(r"([+-]?\d+)\.0+")
BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?:\s*\{|\s+(?P<bare>[^\s${}][^$\n]*))")
_TEX_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[^\W\d_]{2,}+(?!\()")
"""Two letters or more that are not the name of a function."""
_VALUE_OF = re.compile(r"\W*[A-Za-z]\s*=[^=]+")
MAX_ANSWER_ALONE = 200
"""Maximum number of characters of an answer that is recognised without a mark."""
PLAIN_CURE = "or say that the column holds answers: --set data.answer_form=plain (in a benchmark, call it answer)"
TEX_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)


def reference_answer(value: object, form: AnswerForm) -> str:
    """Return the reference answer in `value`.

    The form `plain` takes the whole value. `solution` takes the marked answer: the text after `####`, or else the last
    `\\boxed{…}`, or else the whole value if it is nothing but an answer. `auto` takes a marked answer if there is one
    (several boxes must agree), or else the whole value. Raises `BadRow` when there is no answer.
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
    if isinstance(value, str) and _is_of_texts(written := written_value(value)):
        value = written
    while isinstance(value, list):
        if len(value) > 1:
            raise BadRow("wrong_type", f"the answer is a list of {len(value)}")
        value = value[0] if value else None
    return number_as_text(value, "answer")


def _is_of_texts(written: object) -> bool:
    """Return True for a list of quoted texts or an object. A list of numbers, `[1, 2]`, may be an interval."""
    if isinstance(written, list):
        return not written or any(isinstance(each, str) for each in written)
    return isinstance(written, dict)


def _marked_answer(text: str, form: AnswerForm) -> str:
    if match := GSM8K_ANSWER.search(text):
        answer = match[1].strip()
        return answer.replace(",", "") if THOUSANDS.fullmatch(answer) else answer
    boxes = boxed_answers(text)
    if form == "solution":
        if not boxes:
            if _is_answer_alone(text):
                return text
            reason = "the solution marks no answer (neither \\boxed{…} nor ####)"
            raise BadRow("no_final_answer", reason, f"correct the row, {PLAIN_CURE}")
        return boxes[-1]
    if len(set(boxes)) > 1:
        raise BadRow("several_answers", f"the answer contains {len(boxes)} different boxes")
    return boxes[0] if boxes else text


def _is_answer_alone(text: str) -> bool:
    """Return True for one line with a number, a formula or a word; False for several words and for a calculation."""
    if "\n" in text or len(text) > MAX_ANSWER_ALONE or BOX.search(text):
        return False
    if "=" in text and not _VALUE_OF.fullmatch(text):
        return False
    return len(_WORD.findall(_TEX_COMMAND.sub(" ", text))) <= 1


def _closing_brace(text: str, start: int) -> int | None:
    depth = 1
    for match in TEX_BRACES.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return match.start()
    return None
