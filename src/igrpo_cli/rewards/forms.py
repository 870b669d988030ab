"""The forms of an answer: a formula, a list, an interval, a region of inequalities, an equation, a ratio, a matrix."""

from __future__ import annotations

from dataclasses import dataclass

from igrpo_cli.rewards.expressions import Tree
from igrpo_cli.rewards.values import formula_order


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


def as_inequality(form: Form) -> Inequality | None:
    """Return `x > 2`, which is a region, as an inequality of two formulas; None for anything else."""
    if isinstance(form, Inequality) or not isinstance(form, Region):
        return form if isinstance(form, Inequality) else None
    piece, unknown = form.pieces[0], ("symbol", form.unknown)
    if form.unknown is None or len(form.pieces) > 1:
        return None
    if isinstance(piece.low, Formula) and isinstance(piece.high, Infinity):
        return Inequality(piece.low.tree, unknown, "<" if piece.is_open_low else r"\leq")
    if isinstance(piece.high, Formula) and isinstance(piece.low, Infinity):
        return Inequality(unknown, piece.high.tree, "<" if piece.is_open_high else r"\leq")
    return None


def without_points(pieces: tuple[Piece, ...], points: tuple[Form, ...]) -> tuple[Piece, ...] | None:
    """Return intervals without some points in them or at their ends; None if an end or a point is no real number."""
    for point in points:
        kept: list[Piece] = []
        for piece in pieces:
            orders = _order_in(piece, point)
            if orders is None:
                return None
            if orders == (-1, -1):
                kept += [
                    Piece(piece.low, point, piece.is_open_low, True),
                    Piece(point, piece.high, True, piece.is_open_high),
                ]
            else:
                is_open_low, is_open_high = piece.is_open_low or orders[0] == 0, piece.is_open_high or orders[1] == 0
                kept.append(Piece(piece.low, piece.high, is_open_low, is_open_high))
        pieces = tuple(kept)
    return pieces


def _order_in(piece: Piece, point: Form) -> tuple[int, int] | None:
    """Return the order of the lower end and `point`, and of `point` and the upper end."""
    orders = []
    for first, second in ((piece.low, point), (point, piece.high)):
        if isinstance(first, Formula) and isinstance(second, Formula):
            order = formula_order(first.tree, second.tree)
        else:
            is_below = first == Infinity(-1) or second == Infinity(1)
            order = -1 if is_below else None
        if order is None:
            return None
        orders.append(order)
    return orders[0], orders[1]


def _is_number(form: Form) -> bool:
    return isinstance(form, Infinity | Formula)
