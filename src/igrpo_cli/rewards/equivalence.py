"""Equality of an answer and a reference: equal text, then plain numbers, then forms, then math-verify.

An answer earns a reward if it equals the reference, so this module refuses what only looks equal: a relation that is
true as it stands, a word that changes the value, arithmetic that is not worked out, a list of candidates.

Most pairs are decided by `forms_agree`, exactly and quickly. sympy and math_verify read the rest. They are imported
when the first pair needs them, not with this module.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise, product
from typing import Any

from igrpo_cli.rewards.choices import named_choice, reference_choice
from igrpo_cli.rewards.comparison import echoes_question, forms_agree, is_true_or_false
from igrpo_cli.rewards.expressions import is_echo, read_formula
from igrpo_cli.rewards.form_reader import LABEL, read_form
from igrpo_cli.rewards.forms import EMPTY_SET, Form, Formula, Group, Infinity, Numeral, Ratio, TruthValue
from igrpo_cli.rewards.notation import (
    canonical,
    changing_words,
    differ_in_case,
    is_blank,
    is_open,
    is_word,
    split,
    tidy,
)
from igrpo_cli.rewards.plain_numbers import is_decimal, is_unevaluated, numbers_agree, read_name_in_digits, read_number
from igrpo_cli.rewards.units import has_degrees_in_function, quantities, with_percent_sign, without_unit
from igrpo_cli.rewards.values import TooLargeError, UndecidedError, formula_order, formulas_agree, read_value, symbols

_EQUALS = re.compile(r"(?<![\\<>!])=")
_LISTED = re.compile(r"[,;]|\b(?:and|or)\b")
_E_NOTATION = re.compile(r"(\d)[eE]([-+]?\d+)")
_UNIT = re.compile(r"(?<=\d)\s+((?!(?:pi|i|e)\b)[A-Za-z]{2,}(?:[ -][A-Za-z]+)*)$")
_CONSTANT_FUNCTION = re.compile(r"(?<![A-Za-z\\])([A-Za-z])\([a-z]\)(?=\s*=\s*-?[\d.]+\s*(?:,|;|and\b|or\b|$))")
_PRIME = re.compile(r"'|\\prime(?![a-z])")
_PRIMED_CALL = re.compile(r"^\s*[A-Za-z](?:'|\^\s*\{?\s*\\prime\s*\}?)+\s*\([a-z]\)\s*=")
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")
_COMMENT = re.compile(r"(.*[\w}.])\s+\(([^()]*)\)")
_PARTS = (",", ";", "and", "or", r"\land", r"\lor")
_OTHER_RELATIONS = (r"\approx", "<", ">", r"\leq", r"\geq", r"\neq", r"\equiv", r"\to")
_GROUPS_OF_DIGITS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_LARGE = re.compile(
    r"\d{6}\s*!|\\(?:sum|prod)(?![a-z])[^=]*=[^=]*?\^\s*\{?\s*(?:\d{5}|\d+\s*\^)"
    r"|\\i*int(?![a-z]).*([a-z])\s*\^\s*[{(]?\s*\1|(?:\^\s*\w\s*){6}|(?:\^\s*\{[^{}]*){6}"
    r"|[3-9]\d*\s*(?:\^\s*\{?\s*\d+\s*){2}\^"
)
_MAX_DEPTH = 32
_JOINED = re.compile(r"\d\)?(?:[-/. ]|\\%-)")
_DECIMAL = re.compile(r"-?\d*\.(\d+)")
_OPERATION = re.compile(
    r"^\\(?:sum|prod|i*int|lim|max|min|sup|inf|gcd|lcm|deg|det|dim|operatorname|text|mathrm|binom|log|Pr)(?![a-z])"
)
_GROUPED = re.compile(r"\^\s*\{\s*(?:-1|\(\d+\))\s*\}(?=\s*\()|\{[^{}]*\}|\([^()]*\)|\[[^\[\]]*\]")
_ARITHMETIC_SIGN = re.compile(r"[+*/^!]|-(?![a-z]{2})|\\(?:cdot|times|div|frac|sqrt|pm)(?![a-z])|\d\s*[A-Za-z]")

_FLOAT_PLACES = 6
_DIGITS = 60
"""Digits of two numbers without decimals that math-verify calls equal, of which two thirds must agree."""


def are_equal(answer: str, reference: str) -> bool:
    """Return True if `answer` and `reference`, two answers without a sentence around them, are equivalent.

    Not symmetric: the reference decides which form is required. Raises any error of sympy for an expression that it
    cannot handle, and TooLargeError for one that cannot be evaluated. If the reference is a number, such an answer is
    not equal to it.
    """
    try:
        return _are_equal(answer, reference)
    except TooLargeError:
        if read_number(tidy(reference)) is None:
            raise
        return False


def _are_equal(answer: str, reference: str) -> bool:
    choice = reference_choice(reference)
    if choice is not None:
        return named_choice(answer) == choice
    answer, reference = tidy(answer), tidy(reference)
    ours, theirs = canonical(answer), canonical(reference)
    if ours == theirs:
        return not is_blank(reference)
    if (is_word(ours) and is_word(theirs)) or is_open(answer) or is_open(reference):
        return False
    if changing_words(answer) != changing_words(reference):
        return False
    answer, reference = with_percent_sign(_without_working(answer)), with_percent_sign(reference)
    names = [_name_in_digits(text) for text in (answer, reference)]
    if any(names):
        return names[0] == names[1]
    if "=" in answer and _is_misstated(answer, is_equation=bool(_EQUALS.search(reference))):
        return False
    equal = _numbers_are_equal(answer, reference)
    if equal is None and (ours_listed := quantities(answer)) and (theirs_listed := quantities(reference)):
        return ours_listed == theirs_listed
    if equal is None and (_is_too_large(answer) or _is_too_large(reference)):
        raise TooLargeError
    if equal is None:
        equal = _forms_are_equal(answer, reference)
    if equal is None and any(map(has_degrees_in_function, (answer, reference))):  # math-verify takes them for radians
        return False
    if equal is None and differ_in_case(answer, reference):  # math-verify reads some capitals as small letters
        return False
    return _symbolically_equal(_as_latex(answer), _as_latex(reference)) if equal is None else equal


def _is_too_large(text: str) -> bool:
    """Return True for what would take math-verify seconds: deep brackets, factorials, long sums, integrals of `x^x`."""
    depth = deepest = 0
    for sign in text:
        depth += (sign in "([{") - (sign in ")]}")
        deepest = max(depth, deepest)
    return deepest > _MAX_DEPTH or _LARGE.search(text) is not None


def _name_in_digits(text: str) -> list[str] | None:
    plain = without_unit(text).rstrip("\\%").strip("()") if _JOINED.search(text) else ""
    return read_name_in_digits(plain)


def _without_working(answer: str) -> str:
    """Return `72` for `72 (48 + 24)`: a working in parentheses after a space, with the same value as the answer."""
    match = _COMMENT.fullmatch(answer)
    if match is None:
        return answer
    number = read_number(without_unit(match[1]))
    return match[1] if number is not None and number == read_value(match[2]) else answer


def _is_misstated(answer: str, *, is_equation: bool) -> bool:
    """Return True if an equation does not state its last member: `x = 8 = 7`, and `x + 8 = 7` for a value."""
    if r"\begin" in answer:
        return False
    for part in split(_GROUPS_OF_DIGITS.sub("", answer), _PARTS)[0]:
        for chain in split(part, _OTHER_RELATIONS)[0]:
            sides = [side.strip() for side in split(chain, ("=",))[0]]
            if len(sides) > 1 and (_is_contradiction(sides) or not (is_equation or _names_value(sides[0], sides[-1]))):
                return True
    return False


def _is_contradiction(sides: list[str]) -> bool:
    """Return True if two members without unknowns differ. A decimal may be rounded to its places: `1/3 = 0.33`.

    A chain that begins with a working (`x = 5 + 5 + 1 = 7 = 11`) is a slip in it, not a list of candidates: its last
    member counts, as in the recorded verdicts. So does the last one behind a delimiter that is escaped (`8 \\$ = 7`).
    """
    texts = [without_unit(side.strip("[] "), is_reference=True) for side in sides if not side.endswith(r"\$")]
    known = [(text, form) for text in texts if (form := read_form(text)) is not None and _is_known(form)]
    first = known[0][1] if known else None
    if isinstance(first, Formula) and is_echo(first.tree):
        return False
    try:
        return any(not _is_same(first, second) for first, second in pairwise(known))
    except UndecidedError:
        return False


def _is_known(form: Form) -> bool:
    if isinstance(form, Group):
        return all(map(_is_known, form.items))
    return isinstance(form, Infinity) or (isinstance(form, Formula) and not symbols(form.tree))


def _is_same(first: tuple[str, Form], second: tuple[str, Form]) -> bool:
    if forms_agree(first[1], second[1]):
        return True
    for (text, decimal), (_, other) in ((first, second), (second, first)):
        match = _DECIMAL.fullmatch(text)
        if match and isinstance(decimal, Formula) and isinstance(other, Formula):
            half = ("num", Fraction(1, 2 * 10 ** len(match[1])), True)
            low, high = ("add", decimal.tree, ("neg", half)), ("add", decimal.tree, half)
            return formula_order(low, other.tree) in (-1, 0) and formula_order(other.tree, high) in (-1, 0)
    return False


def _names_value(left: str, value: str) -> bool:
    """Return True if `left` is a name, a function, or a formula that is equal to `value`: no sum such as `x + 8`."""
    tree, form = read_formula(left), read_form(value)
    if tree is None:
        plain = _GROUPED.sub("", _GROUPED.sub("", left))
        has_letters = re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", plain))
        return not has_letters or bool(_OPERATION.search(left)) or not _ARITHMETIC_SIGN.search(plain)
    is_function = tree[0] == "call" and tree[1] != "factorial"
    if not symbols(tree) or tree[0] == "symbol" or is_function or LABEL.fullmatch(left):
        return True
    if form is None:
        return bool(symbols(tree) & set(value))
    try:
        return isinstance(form, Formula) and formulas_agree(tree, form.tree)
    except UndecidedError:
        return False


def _numbers_are_equal(answer: str, reference: str) -> bool | None:
    """Compare plain numbers; None if the reference or the answer is none."""
    expected, given = read_number(reference), read_number(answer)
    if expected is None:
        return None
    if is_unevaluated(_EQUALS.split(answer)[-1], expected):
        return False
    if given is not None:
        is_rounded = is_decimal(answer) or is_decimal(reference)
        return numbers_agree(given, expected) if is_rounded else given == expected
    if _DECIMAL_COMMA.fullmatch(answer) and is_decimal(reference):  # no list can be right
        return read_number(answer.replace(",", ".")) == expected
    return None


def _forms_are_equal(answer: str, reference: str) -> bool | None:
    """Compare the forms of two texts, with and without their units; None if it takes math-verify."""
    bare = [
        _PRIMED_CALL.sub("", each) if "=" not in other else each
        for each, other in ((answer, reference), (reference, answer))
    ]
    if len(_PRIME.findall(bare[0])) != len(_PRIME.findall(bare[1])) or answer.count(r"\approx") > 1:
        return False
    ours = _forms(answer, without_unit(answer))
    theirs = _forms(reference, without_unit(reference, is_reference=True))
    pairs = list(product(ours, theirs))
    if any(_say_nothing(pair) for pair in pairs):
        return False
    if not pairs:
        fixed = (Infinity, Numeral, Ratio)
        known = [*ours, *theirs]
        has_word = any(is_word(canonical(text)) for text in (answer, reference))
        return False if has_word or EMPTY_SET in known or any(isinstance(form, fixed) for form in known) else None
    verdicts = [_agree(*pair) for pair in pairs]
    return True if True in verdicts else None if None in verdicts else False


def _forms(text: str, without_its_unit: str) -> list[Form]:
    """Return the forms of a text with and without its unit. `pm` is no unit of a time."""
    forms: list[Form] = []
    for each in dict.fromkeys((text, without_its_unit)):
        form = read_form(_CONSTANT_FUNCTION.sub(r"\1", each))
        if isinstance(form, Ratio | Numeral):
            return [*forms, form]
        forms += [] if form is None else [form]
    return forms


def _say_nothing(pair: Iterable[Form]) -> bool:
    answer, reference = pair
    return isinstance(answer, TruthValue) or isinstance(reference, TruthValue) or is_true_or_false(reference)


def _agree(answer: Form, reference: Form) -> bool | None:
    try:
        return not echoes_question(answer, reference) and forms_agree(answer, reference)
    except TooLargeError:
        raise
    except UndecidedError:
        return None


def _as_latex(text: str) -> str:
    """Return `text` as math-verify's grammar reads it: powers of ten, units as text, f for f(x) = 1."""
    if read_number(text) is not None:
        text = _E_NOTATION.sub(r"\1\\times 10^{\2}", text)
    text = re.sub(r"(?<!\\)%", r"\\%", _CONSTANT_FUNCTION.sub(r"\1", text))
    unit = _UNIT.search(text)
    if unit and not changing_words(unit[1]):
        return f"{text[: unit.start()]}\\text{{ {unit[1]}}}"
    return text


