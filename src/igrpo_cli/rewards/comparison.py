"""Equality of two forms. The reference decides which form is required.

A relation that is true or false as it stands equals nothing: only its text can be right. Neither does an equation of
numbers as a reference. An empty set equals only an empty set.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from igrpo_cli.rewards.expressions import Tree, is_echo
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
    as_inequality,
    as_region,
)
from igrpo_cli.rewards.values import (
    UndecidedError,
    exact_value,
    formula_order,
    formulas_agree,
    ratio_is_constant,
    symbols,
)

_MAX_ITEMS = 64


def forms_agree(answer: Form, reference: Form) -> bool:
    """Return True if two forms say the same. Raises UndecidedError if that cannot be computed here."""
    if isinstance(answer, TruthValue) or isinstance(reference, TruthValue) or is_true_or_false(reference):
        return False
    if EMPTY_SET in (answer, reference):
        return answer == reference
    if isinstance(reference, Equation):
        return _equals_equation(answer, reference)
    if isinstance(answer, Equation):
        return _is_result(answer) and forms_agree(answer.value, reference)
    if isinstance(answer, Region) or isinstance(reference, Region):
        return _equals_region(answer, reference)
    if isinstance(reference, Group) or isinstance(answer, Group):
        return _equals_group(answer, reference)
    return _simple_forms_agree(answer, reference)


def _simple_forms_agree(answer: Form, reference: Form) -> bool:
    if isinstance(answer, Formula) and isinstance(reference, Formula):
        return _formulas_agree(answer, reference)
    if isinstance(answer, Ratio) or isinstance(reference, Ratio):
        return _ratios_agree(answer, reference)
    if isinstance(answer, Numeral) or isinstance(reference, Numeral):
        return _numerals_agree(answer, reference)
    if isinstance(answer, Inequality) and isinstance(reference, Inequality):
        return _inequalities_agree(answer, reference)
    if isinstance(answer, Matrix) and isinstance(reference, Matrix):
        return len(answer.rows) == len(reference.rows) and all(map(_all_agree, answer.rows, reference.rows))
    return answer == reference


def is_true_or_false(form: Form) -> bool:
    return isinstance(form, Equation) and not form.label and not (_symbols(form.left) or _symbols_of(form.value))


def _is_result(equation: Equation) -> bool:
    """Return False for `x + 8 = 7`, which says 7 of a sum. `x = 7`, `\\sin x = 7` and `3 + 4 = 7` are results."""
    is_named = (
        equation.label or not _symbols(equation.left) or (equation.left is not None and equation.left[0] == "call")
    )
    return bool(is_named or _symbols_of(equation.value))


def _is_symbol(form: Form) -> bool:
    return isinstance(form, Formula) and form.tree[0] == "symbol"


def _symbols(tree: Tree | None) -> frozenset[str]:
    return frozenset() if tree is None else symbols(tree)


def _symbols_of(form: Form) -> frozenset[str]:
    return symbols(form.tree) if isinstance(form, Formula) else frozenset()


def _formulas_agree(answer: Formula, reference: Formula) -> bool:
    """Compare values; `30\\%` is 30 and 0.3."""
    if formulas_agree(answer.tree, reference.tree):
        return True
    if answer.is_percent == reference.is_percent:
        return False
    hundred: Tree = ("num", Fraction(100), False)
    if answer.is_percent:
        return formulas_agree(("frac", answer.tree, hundred), reference.tree)
    return formulas_agree(answer.tree, ("frac", reference.tree, hundred))


def echoes_question(answer: Form, reference: Form) -> bool:
    """Return True for a sum or product of numbers that is not worked out, where the reference is a number."""
    answer = answer.value if isinstance(answer, Equation) else answer
    reference = reference.value if isinstance(reference, Equation) else reference
    if not (isinstance(answer, Formula) and isinstance(reference, Formula)):
        return False
    if not is_echo(answer.tree) or is_echo(reference.tree) or not _is_plain(reference.tree):
        return False
    is_quotient = answer.tree[0] == "div" and all(_is_plain(part) for part in answer.tree[1:])
    value = exact_value(reference.tree)
    return not is_quotient or value is None or value.denominator == 1


def _is_plain(tree: Tree) -> bool:
    """Return True for a number: an integer, a decimal, a fraction or a mixed number."""
    return tree[0] == "num" or (
        tree[0] in ("neg", "frac", "mixed", "div") and all(_is_plain(part) for part in tree[1:])
    )


def _all_agree(answers: Sequence[Form], references: Sequence[Form]) -> bool:
    return len(answers) == len(references) and all(map(forms_agree, answers, references))


def _any_order_agrees(answers: Sequence[Form], references: Sequence[Form]) -> bool:
    """Return True if every answer equals a reference of its own."""
    if len(answers) != len(references) or len(answers) > _MAX_ITEMS:
        return False
    left = list(references)
    for answer in answers:
        match = next((index for index, reference in enumerate(left) if forms_agree(answer, reference)), None)
        if match is None:
            return False
        del left[match]
    return True


def _distinct(items: Sequence[Form]) -> list[Form]:
    found: list[Form] = []
    for item in items[: _MAX_ITEMS + 1]:
        if not any(forms_agree(item, other) for other in found):
            found.append(item)
    return found


def _equals_equation(answer: Form, reference: Equation) -> bool:
    if not isinstance(answer, Equation):
        return bool(reference.label) and forms_agree(answer, reference.value)
    if reference.label and answer.label:
        is_turned = all(_is_symbol(each.value) and each.left is not None for each in (answer, reference))
        if answer.label != reference.label and is_turned:  # y = x
            return (answer.left, answer.value.tree) == (reference.value.tree, reference.left)  # type: ignore[union-attr]
        return answer.label == reference.label and forms_agree(answer.value, reference.value)
    if is_true_or_false(answer):  # 2 + 3 = 5 for x = 5
        return bool(reference.label) and forms_agree(answer.value, reference.value)
    sides = [(each.left, each.value) for each in (answer, reference)]
    if any(left is None or not isinstance(right, Formula) for left, right in sides):
        raise UndecidedError
    ours, theirs = (("add", left, ("neg", right.tree)) for left, right in sides)  # type: ignore[union-attr]
    if symbols(ours) != symbols(theirs):
        return False
    if ratio_is_constant(ours, theirs, is_positive=False):
        return True
    raise UndecidedError


def _inequalities_agree(answer: Inequality, reference: Inequality) -> bool:
    if answer.sign != reference.sign:
        return False
    ours, theirs = (("add", each.left, ("neg", each.right)) for each in (answer, reference))
    if symbols(ours) != symbols(theirs):
        return False
    if ratio_is_constant(ours, theirs, is_positive=answer.sign != r"\neq"):
        return True
    raise UndecidedError


def _equals_group(answer: Form, reference: Form) -> bool:
    """Compare lists, sets and tuples. A list without brackets is a set."""
    if isinstance(reference, Matrix | Inequality) or isinstance(answer, Matrix | Inequality):
        raise UndecidedError
    if not isinstance(reference, Group):
        return isinstance(answer, Group) and answer.opening == "{" and _is_single(answer, reference)
    if not isinstance(answer, Group):
        return reference.opening == "{" and len(reference.items) == 1 and forms_agree(answer, reference.items[0])
    if any(isinstance(item, Matrix | Inequality) for item in (*answer.items, *reference.items)):
        raise UndecidedError
    labelled = _equals_labelled(answer, reference)
    if labelled is not None:
        return labelled
    ours, theirs = answer.items, reference.items
    if reference.opening in ("", "{"):
        if answer.opening not in ("", "{"):
            return (
                answer.opening == "(" and reference.opening == "" and answer.closing == ")" and _all_agree(ours, theirs)
            )
        return _any_order_agrees(_distinct(ours), _distinct(theirs))
    if not answer.opening:
        is_tuple = reference.opening == "(" and reference.closing == ")"
        has_infinity = any(isinstance(item, Infinity) for item in (*ours, *theirs))
        return is_tuple and not has_infinity and _all_agree(ours, theirs)
    if answer.opening == reference.opening == r"\cup":  # of sets that are only named
        return _any_order_agrees(ours, theirs)
    same_brackets = (answer.opening, answer.closing) == (reference.opening, reference.closing)
    return same_brackets and _all_agree(ours, theirs)


def _is_single(answer: Group, reference: Form) -> bool:
    return len(answer.items) == 1 and forms_agree(answer.items[0], reference)


def _labels(group: Group) -> list[str] | None:
    """Return the labels of `x = 1, y = 2`; None if not every member has one."""
    labels = [item.label for item in group.items if isinstance(item, Equation)]
    return labels if len(labels) == len(group.items) and all(labels) else None


def _equals_labelled(answer: Group, reference: Group) -> bool | None:
    """Compare `x = 1, y = 2` by label; None if neither has labels or the labels do not tell the members apart."""
    ours, theirs = _labels(answer), _labels(reference)
    if ours is None and theirs is None:
        return None
    if ours is not None and theirs is not None:
        if sorted(ours) != sorted(theirs):
            return False
        return _any_order_agrees(answer.items, reference.items)
    values = [_values(group) for group in (answer, reference)]
    if theirs is not None and len(set(theirs)) > 1:
        return answer.opening in ("", "(") and _all_agree(values[0], values[1])
    if ours is not None and len(set(ours)) > 1 and reference.opening == "(":
        in_order = sorted(range(len(ours)), key=lambda index: ours[index])
        return _all_agree([values[0][index] for index in in_order], values[1])
    if "(" in (answer.opening, reference.opening):
        return False
    return _any_order_agrees(*values)


def _values(group: Group) -> list[Form]:
    return [item.value if isinstance(item, Equation) and _is_result(item) else item for item in group.items]


def _equals_region(answer: Form, reference: Form) -> bool:
    """Compare regions as sets of numbers, whatever they are written as; two names of unknowns must be the same."""
    ours, theirs = as_region(answer), as_region(reference)
    if ours is None or theirs is None:
        given, expected = as_inequality(answer), as_inequality(reference)
        if given and expected:  # 2x > 4 for x > 2
            return _inequalities_agree(given, expected)
        if isinstance(answer, Inequality) or isinstance(reference, Inequality):
            raise UndecidedError
        return False
    if ours.unknown and theirs.unknown and ours.unknown != theirs.unknown:
        return False
    if ours == theirs and _is_chain_of_symbols(ours):
        return True
    left, right = _merged(ours.pieces), _merged(theirs.pieces)
    if any(region.unknown and _is_whole_line(merged) for region, merged in ((ours, left), (theirs, right))):
        return False
    return len(left) == len(right) and all(map(_pieces_agree, left, right))


def _is_chain_of_symbols(region: Region) -> bool:
    """Return True for `a < b < c`, whose ends have no order of their own."""
    ends = (region.pieces[0].low, region.pieces[0].high)
    names = [_symbols_of(end) for end in ends]
    return len(region.pieces) == 1 and ends[0] != ends[1] and all(names) and region.unknown not in names[0] | names[1]


def _is_whole_line(pieces: Sequence[Piece]) -> bool:
    """Return True for all real numbers; as inequalities (`x < 1 or x > 0`) they are true as they stand."""
    ends = (pieces[0].low, pieces[0].high) if len(pieces) == 1 else ()
    return bool(ends) and all(isinstance(end, Infinity) for end in ends)


def _pieces_agree(answer: Piece, reference: Piece) -> bool:
    return (
        (answer.is_open_low, answer.is_open_high) == (reference.is_open_low, reference.is_open_high)
        and forms_agree(answer.low, reference.low)
        and forms_agree(answer.high, reference.high)
    )


def _order(first: Form, second: Form) -> int:
    """Return -1, 0 or 1 for two ends of intervals. Raises UndecidedError if they are not real numbers."""
    if isinstance(first, Infinity) or isinstance(second, Infinity):
        left = first.sign if isinstance(first, Infinity) else 0
        right = second.sign if isinstance(second, Infinity) else 0
        return (left > right) - (left < right)
    order = None
    if isinstance(first, Formula) and isinstance(second, Formula):
        order = formula_order(first.tree, second.tree)
    if order is None:
        raise UndecidedError
    return order


def _merged(pieces: Sequence[Piece]) -> list[Piece]:
    """Return the pieces in ascending order, with those that touch joined. Raises UndecidedError for an empty one."""
    merged: list[Piece] = []
    for piece in pieces:
        order = _order(piece.low, piece.high)
        if order > 0 or (order == 0 and (piece.is_open_low or piece.is_open_high)):
            raise UndecidedError
        place = sum(1 for other in merged if _starts_before(other, piece))
        merged.insert(place, piece)
    joined: list[Piece] = []
    for piece in merged:
        if joined and _touch(joined[-1], piece):
            joined[-1] = _join(joined[-1], piece)
        else:
            joined.append(piece)
    return joined


def _starts_before(first: Piece, second: Piece) -> bool:
    order = _order(first.low, second.low)
    return order < 0 or (order == 0 and first.is_open_low <= second.is_open_low)


def _touch(first: Piece, second: Piece) -> bool:
    order = _order(first.high, second.low)
    return order > 0 or (order == 0 and not (first.is_open_high and second.is_open_low))


def _join(first: Piece, second: Piece) -> Piece:
    order = _order(first.high, second.high)
    if order > 0:
        return first
    is_open = second.is_open_high and (order < 0 or first.is_open_high)
    return Piece(first.low, second.high, first.is_open_low, is_open)


def _ratios_agree(answer: Form, reference: Form) -> bool:
    """Compare ratios by proportion, and times of day digit by digit. Only a ratio of two is a fraction."""
    ours, theirs = _ratio_parts(answer), _ratio_parts(reference)
    if ours is None or theirs is None or len(ours) != len(theirs):
        return False
    if any(isinstance(form, Ratio) and _is_time(form) for form in (answer, reference)):
        are_ratios = isinstance(answer, Ratio) and isinstance(reference, Ratio)
        return are_ratios and ours == theirs and _suffix(answer) == _suffix(reference)
    pairs = list(zip(ours, theirs, strict=True))
    return any(ours) and all(left * pairs[0][1] == right * pairs[0][0] for left, right in pairs)


def _suffix(form: Form) -> str:
    return form.suffix if isinstance(form, Ratio) else ""


def _ratio_parts(form: Form) -> list[Fraction] | None:
    if isinstance(form, Ratio):
        return [Fraction(part) for part in form.parts]
    value = exact_value(form.tree) if isinstance(form, Formula) else None
    return None if value is None or value.denominator == 1 else [Fraction(value.numerator), Fraction(value.denominator)]


def _is_time(ratio: Ratio) -> bool:
    """Return True for an hour up to 24 and minutes of two digits below 60, or with am or pm."""
    hour, *rest = ratio.parts
    is_clock = len(rest) <= 2 and all(len(part) == 2 and part.isdigit() and int(part) < 60 for part in rest)
    return bool(ratio.suffix) or (is_clock and hour.isdigit() and int(hour) <= 24)


def _numerals_agree(answer: Form, reference: Form) -> bool:
    """Compare digits and base. An answer may leave the base out, since the problem gives it."""
    if not isinstance(reference, Numeral):
        return False
    if isinstance(answer, Numeral):
        return answer == reference
    value = exact_value(answer.tree) if isinstance(answer, Formula) and answer.tree[0] == "num" else None
    return value is not None and value.denominator == 1 and str(value) == reference.digits


def same_notation(answer: Form, reference: Form) -> bool:
    """Return True if two equal answers are the same up to labels, order of a list and spelling of fractions."""
    answer = answer.value if isinstance(answer, Equation) else answer
    reference = reference.value if isinstance(reference, Equation) else reference
    if isinstance(answer, Group) and isinstance(reference, Group) and len(answer.items) == len(reference.items):
        return all(any(same_notation(item, other) for other in reference.items) for item in answer.items)
    if isinstance(answer, Formula) and isinstance(reference, Formula):
        return _without_spelling(answer.tree) == _without_spelling(reference.tree)
    return answer == reference


def _without_spelling(tree: Tree) -> Tree:
    """Return a tree in which `1/2` is `\\frac{1}{2}` and 0.50 is 0.5."""
    if tree[0] == "num":
        return tree[:2]
    kind = "frac" if tree[0] == "div" else tree[0]
    return (kind, *(_without_spelling(part) if isinstance(part, tuple) else part for part in tree[1:]))
