"""The reader of forms.

`read_form` splits a tidy text at the signs that structure it and reads the parts as formulas. It returns None for what
it does not know; math-verify may read that.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from itertools import product

from igrpo_cli.rewards.expressions import Tree, read_formula
from igrpo_cli.rewards.forms import (
    EMPTY_SET,
    Equation,
    Form,
    Formula,
    Group,
    Inequality,
    Infinity,
    Matrix,
    Numeral,
    Piece,
    Ratio,
    Region,
    TruthValue,
    as_region,
    without_points,
)
from igrpo_cli.rewards.notation import split
from igrpo_cli.rewards.plain_numbers import is_decimal, read_number
from igrpo_cli.rewards.values import UndecidedError, formulas_agree, is_constant, symbols

MAX_CHARACTERS = 1_500
_MAX_DEPTH = 8
_MAX_SIGNS = 3
_RELATION = {"=", "<", ">", r"\leq", r"\geq", r"\neq", r"\approx", r"\in", r"\equiv", r"\sim", r"\to", r"\subset"}
_FLIPPED = {"<": ">", ">": "<", r"\leq": r"\geq", r"\geq": r"\leq", r"\neq": r"\neq"}
_INFINITE = re.compile(r"([-+]?)\s*(?:\\infty|infinity|oo)")
_NUMERAL = re.compile(
    r"\(?\s*([0-9A-Fa-f]*\d[0-9A-Fa-f]*|[A-F]+)\s*\)?\s*_\s*(?:\{\s*(?:\\text\s*\{)?(\w+)\}?\s*\}|(\d))"
)
_DECIMAL = r"(?:\d+(?:\.\d+)?|\.\d+)"
_RATIO = re.compile(
    rf"({_DECIMAL}(?:\s*:\s*{_DECIMAL}){{1,3}})(?:\s|\\[,; ]|~)*(?:\\text\s*\{{)?\s*([ap]\.?\s*m\b\.?)?\s*\}}?", re.I
)
_BUILDER = re.compile(
    r"\\\{\s*([A-Za-z])\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?(?:\\mid|\\vert|\||:)(?![:\d])(.*)\\\}", re.S
)
LABEL = re.compile(
    r"[A-Za-z]'*|[A-Za-z]?[A-Z]{1,3}'*|\\[A-Za-z]+|[A-Za-z]\s*_\s*\{?\w+\}?|\|[A-Za-z]{1,2}\||\\angle\s*[A-Z]{1,3}"
    r"|\\frac\s*\{\s*d\s*[a-z]\s*\}\s*\{\s*d\s*[a-z]\s*\}|\\log\s*_\s*\{?\w+\}?\s*[a-z]"
)
_CALL = re.compile(r"([A-Za-z]'*)\s*\(\s*([a-z])\s*\)")
_TUPLE_LABEL = re.compile(r"\(\s*[A-Za-z](?:_\{?\w\}?)?(?:\s*,\s*[A-Za-z](?:_\{?\w\}?)?)+\s*\)")
_QUANTIFIER = re.compile(
    r"(?:,|\\text\s*\{)?\s*,?\s*(?:for (?:all|every|any|each)(?: real| positive| integers?)?\b[^,;=<>]*|\\forall\b.*)$"
)
_REALS = re.compile(r"(?:\\mathbb\s*\{?\s*R\s*\}?|\\R|\\Reals)(?:\s*[\^_]\s*\{?\s*([-+])\s*\}?)?")
_MATRIX = re.compile(r"\\begin\s*\{([pbB]?matrix|array)\}\s*(?:\{[lcr|]*\})?(.*)\\end\s*\{\1\}", re.S)
_BRACKET = re.compile(r"[(\[]|\\\{")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_OUTER_SPACE = re.compile(r"^(?:\s|\\[,;: ]|~)+|(?:\s|\\[,;: ]|~|\.)+$")
_UNION = re.compile(r"\\cup(?![a-z])")
_EMPTY_TEXTS = frozenset([r"\emptyset", r"\{\}", r"\{ \}"])


@lru_cache(maxsize=4096)
def read_form(text: str) -> Form | None:
    """Return the form of a tidy text, or None if it is not known."""
    if len(text) > MAX_CHARACTERS:
        return None
    return _read(text if _BRACKET.search(text) else _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text), 0)


def num_parts(text: str) -> int:
    """Return the number of values in a tidy text: more than 1 for a list or set."""
    form = None if text.isalnum() else read_form(text)
    return len(form.items) if isinstance(form, Group) and form.opening in ("", "{") else 1


def _read(text: str, depth: int) -> Form | None:
    text = _OUTER_SPACE.sub("", text)  # not a point at the start: .5 is no 5
    if depth > _MAX_DEPTH or not text or r"\text" in text:
        numeral = _NUMERAL.fullmatch(text)
        time = _RATIO.fullmatch(text)
        return _numeral(numeral) if numeral else _ratio(time) if time else _without_quantifier(text, depth)
    if text in _EMPTY_TEXTS:
        return EMPTY_SET
    for read in (_number, _special, _listed, _related, _bracketed):
        form = read(text, depth)
        if form is not None:
            return form if isinstance(form, Form) else None
    if r"\pm" in text or r"\mp" in text:
        return _both_signs(text, depth)
    return _formula(text)


class _Unknown:
    """The text has this structure, but a part of it is not known."""


def _number(text: str, depth: int) -> Form | None:
    value = None if depth and "," in text else read_number(text)  # (0,5) has two members
    return None if value is None else Formula(("num", value, is_decimal(text)))


def _special(text: str, depth: int) -> Form | _Unknown | None:
    """Read infinities, numerals, ratios, matrices, sets by condition and the real line."""
    if match := _INFINITE.fullmatch(text):
        return Infinity(-1 if match[1] == "-" else 1)
    if match := _NUMERAL.fullmatch(text):
        return _numeral(match)
    if match := _RATIO.fullmatch(text):
        return _ratio(match)
    if match := _MATRIX.fullmatch(text.strip("[]() ") if text[0] in "[(" else text):
        return _matrix(match[2], depth)
    if match := _BUILDER.fullmatch(text):
        form = _read(re.sub(rf",?\s*{match[1]}\s*\\in\s*\\mathbb\s*\{{?R\}}?\s*,?", "", match[2]), depth + 1)
        return form if isinstance(form, Region) and form.unknown == match[1] else _Unknown()
    if match := _REALS.fullmatch(text):
        zero = Formula(("num", Fraction(0), False))
        low, high = (zero if match[1] == "+" else Infinity(-1)), (zero if match[1] == "-" else Infinity(1))
        return Region((Piece(low, high, True, True),), None)
    return None


def _numeral(match: re.Match[str]) -> Numeral | None:
    words = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve", "sixteen")
    names = dict(zip(words, map(str, (*range(2, 11), 12, 16)), strict=True))
    base = names.get(match[2] or match[3], match[2] or match[3])
    return Numeral(match[1].upper().lstrip("0") or "0", base) if base.isdigit() else None


def _ratio(match: re.Match[str]) -> Ratio:
    suffix = re.sub(r"[.\s]", "", match[2] or "").lower()
    return Ratio(tuple(part.strip() for part in match[1].split(":")), suffix)


def _matrix(body: str, depth: int) -> Form | _Unknown:
    rows = [row for row in re.split(r"\\\\", body) if row.strip()]
    read = tuple(tuple(_read(cell, depth + 1) for cell in row.split("&")) for row in rows)
    if r"\begin" in body or not read or any(cell is None for row in read for cell in row):
        return _Unknown()
    return Matrix(read)  # type: ignore[arg-type]


def _without_quantifier(text: str, depth: int) -> Form | None:
    """Read `f(x) = 2x \\text{ for all real } x` as the equation alone."""
    plain = _QUANTIFIER.sub("", text)
    return _read(plain, depth + 1) if plain != text and r"\text" not in plain and depth <= _MAX_DEPTH else None


def _listed(text: str, depth: int) -> Form | _Unknown | None:
    """Read unions, lists and alternatives."""
    if _UNION.search(text):
        parts, signs = split(text, (r"\cup",))
        if signs:
            parts[0] = re.sub(r"^\s*[A-Za-z]\s*\\in(?![a-z])", "", parts[0])
            return _union([_read(part.replace(r"x \in", ""), depth + 1) for part in parts])
    if r"\setminus" in text and len(parts := split(text, (r"\setminus",))[0]) == 2:
        return _difference(*(_read(part, depth + 1) for part in parts))
    for separators in ((";",), ("or", r"\lor"), ("and", r"\land"), (",",)):
        parts, signs = split(text, separators)
        if separators == (",",):
            parts = [part for part in parts if part.strip()]
        if not signs:
            continue
        if len(parts) == 1:
            return _read(parts[0], depth + 1) or _Unknown()
        if any(sign in (r"\lor", "or") for sign in signs) and "," in split(text, (",",))[1]:
            parts = [part for part in split(text, ("or", ",", r"\lor"))[0] if part.strip()]
        elif any(sign in (r"\land", "and") for sign in signs) and "," in split(text, (",",))[1]:
            parts = [part for part in split(text, ("and", ",", r"\land"))[0] if part.strip()]
        elif separators == (";",) and "," in split(text, (",",))[1]:
            return _Unknown()
        return _list_of([_read(part, depth + 1) for part in parts], signs)
    return None


def _list_of(forms: list[Form | None], signs: list[str]) -> Form | _Unknown:
    items = [form for form in forms if form is not None]
    if any(isinstance(item, TruthValue) for item in items):
        return TruthValue()
    if len(items) < len(forms):
        return _Unknown()
    are_inequalities = [isinstance(item, Region) and item.unknown is not None for item in items]
    if any(sign in ("or", r"\lor") for sign in signs) and any(are_inequalities):
        return _union([_point(item) for item in items])
    if all(are_inequalities) and all(sign in ("and", r"\land") for sign in signs):
        return _between(items)
    flat: list[Form] = []
    for item in items:
        flat += _members(item)
    return Group("", "", tuple(_with_one_label(flat)))


def _with_one_label(items: list[Form]) -> list[Form]:
    """Drop the label of `x = 1, 2, 3`, which belongs to all the values."""
    first = items[0]
    if isinstance(first, Equation) and first.label and not any(isinstance(item, Equation) for item in items[1:]):
        return [*_members(first.value), *items[1:]]
    return items


def _members(form: Form) -> tuple[Form, ...]:
    """Return the members of a list without brackets, or the form alone."""
    return form.items if isinstance(form, Group) and not form.opening else (form,)


def _point(form: Form) -> Form:
    """Return `x = 2` as a region, so that it can be part of a union."""
    if isinstance(form, Equation) and form.label and isinstance(form.value, Formula):
        return Region((Piece(form.value, form.value, False, False),), form.label)
    return form


def _union(forms: list[Form | None]) -> Form | _Unknown:
    pieces: list[Piece] = []
    unknowns = set()
    for form in forms:
        region = as_region(form) if form is not None else None
        if region is None:
            return _Unknown() if None in forms else Group(r"\cup", "", tuple(form for form in forms if form))
        pieces += region.pieces
        unknowns.add(region.unknown)
    return Region(tuple(pieces), unknowns.pop()) if len(unknowns) == 1 else _Unknown()


def _difference(form: Form | None, removed: Form | None) -> Form | _Unknown:
    region = None if form is None else as_region(form)
    if region is None or region.unknown or not isinstance(removed, Group) or removed.opening != "{":
        return _Unknown()
    pieces = without_points(region.pieces, removed.items)
    return _Unknown() if pieces is None or removed == EMPTY_SET else Region(pieces, None)


def _between(items: list[Form]) -> Form | _Unknown:
    """Return the interval between a lower and an upper bound: `x > 2 and x < 5`."""
    pieces = [item.pieces[0] for item in items if isinstance(item, Region) and len(item.pieces) == 1]
    if len(pieces) != 2 or len(items) != 2 or len({getattr(item, "unknown", None) for item in items}) != 1:
        return _Unknown()
    lower = [piece for piece in pieces if isinstance(piece.high, Infinity)]
    upper = [piece for piece in pieces if isinstance(piece.low, Infinity)]
    if len(lower) != 1 or len(upper) != 1:
        return _Unknown()
    piece = Piece(lower[0].low, upper[0].high, lower[0].is_open_low, upper[0].is_open_high)
    return Region((piece,), getattr(items[0], "unknown", None))


def _related(text: str, depth: int) -> Form | _Unknown | None:
    """Read equations and inequalities."""
    sides, signs = split(text, tuple(_RELATION))
    if not signs:
        return None
    sides = [side.strip() for side in sides]
    if not all(sides):
        return _Unknown()
    if signs == [r"\in"] and LABEL.fullmatch(sides[0]):
        form = _read(sides[1], depth + 1)
        return form if isinstance(form, Region | Group) else _Unknown()
    if signs.count(r"\approx") == 1 and set(signs) <= {"=", r"\approx"}:
        first = signs.index(r"\approx")
        is_labelled = first == 0 and (LABEL.fullmatch(sides[0]) or _CALL.fullmatch(sides[0]))
        sides, signs = ([sides[0], sides[1]], ["="]) if is_labelled else (sides[: first + 1], ["="] * first)
        if not signs:
            return _read(sides[0], depth + 1) or _Unknown()
    if set(signs) == {"="}:
        return _equation(sides, depth)
    return _inequality(sides, signs)


def _equation(sides: list[str], depth: int) -> Form | _Unknown:
    value = _read(sides[-1], depth + 1)
    if value is None:
        return _Unknown()
    left = read_formula(sides[0])
    call = _CALL.fullmatch(sides[0])
    if call:
        is_constant = isinstance(value, Formula) and not symbols(value.tree)
        return Equation(f"{call[1]}()" if is_constant else f"{call[1]}({call[2]})", value)
    if LABEL.fullmatch(sides[0]) or _TUPLE_LABEL.fullmatch(sides[0]):
        label = re.sub(r"[\s{}]", "", sides[0])
        if isinstance(value, Formula) and left is not None and symbols(left) & symbols(value.tree):
            return TruthValue() if left == value.tree else _Unknown()
        return Equation(label, value, left)
    if len(set(sides)) == 1:
        return TruthValue()
    others = [read_formula(side) for side in sides[1:-1]]
    if left is None or not isinstance(value, Formula) or any(side is None or symbols(side) for side in others):
        return _Unknown()
    return TruthValue() if _is_folded([left, *others, value.tree]) else Equation("", value, left)


def _is_folded(sides: list[Tree | None]) -> bool:
    """Return True for a false equation of numbers, and for one whose left side does not depend on its symbols."""
    trees = [side for side in sides if side is not None]
    try:
        if not any(symbols(tree) for tree in trees):
            return not all(formulas_agree(tree, trees[-1]) for tree in trees[:-1])
        return bool(symbols(trees[0])) and not symbols(trees[-1]) and is_constant(trees[0])
    except UndecidedError:
        return False


def _inequality(sides: list[str], signs: list[str]) -> Form | _Unknown:
    trees = [None if _INFINITE.fullmatch(side) else read_formula(side) for side in sides]
    bounds = [_number_or_infinity(side) for side in sides]
    unknowns = [tree is not None and tree[0] == "symbol" for tree in trees]
    if all(bound is not None for bound in bounds) and not any(tree and symbols(tree) for tree in trees):
        return TruthValue()
    if not all(sign in _FLIPPED for sign in signs):
        return _Unknown()
    if len(sides) == 2 and any(unknowns) and None not in bounds:
        middle = 0 if unknowns[0] else 1
        sign = signs[0] if middle == 0 else _FLIPPED[signs[0]]
        bound, unknown = bounds[1 - middle], str(trees[middle][1])  # type: ignore[index]
        if isinstance(bound, Formula) and not symbols(bound.tree):
            return Region(_half_lines(sign, bound), unknown)
        if isinstance(bound, Infinity):
            return TruthValue()
    if len(sides) == 3 and unknowns[1] and None not in bounds:
        if signs[0] in (">", r"\geq"):
            bounds, signs = bounds[::-1], [_FLIPPED[sign] for sign in reversed(signs)]
        if all(sign in ("<", r"\leq") for sign in signs):
            return _interval_of(signs, bounds[0], bounds[2], str(trees[1][1]))  # type: ignore[index]
        return _Unknown()
    left, right, sign = trees[0], trees[1], signs[0]
    if len(sides) == 2 and left is not None and right is not None:
        return Inequality(right, left, _FLIPPED[sign]) if sign in (">", r"\geq") else Inequality(left, right, sign)
    return _Unknown()


def _interval_of(signs: list[str], low: Form | None, high: Form | None, unknown: str) -> Form | _Unknown:
    if low is None or high is None or (isinstance(low, Infinity) and isinstance(high, Infinity)):
        return TruthValue()
    return Region((Piece(low, high, signs[0] == "<", signs[1] == "<"),), unknown)


def _half_lines(sign: str, bound: Formula) -> tuple[Piece, ...]:
    below = Piece(Infinity(-1), bound, True, sign != r"\leq")
    above = Piece(bound, Infinity(1), sign != r"\geq", True)
    return {"<": (below,), r"\leq": (below,), ">": (above,), r"\geq": (above,)}.get(sign, (below, above))


def _number_or_infinity(text: str) -> Form | None:
    match = _INFINITE.fullmatch(text)
    return Infinity(-1 if match[1] == "-" else 1) if match else _formula(text)


def _bracketed(text: str, depth: int) -> Form | _Unknown | None:
    """Read a text that one pair of brackets encloses: a tuple, an interval, a set, or a formula in parentheses."""
    opening = next((each for each in (r"\{", r"\langle", "(", "[", "{") if text.startswith(each)), None)
    closing = next((each for each in (r"\}", r"\rangle", ")", "]", "}") if text.endswith(each)), None)
    if opening is None or closing is None or len(split(f"{text},", (",",))[0]) != 2:
        return None
    inner = text[len(opening) : -len(closing)]
    if len(split(inner, (",",))[0]) == 1 and split(f"{inner},", (",",))[0][-1] != "":
        return None  # (a)(b): the first bracket is not closed by the last one
    form = _read(inner, depth + 1)
    is_listed = bool(split(inner, (",", ";"))[1])
    if form is None:
        return _Unknown() if is_listed else None
    if opening == "{" or (opening == "(" and closing == ")" and not is_listed):
        return form
    items = _members(form)
    if opening == "[" and len(items) == 1:
        return _Unknown()
    return Group(opening.replace("\\{", "{"), closing.replace("\\}", "}"), items)


def _both_signs(text: str, depth: int) -> Form | None:
    """Return both values of a formula with `\\pm`; several signs are independent, unless `\\mp` follows `\\pm`."""
    signs = re.split(r"(\\pm|\\mp)(?![a-z])", text)
    num_signs = len(signs) // 2
    if num_signs > _MAX_SIGNS:
        return None
    is_linked = r"\mp" in text
    choices = [["+-"[way]] * num_signs for way in (0, 1)] if is_linked else product("+-", repeat=num_signs)
    items = []
    for chosen in choices:
        flipped = {"+": "-", "-": "+"}
        parts = [signs[0]]
        for index, sign in enumerate(chosen):
            parts += [sign if signs[2 * index + 1] == r"\pm" else flipped[sign], signs[2 * index + 2]]
        items.append(_read("".join(parts), depth + 1))
    if any(item is None for item in items):
        return None
    return Group("", "", tuple(item for item in items if item is not None))


def _formula(text: str) -> Formula | None:
    is_percent = text.endswith("%")
    number = read_number(text)
    if number is not None:
        return Formula(("num", number, is_decimal(text)))
    tree = read_formula(text.rstrip("%").rstrip(" \\") if is_percent else text)
    return None if tree is None else Formula(tree, is_percent)
