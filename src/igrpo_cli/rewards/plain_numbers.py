"""Numbers that are written out: read exactly, and compared exactly or to six places."""

from __future__ import annotations

import re
from fractions import Fraction

TOLERANCE = Fraction(1, 10**6)
"""Maximum difference of two decimals: absolute, and below 1 relative to the reference."""

_MAX_NUMBER_CHARACTERS = 400
"""Longer numbers are compared by math-verify, under the CPU limit of a worker."""

_DIGITS = r"(?:\d{1,3}(?:[, ]\d{3})+|\d+)"
_CURRENCY = r"(?:\\?\$|[€£¥₹₽₩]|\\(?:pounds|yen|euro)(?![a-z]))"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*{_CURRENCY}?\s*(?P<minus>-?)(?:"
    rf"(?P<whole>{_DIGITS})\s+(?P<part>\d+)/(?P<under>\d+)"
    rf"|(?P<over>{_DIGITS})\.?\s*/\s*(?P<below>\d+)"
    r"|(?P<units>\d{1,3}(?:\.\d{3})+|0|\d+(?=,0\d(?:\d{2,})?(?!\d))),(?P<places>\d+)"
    rf"|(?P<mantissa>{_DIGITS}(?:\.\d*)?|\.\d+)"
    r"(?:[eE](?P<e>[-+]?\d{1,3})|\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*(?:\{(?P<power>[-+]?\d{1,3})\}|(?P<digit>\d)))?"
    rf")\s*{_CURRENCY}?"
)
_OPERAND = r"[(\s]*[-+]?\s*\d[\d,.]*[)\s]*"
_ARITHMETIC = re.compile(rf"{_OPERAND}(?:(?:[-+*/]|\\(?:times|cdot|div)(?![a-z])){_OPERAND}|\({_OPERAND})+")

_DAY = r"0?\d|[12]\d|3[01]"
_DATE = re.compile(rf"(\d{{4}})([-/.])({_DAY})\2({_DAY})|({_DAY})([-/.])({_DAY})\6(\d{{4}})")
_PHONE = re.compile(r"\+?\d{0,3}[-. ]?\(?\d{3}\)?[-. ]\d{3}[-. ]\d{4}")
_RANGE = re.compile(r"\d+(?:\.\d+)?(?:--?\d+(?:\.\d+)?)+|[12]\d{3} --? [12]\d{3}")


def read_name_in_digits(text: str) -> list[str] | None:
    """Return the digits of a date, a phone number, a range or a score (`10-20`); None for what may be computed.

    Spaces make a difference of `10 - 20`, except between ascending years. A date may have zeros before day or month.
    """
    if date := _DATE.fullmatch(text):
        return ["date", *(part.lstrip("0") for part in date.groups() if part and part not in "-/.")]
    digits = re.findall(r"\d[\d.]*", text)
    is_difference = " " in text and digits != sorted(digits)
    if _PHONE.fullmatch(text) or (_RANGE.fullmatch(text) and not is_difference):
        return digits
    return None


def read_number(text: str) -> Fraction | None:
    """Return the exact value of `text` if it is a plain number, otherwise None.

    Plain numbers are integers, decimals, a/b, w a/b, 1.5e-3 and 1.5 \\times 10^{-3}; they may have a currency sign, and
    commas or spaces between thousands. A comma is a decimal comma where no other reading exists: `1,234` has thousands.
    """
    match = _NUMBER.fullmatch(text) if len(text) <= _MAX_NUMBER_CHARACTERS else None
    if match is None or (match["sign"] and match["minus"]):
        return None
    below = int(match["under"] or match["below"] or 1)
    if below == 0:
        return None
    if match["whole"]:
        value = _digits(match["whole"]) + Fraction(int(match["part"]), below)
    elif match["over"]:
        value = _digits(match["over"]) / below
    elif match["places"]:
        value = Fraction(f"{match['units'].replace('.', '')}.{match['places']}")
    else:
        exponent = int(match["e"] or match["power"] or match["digit"] or 0)
        value = _digits(match["mantissa"].rstrip(".")) * Fraction(10) ** exponent
    return -value if "-" in (match["sign"], match["minus"]) else value


def _digits(text: str) -> Fraction:
    return Fraction(text.replace(",", "").replace(" ", ""))


def is_decimal(text: str) -> bool:
    """Return True if a plain number is written with decimal places or a power of ten, so it may be rounded."""
    return "/" not in text and bool(re.search(r"[.eE^]|^\W*0,|,0\d$", text))


def numbers_agree(answer: Fraction, reference: Fraction) -> bool:
    """Return True for decimals that agree to six places, and for small numbers to six significant ones.

    An integer agrees only with itself.
    """
    if answer.denominator == 1 or reference.denominator == 1:
        return answer == reference
    return abs(answer - reference) <= TOLERANCE * min(Fraction(1), abs(reference))


def is_unevaluated(answer: str, reference: Fraction) -> bool:
    """Return True if `answer` is a sum, product or quotient of numbers that is not worked out.

    a/b is a plain number, unless the reference is an integer.
    """
    if not _ARITHMETIC.fullmatch(answer):
        return False
    return read_number(answer.strip()) is None or ("/" in answer and reference.denominator == 1)
