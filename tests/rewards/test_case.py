"""Letters, names of two letters and commands are compared with case, words without."""

from __future__ import annotations

import pytest

from igrpo_cli.rewards.grading import grade_answer


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("x", "X"),
        ("A", "a"),
        ("N", "n"),
        ("AB", "ab"),
        ("(x)", "(X)"),
        (r"\pi", r"\Pi"),
        (r"\Pi", r"\pi"),
        (r"\angle A", r"\angle a"),
        (r"\overline{AB}", r"\overline{ab}"),
        (r"\{a, b\}", r"\{A, b\}"),
        (r"\text{A}", "a"),
        (r"\int f(x) dx", r"\int F(x) dx"),
    ],
)
def test_names_are_compared_with_case(reference, answer):
    assert grade_answer(rf"\boxed{{{answer}}}", reference).verdict == "wrong"


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("x", "x"),
        ("AB", r"\text{AB}"),
        ("even", "EVEN"),
        (r"\text{No}", "no"),
        ("Yes", "yes"),
        ("no solution", "No Solution"),
        ("(B)", "b"),
    ],
)
def test_words_and_choices_are_compared_without_case(reference, answer):
    assert grade_answer(rf"\boxed{{{answer}}}", reference).verdict == "correct"