def _symbolically_equal(answer: str, reference: str) -> bool:
    expected, given = _parse(reference), _parse(answer)
    if isinstance(expected, str) or isinstance(given, str):
        return str(expected) == str(given)
    if _is_fixed(expected) or (_is_fixed(given) and not _is_worked_out(given)):
        return False
    from math_verify import verify
    from sympy.core.random import seed

    seed(0)  # sympy tests some identities at random points
    equal = verify(
        [expected],
        [given],
        float_rounding=_FLOAT_PLACES,
        numeric_precision=_DIGITS,
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


def _is_fixed(expression: Any) -> bool:
    """Return True for what sympy folds to true, false or the empty set, at any depth: it equals only its own text."""
    from sympy import EmptySet, nan, zoo
    from sympy.core.relational import Relational
    from sympy.logic.boolalg import BooleanAtom

    if not hasattr(expression, "has"):
        return not hasattr(expression, "shape")  # a bool; matrices have no such parts
    if isinstance(expression, BooleanAtom) or expression.has(BooleanAtom, nan, zoo) or expression == EmptySet:
        return True
    if getattr(expression, "is_Relational", False) or isinstance(expression, Relational):
        return not expression.free_symbols or isinstance(expression.doit(), BooleanAtom)
    return getattr(expression, "is_empty", None) is True


def _is_worked_out(expression: Any) -> bool:
    """Return True for an equation, or a chain of them, of which the last member is the answer: `2 + 3 = 5`."""
    from sympy import Eq

    return all(isinstance(part, Eq) for part in getattr(expression, "_unsorted_args", (expression,)))


def _are_close(expected: Any, given: Any) -> bool:
    """Return False for two numbers that only agree after rounding: exact ones in many digits, decimals in six."""
    from sympy import Float, N, Rational

    are_numbers = getattr(expected, "is_number", False) and getattr(given, "is_number", False)
    if expected == given or not are_numbers:
        return True
    if isinstance(expected, Rational) and isinstance(given, Rational):
        return False
    is_rounded = expected.has(Float) or given.has(Float)
    ours, theirs = (N(number.doit(), 20 if is_rounded else _DIGITS) for number in (given, expected))
    distance, size = abs(ours - theirs), abs(theirs)
    if is_rounded:
        return bool(distance <= 1.000001e-6 * min(1, size) or distance <= 1e-15 * size)
    return bool(distance <= size * Rational(1, 10 ** (_DIGITS * 2 // 3)))
