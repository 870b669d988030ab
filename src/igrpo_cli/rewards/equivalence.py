"""Equality of an answer and a reference: choice letters, then equal text, then plain numbers, then math-verify.

Some answers that math-verify accepts are wrong here, because they are rewarded:

- arithmetic that is not worked out ("7 * 8") does not equal a plain number;
- small numbers that only round to the same six places are not equal (0.0 is not 3.6e-10);
- alternatives hidden in text ("18 \\text{ or 19}") are a list, not a number with a unit;
- letters of a word in another order are another word, not a commuted product.

An answer to a multiple-choice problem names its letter first, alone or before the text of the choice. An answer that
names several letters (`A or B`, `(A)(B)`, `A. 3 B. 4`) names none, so naming candidates earns nothing.

sympy and math_verify are imported when the first pair needs them, not with this module.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from fractions import Fraction
from functools import lru_cache
from typing import Any

_SIGNS = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "±": r"\pm ", "√": r"\sqrt ",
    "π": r"\pi ", "∞": r"\infty ", "≤": r"\leq ", "≥": r"\geq ", "≠": r"\neq ", "∪": r"\cup ",
    "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "°": r"^\circ ", "²": "^2", "³": "^3",
}  # fmt: skip
_FULL_WIDTH = {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
_AS_LATEX = str.maketrans({**_SIGNS, **_FULL_WIDTH})

_DELIMITER = re.compile(r"(?<!\\)\$|(?<!\\)\\[()\[\]]|\\\"")
_ESCAPED_TWICE = re.compile(r"\\(?=\\[A-Za-z])")
_THOUSANDS = re.compile(r"(?<=\d)(?:,\\!\s*|\{,\}|\\,)(?=\d{3}(?!\d))")
_TEXT = re.compile(r"\\(?:text\w*|mbox|mathrm|mathbf|mathit|operatorname)\s*\{([^{}]*)\}")
_ALTERNATIVE = re.compile(r"\d|\b(?:and|or)\b", re.IGNORECASE)
_GLUED = re.compile(r"(?<=\d)(or|and)(?=[A-Z\d(\\-])")
_SPACE = re.compile(r"\s+")
# One sign at a time, math-verify takes seconds for a long chain: then the load of the machine would decide.
_SIGN_CHAIN = re.compile(r"[-+](?:\s*[-+]){2,}")

_INVISIBLE = re.compile(r"\\(?:left|right|displaystyle|limits)(?![a-zA-Z])|\\!")
_LATEX_SPACE = re.compile(r"\\[,;: ]|~")
_SPACE_OUTSIDE_NUMBERS = re.compile(r"(?<!\d)\s+|\s+(?!\d)")
_FRACTION = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_MIN_WORD_LETTERS = 3

_EQUALS = re.compile(r"(?<![\\<>!])=")
_LISTED = re.compile(r"[,;]|\b(?:and|or)\b")
_E_NOTATION = re.compile(r"(\d)[eE]([-+]?\d+)")
_UNIT = re.compile(r"(?<=\d)\s+((?!(?:pi|i|e)\b)[A-Za-z]{2,}(?:[ -][A-Za-z]+)*)$")
_NO_UNIT = re.compile(
    r"\b(?:hundred|thousand|million|billion|trillion|dozen|percent|pct|squared|cubed|and|or)\b", re.IGNORECASE
)
_EMPTY = re.compile(r"\\(?:boxed|fbox|framebox|quad|qquad)(?![a-zA-Z])|\\[,;:! ]")
_CONSTANT_FUNCTION = re.compile(r"(?<![A-Za-z\\])([A-Za-z])\([a-z]\)(?=\s*=\s*-?[\d.]+\s*(?:,|;|and\b|or\b|$))")


def are_equal(answer: str, reference: str) -> bool:
    """Return True if `answer` and `reference`, two answers without a sentence around them, are equivalent.

    Not symmetric: the reference decides which form is required. Raises any error of sympy for an expression that it
    cannot handle.
    """
    choice = reference_choice(reference)
    if choice is not None:
        return named_choice(answer) == choice
    answer, reference = _tidy(answer), _tidy(reference)
    ours, theirs = _canonical(answer), _canonical(reference)
    if ours == theirs:
        return not is_blank(reference)
    if _is_word(ours) and _is_word(theirs):
        return False
    reference_number = read_number(reference)
    if reference_number is not None:
        answer_number = read_number(answer)
        if is_unevaluated(_EQUALS.split(answer)[-1], reference_number):
            return False
        if answer_number is not None:
            return numbers_agree(answer_number, reference_number)
    return _symbolically_equal(_as_latex(answer), _as_latex(reference))


def is_blank(text: str) -> bool:
    """Return True if `text` has no visible character besides white space, delimiters and empty boxes."""
    left = _canonical(_tidy(_EMPTY.sub("", text))).strip("{}")
    return not any(character.isprintable() and not character.isspace() for character in left)


def _tidy(text: str) -> str:
    """Return `text` on one line, with LaTeX for Unicode signs, without delimiters and final punctuation."""
    text = _DELIMITER.sub(" ", text.translate(_AS_LATEX)).replace(r"\varnothing", r"\emptyset")
    if r"\begin" not in text:  # where a doubled backslash is the end of a row
        text = _ESCAPED_TWICE.sub("", text)
    text = _TEXT.sub(lambda match: match[1] if _ALTERNATIVE.search(match[1]) else match[0], text)
    text = _SIGN_CHAIN.sub(lambda chain: "-" if chain[0].count("-") % 2 else "+", text)
    text = _GLUED.sub(r" \1 ", _THOUSANDS.sub("", text))
    return _SPACE.sub(" ", text).rstrip("\\ ").rstrip(" .,;*").lstrip(" *")


def _canonical(text: str) -> str:
    """Return a spelling that is equal for texts that differ only in their notation."""
    text = _INVISIBLE.sub("", _FRACTION.sub(r"\\frac", _TEXT.sub(r"\1", text)))
    text = _SPACE_OUTSIDE_NUMBERS.sub("", _LATEX_SPACE.sub(" ", text))
    letters = text.strip("()")
    return letters.casefold() if letters.isalpha() else text


def _is_word(canonical: str) -> bool:
    return canonical.isalpha() and len(canonical) >= _MIN_WORD_LETTERS


def _as_latex(text: str) -> str:
    """Return `text` as math-verify's grammar reads it: powers of ten, units as text, f for f(x) = 1."""
    if read_number(text) is not None:
        text = _E_NOTATION.sub(r"\1\\times 10^{\2}", text)
    text = _CONSTANT_FUNCTION.sub(r"\1", text)
    unit = _UNIT.search(text)
    if unit and not _NO_UNIT.search(unit[1]):
        return f"{text[: unit.start()]}\\text{{ {unit[1]}}}"
    return text


