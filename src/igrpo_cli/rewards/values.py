"""The value of a formula: an exact fraction where there is one, otherwise a number of as many digits as it takes.

Formulas with symbols are compared at four points, at which two different ones practically never agree. Nothing is
rounded to 0: the number of digits grows with the size of the numbers in a formula.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

from igrpo_cli.rewards.expressions import Tree, read_formula
from igrpo_cli.rewards.plain_numbers import TOLERANCE, numbers_agree

Value = Any
"""A Fraction, or a number of mpmath."""

_MAX_BITS = 100_000
_MAX_FACTORIAL = 5_000
_HUGE_BITS = 5_000_000  # sympy takes seconds from here
_HUGE_FACTORIAL = 50_000
_MAX_DIGITS = 3_000
_SPARE_DIGITS = 40
_POINTS = (
    (Fraction(17, 7), Fraction(29, 11), Fraction(41, 13), Fraction(53, 17)),
    (Fraction(-11, 19), Fraction(31, 23), Fraction(-13, 6), Fraction(37, 29)),
    (Fraction(5, 43), Fraction(-7, 31), Fraction(9, 47), Fraction(-3, 8)),
    (Fraction(-101, 9), Fraction(-67, 12), Fraction(-71, 21), Fraction(-83, 25)),
)


class UndecidedError(Exception):
    """A value is too large to compute, or not defined at a point."""


class TooLargeError(UndecidedError):
    """A number is so large that no program can be expected to compute it."""


class UndefinedValueError(UndecidedError):
    """A value such as 1/0 is not defined."""


@lru_cache(maxsize=4096)
def symbols(tree: Tree) -> frozenset[str]:
    """Return the names of the symbols in a tree."""
    if tree[0] == "symbol":
        return frozenset([tree[1]])
    return frozenset().union(*(symbols(part) for part in tree[1:] if isinstance(part, tuple)))


@lru_cache(maxsize=4096)
def has_decimals(tree: Tree) -> bool:
    """Return True if a number in a tree is written with decimal places, so it may be rounded."""
    if tree[0] == "num":
        return bool(tree[2])
    return any(has_decimals(part) for part in tree[1:] if isinstance(part, tuple))


@lru_cache(maxsize=4096)
def exact_value(tree: Tree) -> Fraction | None:
    """Return the value of a tree if it is a fraction that can be computed exactly."""
    if symbols(tree):
        return None
    try:
        value = _compute(tree, {}, _Exact())
    except (UndecidedError, _IrrationalError):
        return None
    return value if isinstance(value, Fraction) else None


def formulas_agree(answer: Tree, reference: Tree) -> bool:
    """Return True if two formulas have the same value, at all points if they have symbols.

    Raises UndecidedError if that cannot be computed.
    """
    if answer == reference:
        return True
    is_rounded = has_decimals(answer) or has_decimals(reference)
    names = sorted(symbols(answer) | symbols(reference))
    if not names:
        try:
            return _values_agree(answer, reference, {}, is_rounded)
        except UndefinedValueError:
            return False
    num_compared = 0
    for number, coordinates in enumerate(_POINTS):
        point = {
            name: coordinates[index % 4] + Fraction(index // 4, 3 + number + index) for index, name in enumerate(names)
        }
        try:
            if not _values_agree(answer, reference, point, is_rounded):
                return False
            num_compared += 1
        except UndecidedError:
            continue
    if num_compared < 2:
        raise UndecidedError
    return True


def is_constant(tree: Tree) -> bool:
    """Return True if a formula has the same value at all points, as `x - x` has. Raises UndecidedError."""
    points = [
        {name: coordinates[index % 4] + Fraction(index // 4, 7) for index, name in enumerate(sorted(symbols(tree)))}
        for coordinates in _POINTS
    ]
    values = [_as_number(_compute_both(tree, point)) for point in points]
    return all(abs(value - values[0]) <= 1e-12 * max(1, abs(values[0])) for value in values)


def formula_order(first: Tree, second: Tree) -> int | None:
    """Return -1, 0 or 1 for two real constants in ascending, equal or descending order; None if they are not real."""
    if symbols(first) or symbols(second):
        return None
    try:
        if formulas_agree(first, second):
            return 0
        left, right = (float(_real(_compute_both(tree, {}))) for tree in (first, second))
    except (UndecidedError, OverflowError):
        return None
    return -1 if left < right else 1


def ratio_is_constant(first: Tree, second: Tree, *, is_positive: bool) -> bool:
    """Return True if `first` is `second` times one number that is not 0 (and positive), so both vanish together.

    False also if either vanishes everywhere. Raises UndecidedError if that cannot be computed.
    """
    names = sorted(symbols(first) | symbols(second))
    ratio: Value = None
    for coordinates in _POINTS:
        point = {name: coordinates[index % 4] + Fraction(index // 4, 7) for index, name in enumerate(names)}
        values = [_as_number(_compute_both(tree, point)) for tree in (first, second)]
        if any(abs(value) < 1e-25 for value in values):
            return False
        here = values[0] / values[1]
        if ratio is not None and abs(here - ratio) > 1e-9 * abs(ratio):
            return False
        ratio = here
    return not is_positive or (abs(ratio.imag) < 1e-20 and ratio.real > 0)


def _values_agree(answer: Tree, reference: Tree, point: Mapping[str, Fraction], is_rounded: bool) -> bool:
    """Compare two values at one point: exactly if both are fractions, otherwise with as many digits as it takes."""
    exact: list[Value] = []
    for tree in (answer, reference):
        try:
            exact.append(_compute(tree, point, _Exact()))
        except _IrrationalError:
            exact.append(None)
    if None not in exact:
        return numbers_agree(exact[0], exact[1]) if is_rounded else bool(exact[0] == exact[1])
    from mpmath import mp, mpf

    digits = 50
    for _ in range(3):
        with mp.workdps(digits):
            size = _Size()
            ours, theirs = (_as_number(_compute(tree, point, size)) for tree in (answer, reference))
            if 2 * size.digits + 50 <= digits:
                if not (mp.isfinite(ours) and mp.isfinite(theirs)):
                    raise UndecidedError
                distance = abs(ours - theirs)
                if distance <= mpf(10) ** (_SPARE_DIGITS - 10 - digits) * max(size.largest, abs(ours), abs(theirs)):
                    return True
                if not is_rounded or any(value is not None and value.denominator == 1 for value in exact):
                    return False
                tolerance = mpf(TOLERANCE.numerator) / TOLERANCE.denominator
                return bool(distance <= tolerance * min(mpf(1), abs(theirs)))
            digits = 2 * size.digits + 60
        if digits > _MAX_DIGITS:
            break
    raise UndecidedError


def _compute_both(tree: Tree, point: Mapping[str, Fraction]) -> Value:
    try:
        return _compute(tree, point, _Exact())
    except _IrrationalError:
        from mpmath import mp

        with mp.workdps(60):
            return _compute(tree, point, _Size())


def _real(value: Value) -> Value:
    if not isinstance(value, Fraction) and abs(getattr(value, "imag", 0)) > 1e-20:
        raise UndecidedError
    return value if isinstance(value, Fraction) else value.real


class _IrrationalError(Exception):
    """A value is no fraction."""


class _Exact:
    """Rules for fractions: raises _IrrationalError where the result is none."""

    def note(self, value: Value) -> Value:
        return value

    def irrational(self, kind: str, arguments: list[Value]) -> Value:
        raise _IrrationalError


class _Size:
    """Rules for numbers of mpmath, and the number of digits that the values on the way have."""

    def __init__(self) -> None:
        self.digits = 0
        self.largest: Any = 0

    def note(self, value: Value) -> Value:
        if isinstance(value, Fraction):
            digits = (value.numerator.bit_length() + value.denominator.bit_length()) * 3 // 10
        else:
            size = abs(value)
            from mpmath import mp

            if not mp.isfinite(size):
                raise UndecidedError
            digits = abs(mp.mag(size)) * 3 // 10 if size else 0
            self.largest = max(self.largest, size)
        self.digits = max(self.digits, int(digits))
        return value

    def irrational(self, kind: str, arguments: list[Value]) -> Value:
        from mpmath import mp

        if kind == "pow":
            base, exponent = arguments
            if abs(exponent) > 10**6:
                raise UndecidedError
            return mp.power(base, exponent)
        functions = {"ln": mp.log, "arcsin": mp.asin, "arccos": mp.acos, "arctan": mp.atan, "abs": abs}
        if kind in ("factorial", "binom") and any(abs(argument) > _MAX_FACTORIAL for argument in arguments):
            raise UndecidedError
        if kind in ("floor", "ceil") and abs(arguments[0].imag) > 0:
            raise UndecidedError
        function = functions.get(kind) or getattr(mp, {"binom": "binomial"}.get(kind, kind))
        return function(*arguments)


def _as_number(value: Value) -> Value:
    from mpmath import mp, mpc

    if isinstance(value, Fraction):
        value = mp.mpf(value.numerator) / value.denominator
    return mpc(value)


def _compute(tree: Tree, point: Mapping[str, Fraction], rules: _Exact | _Size) -> Value:
    """Return the value of a tree. Raises UndecidedError, and _IrrationalError under the rules for fractions."""
    kind = tree[0]
    if kind == "num":
        return rules.note(tree[1])
    if kind == "symbol":
        return point[tree[1]]
    if kind == "constant":
        if isinstance(rules, _Exact):
            raise _IrrationalError
        from mpmath import mp

        return {"pi": +mp.pi, "e": +mp.e, "i": mp.mpc(0, 1)}[tree[1]]
    name, parts = (tree[1], tree[2:]) if kind == "call" else (kind, tree[1:])
    if kind == "root" and symbols(tree[1]):  # a root of an unknown is the principal one, as its power
        name, parts = "pow", (tree[1], ("frac", ("num", Fraction(1), False), tree[2]))
    arguments = [_compute(part, point, rules) for part in parts]
    if all(isinstance(argument, Fraction) for argument in arguments):
        value = _exact_result(name, arguments)
        if value is not None:
            return rules.note(value)
    if name in ("add", "mul", "div", "frac", "mixed", "neg"):
        arguments = [_as_number(argument) for argument in arguments]
        return rules.note(_arithmetic(name, arguments))
    if isinstance(rules, _Exact):
        raise _IrrationalError
    try:
        if name == "root":
            return rules.note(_irrational_root(rules, *map(_as_number, arguments)))
        return rules.note(rules.irrational(name, [_as_number(argument) for argument in arguments]))
    except (ValueError, ZeroDivisionError, OverflowError, TypeError) as error:
        raise UndecidedError from error


def _irrational_root(rules: _Size, value: Value, index: Value) -> Value:
    """Return a root; an odd one of a negative number is negative, other roots are the principal ones."""
    if value.imag == 0 and value.real < 0 and index.imag == 0 and index.real % 2 == 1:
        return -rules.irrational("pow", [-value, 1 / index])
    return rules.irrational("pow", [value, 1 / index])


def _arithmetic(name: str, values: list[Value]) -> Value:
    if name == "neg":
        return -values[0]
    left, right = values
    if name in ("add", "mixed"):
        return left + right
    if name == "mul":
        return left * right
    if right == 0:
        raise UndefinedValueError
    return left / right


def _exact_result(name: str, values: list[Fraction]) -> Fraction | None:
    """Return the exact result of an operation on fractions; None if it is not a fraction."""
    if name in ("add", "mixed", "neg", "mul", "div", "frac"):
        return Fraction(_arithmetic(name, values))
    if name == "pow":
        return _exact_power(values[0], values[1])
    if name == "root":
        return _exact_root_of(values[0], values[1])
    if name == "abs":
        return abs(values[0])
    if name == "floor":
        return Fraction(math.floor(values[0]))
    if name == "ceil":
        return Fraction(math.ceil(values[0]))
    whole = [int(value) for value in values if value.denominator == 1 and value >= 0]
    if name in ("factorial", "binom") and len(whole) == len(values):
        if max(whole) > _MAX_FACTORIAL:
            raise TooLargeError if name == "factorial" and whole[0] > _HUGE_FACTORIAL else UndecidedError
        return Fraction(math.factorial(whole[0]) if name == "factorial" else math.comb(*whole))
    return None


def _exact_root_of(value: Fraction, index: Fraction) -> Fraction | None:
    """Return an exact root; an odd root of a negative number is negative."""
    if not index:
        raise UndefinedValueError
    if value < 0 and index.denominator == 1 and index % 2:
        root = _exact_power(-value, 1 / index)
        return None if root is None else -root
    return _exact_power(value, 1 / index)


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    """Return a power if it is a fraction; a root of a negative number is none (it is complex)."""
    if base == 0:
        if exponent <= 0:
            raise UndefinedValueError
        return Fraction(0)
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) * bits > _MAX_BITS:
        if abs(base) == 1 and exponent.denominator == 1:
            return base if exponent.numerator % 2 else Fraction(1)
        raise TooLargeError if abs(exponent) * bits > _HUGE_BITS else UndecidedError
    if exponent.denominator == 1:
        return Fraction(base ** int(exponent))
    if base < 0 or exponent.denominator > 64:
        return None
    over = _exact_root(base.numerator, exponent.denominator)
    under = _exact_root(base.denominator, exponent.denominator)
    return None if over is None or under is None else Fraction(over, under) ** exponent.numerator


def _exact_root(number: int, index: int) -> int | None:
    if index == 2:
        root = math.isqrt(number)
    else:
        low, high = 0, 1 << (number.bit_length() // index + 1)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if middle**index <= number else (low, middle - 1)
        root = low
    return root if root**index == number else None


def read_value(text: str) -> Fraction | None:
    """Return the exact value of a formula without symbols, if it is a fraction."""
    tree = read_formula(text)
    return None if tree is None else exact_value(tree)
