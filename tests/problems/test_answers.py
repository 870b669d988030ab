"""Reference answers keep their meaning and lose their markers."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igrpo_cli.problems.answers import boxed_answers, reference_answer
from igrpo_cli.problems.rows import BadRow


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        ("204", "204"),
        ("  \\frac{7}{15}\n", "\\frac{7}{15}"),
        (27, "27"),
        (-3, "-3"),
        (27.0, "27"),
        (-0.5, "-0.5"),
        (1e300, "1e+300"),
        (Decimal("12.00"), "12"),
        (Decimal("12.50"), "12.50"),
        (["2"], "2"),
        ([[7.0]], "7"),
        ("['7']", "7"),
        ('["\\\\frac12"]', "\\frac12"),
        ("['\\\\frac12']", "\\frac12"),
        ("[1, 2]", "[1, 2]"),
        ("[7]", "[7]"),
        ("[0, 1)", "[0, 1)"),
        ("{1, 2}", "{1, 2}"),
        ("27.0", "27"),
        ("10.00", "10"),
        ("2.50", "2.50"),
        ("023", "023"),
        ("336^\\circ", "336^\\circ"),
        ("\\$18", "\\$18"),
        ("1,234", "1,234"),
        ("1.0.0", "1.0.0"),
        ("4 + 5 = 9\n#### 9", "9"),
        ("so\n#### 1,234", "1234"),
        ("so\n#### -12,345,678.5", "-12345678.5"),
        ("so\n#### 1,23", "1,23"),
        ("so\n#### 5.0", "5"),
        ("#### Answer\nis 7", "#### Answer\nis 7"),
        ("\\boxed{42}", "42"),
        ("The answer is $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        ("\\boxed{3} or again \\boxed{3}", "3"),
    ],
)
def test_an_answer_in_its_own_column(value: Any, answer: str) -> None:
    assert reference_answer(value, "auto") == answer


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("First \\boxed{1}, then \\boxed{2}.", "2"),
        ("\\boxed{\\text{a} \\} b}", "\\text{a} \\} b"),
        ("Thus $x = \\fbox{7}$", "7"),
        ("Thus $\\boxed 12$ is it", "12"),
        ("a \\boxed{2} b\n#### 5", "5"),
    ],
)
def test_a_solution_gives_its_last_marked_answer(solution: str, answer: str) -> None:
    assert reference_answer(solution, "solution") == answer


@pytest.mark.parametrize(
    "answer",
    ["7", "-2.5", "$\\frac{63}{400}$", "x = 5", "(1, 2)", "Yes", "40 cm", "\\text{Even}", "\\sin x + \\cos x", "C"],
)
def test_a_solution_that_is_nothing_but_an_answer_needs_no_mark(answer: str) -> None:
    assert reference_answer(answer, "solution") == answer


@pytest.mark.parametrize(
    "solution",
    ["6+7=13", "so 6 + 7 is 13", "13 because 6 and 7", "Add them.\n13", "x=2, so y=3", "1" * 201],
)
def test_a_solution_with_words_or_a_calculation_needs_a_mark(solution: str) -> None:
    with pytest.raises(BadRow, match="marks no answer"):
        reference_answer(solution, "solution")


def test_the_plain_form_takes_the_whole_text() -> None:
    assert reference_answer("the \\boxed{2} of\n#### 3", "plain") == "the \\boxed{2} of\n#### 3"


@pytest.mark.parametrize(
    ("value", "form", "kind"),
    [
        ("", "auto", "empty_answer"),
        ("  \n", "auto", "empty_answer"),
        ("\u200b", "auto", "empty_answer"),
        (None, "auto", "empty_answer"),
        ([], "auto", "empty_answer"),
        ([None], "auto", "empty_answer"),
        ("\\boxed{}", "auto", "empty_answer"),
        ("so\n#### ", "auto", "empty_answer"),
        ("no box", "solution", "no_final_answer"),
        ("never closed \\boxed{1", "solution", "no_final_answer"),
        ("\\boxed{1} and \\boxed{2}", "auto", "several_answers"),
        (float("nan"), "auto", "wrong_type"),
        (float("inf"), "auto", "wrong_type"),
        (True, "auto", "wrong_type"),
        (["1", "2"], "auto", "wrong_type"),
        ("['1', '2']", "auto", "wrong_type"),
        ("['1' '2']", "auto", "wrong_type"),
        ("{'value': 1}", "auto", "wrong_type"),
        ("[]", "auto", "empty_answer"),
        ("\theta", "auto", "control_character"),
        ("['\\frac12']", "auto", "control_character"),
        ("x\x08", "auto", "control_character"),
        ({"value": 1}, "auto", "wrong_type"),
        ("a\0b", "auto", "nul"),
        ("\ud800", "auto", "empty_answer"),
        ("x\ud800", "auto", "invalid_utf8"),
        (b"\xff", "auto", "invalid_utf8"),
        ("9" * 1_000_001, "auto", "row_too_long"),
    ],
)
def test_an_unusable_answer_is_rejected_with_its_kind(value: Any, form: Any, kind: str) -> None:
    with pytest.raises(BadRow) as refused:
        reference_answer(value, form)
    assert refused.value.kind == kind


@given(st.integers(-(10**30), 10**30))
def test_integers_of_every_type_give_the_same_text(number: int) -> None:
    assert reference_answer(number, "auto") == reference_answer(f"{number}.0", "auto") == str(number)
    assert reference_answer(f"so\n#### {number:,}", "auto") == str(number)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_no_float_changes_its_value(number: float) -> None:
    assert float(reference_answer(number, "auto")) == number


nested = st.recursive(st.text("ab\\ ", max_size=4), lambda inner: st.builds("x{{{}}}y".format, inner), max_leaves=4)


@given(nested.filter(lambda text: not text.endswith("\\") and "\\}" not in text and "\\{" not in text))
def test_a_box_may_contain_balanced_braces(inside: str) -> None:
    assert boxed_answers(f"so \\boxed{{{inside}}} and {{more}}") == [inside.strip()]