def _symbolically_equal(answer: str, reference: str) -> bool:
    expected, given = _parse(reference), _parse(answer)
    if isinstance(expected, str) or isinstance(given, str):
        return str(expected) == str(given)
    from math_verify import verify
    from sympy.core.random import seed

    seed(0)  # sympy tests some identities at random points
    equal = verify(
        [expected],
        [given],
        float_rounding=DECIMAL_PLACES,
        allow_set_relation_comp=True,
        timeout_seconds=None,
        raise_on_error=True,
    )
    return equal and _are_close(expected, given)


@lru_cache(maxsize=1024)
def _parse(latex: str) -> Any:
    """Return the sympy expression of `latex`, or its normalised text if the grammar does not know it.

    Only math-verify's LaTeX grammar is used: its parser of plain expressions passes text to `eval`. If a chain of
    equations does not parse, its last member counts.
    """
    from math_verify import LatexExtractionConfig, parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own timeouts are off
    parsed = parse(
        rf"\boxed{{{latex}}}",
        [LatexExtractionConfig(boxed_match_priority=0)],
        extraction_mode="first_match",
        parsing_timeout=None,
        raise_on_error=True,
    )
    if not parsed:
        return latex
    last_member = _EQUALS.split(latex)[-1]
    if isinstance(parsed[0], str) and last_member != latex and not _LISTED.search(latex):
        return _parse(last_member)
    return parsed[0]


def _are_close(expected: Any, given: Any) -> bool:
    """Return False for two small numbers that only round to the same six places."""
    are_numbers = getattr(expected, "is_number", False) and getattr(given, "is_number", False)
    if expected == given or not are_numbers:
        return True
    size, distance = abs(complex(expected.doit())), abs(complex((expected - given).doit()))
    return size > float(RELATIVE_TOLERANCE) or distance <= (float(RELATIVE_TOLERANCE) * size or 1e-12)


