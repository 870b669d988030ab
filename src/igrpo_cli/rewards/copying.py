"""Answers that are copied from the problem: they may have the right value, but nothing was worked out."""

from __future__ import annotations

import re
from fractions import Fraction

from igrpo_cli.rewards.choices import reference_choice
from igrpo_cli.rewards.comparison import same_notation
from igrpo_cli.rewards.form_reader import read_form
from igrpo_cli.rewards.notation import canonical, is_word, tidy
from igrpo_cli.rewards.plain_numbers import read_number
from igrpo_cli.rewards.units import with_percent_sign, without_unit

_MARKS = re.compile(r"[{}\s*`]|\\(?:left|right|displaystyle|limits|cdot|times)(?![a-zA-Z])|\\[,;:! ()\[\]]|\$")
_EQUALS = re.compile(r"(?<![\\<>!])=")
_OVER = re.compile(r"\{\s*([^{}]*?)\s*\\(choose|over)(?![a-z])\s*([^{}]*?)\s*\}")
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
_SIGNS = re.compile(r"\\(?:cdot|times|ast)(?![a-zA-Z])")


def is_copied(answer: str, problem: str, reference: str) -> bool:
    """Return True if a right answer stands in the text of the problem and is another notation than the reference.

    A choice is never copied, and neither is a word, nor the reference in another spelling: 12 for 12.0 or 12 feet.
    """
    if reference_choice(reference) is not None:
        return False
    answer, reference = tidy(answer), tidy(reference)
    ours, theirs = canonical(answer), canonical(reference)
    sides = _EQUALS.split(answer)
    if ours == theirs or is_word(ours) or any(_is_same(side.strip(), reference) for side in (answer, *sides)):
        return False
    text = _bare(tidy(problem))
    copied = (_bare(part) for part in (answer, sides[-1]))
    return any(_stands_in(part, text) or _stands_in(part.removeprefix("(").removesuffix(")"), text) for part in copied)


def _is_same(answer: str, reference: str) -> bool:
    """Return True if two equal answers have the same notation: the same numbers in the same operations."""
    texts = [without_unit(with_percent_sign(text)) for text in (answer, reference)]
    bare = [_bare(text).removeprefix("(").removesuffix(")") for text in texts]
    if bare[0] == bare[1]:
        return True
    numbers: list[Fraction | None] = [read_number(text) for text in texts]
    if None not in numbers and "/" not in texts[0] + texts[1]:
        return numbers[0] == numbers[1]
    forms = [read_form(text) for text in texts]
    return forms[0] is not None and forms[1] is not None and same_notation(forms[0], forms[1])


def _bare(text: str) -> str:
    """Return `text` without spaces, braces and delimiters, with one spelling of products, fractions and binomials."""
    text = _OVER.sub(lambda match: f"\\{'binom' if match[2] == 'choose' else 'frac'}{{{match[1]}}}{{{match[3]}}}", text)
    text = _FRACTION.sub(lambda match: f"({match[1] or match[2]}/{match[3] or match[4]})", text)
    return _MARKS.sub("", canonical(_SIGNS.sub("*", text)).replace("dbinom", "binom"))


def _stands_in(part: str, text: str) -> bool:
    """Return True if `part` occurs in `text` with no letter or digit that continues it."""
    before = r"(?<![\d.])" if part[:1].isdigit() else ""
    after = r"(?![\d!^])" if part[-1:].isdigit() else r"(?![A-Za-z!^])" if part[-1:].isalpha() else r"(?![!^])"
    return bool(part) and re.search(before + re.escape(part) + after, text) is not None
