"""Numbers written out in full, read and compared exactly: most answers are nothing else, and need no algebra."""

from __future__ import annotations

import re
from fractions import Fraction

DECIMAL_PLACES = 6
RELATIVE_TOLERANCE = Fraction(1, 1000)

_MOST_CHARACTERS = 400
"""Longer numbers are left to the algebra, which has a time limit."""

_DIGITS = r"(?:\d{1,3}(?:[, ]\d{3})+|\d+)"
_CURRENCY = r"(?:\\?\$|[€£])"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*{_CURRENCY}?\s*(?:"
    rf"(?P<whole>{_DIGITS})\s+(?P<part>\d+)/(?P<under>\d+)"
    rf"|(?P<over>{_DIGITS})\.?\s*/\s*(?P<below>\d+)"
    r"|0,(?P<places>\d+)"
    rf"|(?P<mantissa>{_DIGITS}(?:\.\d*)?|\.\d+)"
    r"(?:[eE](?P<e>[-+]?\d{1,3})|\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*(?:\{(?P<power>[-+]?\d{1,3})\}|(?P<digit>\d)))?"
    rf")\s*{_CURRENCY}?"
)
_OPERAND = r"[(\s]*[-+]?\s*\d[\d,.]*[)\s]*"
_ARITHMETIC = re.compile(rf"{_OPERAND}(?:(?:[-+*/]|\\(?:times|cdot|div)(?![a-z])){_OPERAND})+")


def read_number(text: str) -> Fraction | None:
    """The value of `text` if it is a plain number, else None.

    Plain are integers, decimals (`0,5` too), a/b, w a/b, 1.5e-3 and 1.5 \\times 10^{-3}, with a currency
    sign or thousands set off by commas or spaces.
    """
    match = _NUMBER.fullmatch(text) if len(text) <= _MOST_CHARACTERS else None
    if match is None:
        return None
    below = int(match["under"] or match["below"] or 1)
    if below == 0:
        return None
    if match["whole"]:
        value = _digits(match["whole"]) + Fraction(int(match["part"]), below)
    elif match["over"]:
        value = _digits(match["over"]) / below
    elif match["places"]:
        value = Fraction(f"0.{match['places']}")
    else:
        exponent = int(match["e"] or match["power"] or match["digit"] or 0)
        value = _digits(match["mantissa"].rstrip(".")) * Fraction(10) ** exponent
    return -value if match["sign"] == "-" else value


def _digits(text: str) -> Fraction:
    return Fraction(text.replace(",", "").replace(" ", ""))


def numbers_agree(answer: Fraction, reference: Fraction) -> bool:
    """Equal, or equal when rounded to six places (as in math-verify) and to one part in a thousand besides.

    The second keeps 0.0 from being 3.6e-10. A whole number agrees only with itself.
    """
    if answer.denominator == 1 or reference.denominator == 1:
        return answer == reference
    same_places = round(answer, DECIMAL_PLACES) == round(reference, DECIMAL_PLACES)
    return same_places and abs(answer - reference) <= RELATIVE_TOLERANCE * abs(reference)


def is_unevaluated(answer: str, reference: Fraction) -> bool:
    """Whether `answer` is a sum, product or quotient of numbers that is still to be worked out.

    a/b is a number in itself, unless the reference says that it is whole.
    """
    if not _ARITHMETIC.fullmatch(answer):
        return False
    return read_number(answer.strip()) is None or ("/" in answer and reference.denominator == 1)