_MARKUP = re.compile(
    r"\\(?:text\w*|mbox|math[a-z]+|operatorname|boxed|fbox|framebox|left|right|q?quad|bf|rm)(?![a-z])"
    r"|\\[()\[\],;:!]|\\(?= )|[{}$*~`\"“”]"
)
_REFERENCE = re.compile(r"\(([A-Z])\)")
_LEAD = r"(?:(?:the )?(?:(?:best|correct|final|right) )?(?:answer|choice|letter|option)(?: is|:)? ?){0,2}"
_ENCLOSED = re.compile(rf"{_LEAD}[(\[] ?([a-z]) ?[)\]](?=[ .,:;]|$)", re.IGNORECASE)
_LABEL = re.compile(rf"{_LEAD}([a-z])(?=\)|[.:](?: |$)|[,;]?$)", re.IGNORECASE)

_OTHER_ENCLOSED = re.compile(r"(?<!\w)[(\[] ?([A-Z]) ?[)\]](?![-\w])")
_OTHER_LABEL = re.compile(r"(?<![\w(\[])([A-Z])(?=\)|[.:] )")
_OTHER_LISTED = re.compile(
    r"(?:\b(?i:and|or|nor|answer|choice|letter|option)\b|[,;&|]| /)(?i: is)? ?([A-Z])(?![\w'’-])"
)
_ONLY_LETTERS = re.compile(r"(?:\W*\b[A-Z]\b)+\W*")


def reference_choice(reference: str) -> str | None:
    """Return the letter of a reference such as `(B)` or `\\text{(B)}`; None for anything else, also for `B` alone."""
    match = _REFERENCE.fullmatch(_plain(reference))
    return match[1] if match else None


def named_choice(answer: str) -> str | None:
    """Return the only letter that an answer names, in upper case; None if it names none or several."""
    plain = _plain(answer)
    match = _ENCLOSED.match(plain)
    is_label = match is None
    match = match or _LABEL.match(plain)
    if match is None:
        return None
    text = plain[match.end() :].lstrip(").: ").rstrip(".,:; ")
    others = _letters_in(text.upper() if match[1].islower() else text, is_label)
    return match[1].upper() if others <= {match[1].upper()} else None


def _letters_in(text: str, is_label: bool) -> set[str]:
    """Return the further choices in the text after a letter; a unit as in `5 J` or a symbol as in `f(A)` is none.

    Labels such as `C.` count only if the first letter was such a label too: `(A) E. coli` names one choice.
    """
    if _ONLY_LETTERS.fullmatch(text):
        return set(re.findall(r"[A-Z]", text))
    patterns = (_OTHER_ENCLOSED, _OTHER_LISTED, *([_OTHER_LABEL] if is_label else []))
    return {letter for pattern in patterns for letter in pattern.findall(text)}


def _plain(text: str) -> str:
    """Return `text` on one line without LaTeX and Markdown marks, with plain letters for bold and full-width ones."""
    return " ".join(_MARKUP.sub(" ", unicodedata.normalize("NFKC", text).rstrip("\\. \n")).split())


DECIMAL_PLACES = 6
RELATIVE_TOLERANCE = Fraction(1, 1000)

_MAX_NUMBER_CHARACTERS = 400
"""Longer numbers are compared by math-verify, under the CPU limit of a worker."""

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
    """Return the exact value of `text` if it is a plain number, otherwise None.

    Plain numbers are integers, decimals (`0,5` too), a/b, w a/b, 1.5e-3 and 1.5 \\times 10^{-3}; they may have a
    currency sign, and commas or spaces between thousands.
    """
    match = _NUMBER.fullmatch(text) if len(text) <= _MAX_NUMBER_CHARACTERS else None
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
    """Return True for numbers that agree to six decimal places (as in math-verify) and to one part in a thousand.

    Without the second condition 0.0 would equal 3.6e-10. An integer agrees only with itself.
    """
    if answer.denominator == 1 or reference.denominator == 1:
        return answer == reference
    same_places = round(answer, DECIMAL_PLACES) == round(reference, DECIMAL_PLACES)
    return same_places and abs(answer - reference) <= RELATIVE_TOLERANCE * abs(reference)


def is_unevaluated(answer: str, reference: Fraction) -> bool:
    """Return True if `answer` is a sum, product or quotient of numbers that is not worked out.

    a/b is a plain number, unless the reference is an integer.
    """
    if not _ARITHMETIC.fullmatch(answer):
        return False
    return read_number(answer.strip()) is None or ("/" in answer and reference.denominator == 1)
