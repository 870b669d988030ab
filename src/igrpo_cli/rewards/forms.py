"""The forms of an answer: a formula, a list, an interval, a region of inequalities, an equation, a ratio, a matrix."""

from __future__ import annotations

from dataclasses import dataclass

from igrpo_cli.rewards.expressions import Tree


@dataclass(frozen=True, slots=True)
class Formula:
    """One value. `is_percent` for `30\\%`, which is 30 and 0.3."""

    tree: Tree
    is_percent: bool = False


@dataclass(frozen=True, slots=True)
class Infinity:
    """`\\infty`, or with sign -1 its negative."""

    sign: int


@dataclass(frozen=True, slots=True)
class Group:
    """Several values. The brackets are empty for a list without them."""

    opening: str
    closing: str
    items: tuple[Form, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """An interval of a region."""

    low: Form
    high: Form
    is_open_low: bool
    is_open_high: bool


@dataclass(frozen=True, slots=True)
class Region:
    """A union of intervals of real numbers, with the name of the unknown if inequalities gave it."""

    pieces: tuple[Piece, ...]
    unknown: str | None


@dataclass(frozen=True, slots=True)
class Equation:
    """`label = value`, or an equation of two formulas without a label."""

    label: str
    value: Form
    left: Tree | None = None


@dataclass(frozen=True, slots=True)
class Inequality:
    """`left < right` or `left \\leq right` or `left \\neq right` of two formulas."""

    left: Tree
    right: Tree
    sign: str


@dataclass(frozen=True, slots=True)
class Ratio:
    """`a:b` or `a:b:c`, as a ratio or a time of day; `suffix` is am or pm."""

    parts: tuple[str, ...]
    suffix: str


@dataclass(frozen=True, slots=True)
class Numeral:
    """Digits in a base, as in `1011_2`."""

    digits: str
    base: str


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of values."""

    rows: tuple[tuple[Form, ...], ...]


@dataclass(frozen=True, slots=True)
class TruthValue:
    """A relation that is true or false as it stands, such as `1 < 2`. It says nothing about an unknown."""


Form = Formula | Infinity | Group | Region | Equation | Inequality | Ratio | Numeral | Matrix | TruthValue

EMPTY_SET = Group("{", "}", ())


def as_region(form: Form) -> Region | None:
    """Return a region, an interval in brackets or a set of numbers as a region; None for anything else."""
    if isinstance(form, Region):
        return form
    if not isinstance(form, Group):
        return None
    if form.opening in ("(", "[") and len(form.items) == 2 and all(_is_number(item) for item in form.items):
        return Region((Piece(*form.items, form.opening == "(", form.closing == ")"),), None)
    if form.opening == "{" and form.items and all(isinstance(item, Formula) for item in form.items):
        return Region(tuple(Piece(item, item, False, False) for item in form.items), None)
    return None


def _is_number(form: Form) -> bool:
    return isinstance(form, Infinity | Formula)
