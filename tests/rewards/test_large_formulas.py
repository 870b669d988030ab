"""A formula that is too large to evaluate is refused before any work: wrong for a number, else ungraded."""

from __future__ import annotations

import pytest

from igrpo_cli.rewards.grading import grade_answer

LARGE = [
    r"\int_0^1 e^{x^x} dx",
    r"\sqrt{" * 100 + "2" + "}" * 100,
    r"\prod_{k=1}^{100000} k",
    r"\sum_{k=1}^{100000} \frac{1}{k}",
    "100000000!",
    "9^{9^{9^9}}",
    "2^{10000000}",
    "x + 9^{9^{9^9}}",
    "x^{" * 300 + "x" + "}" * 300,
    "x^{" * 30 + "x" + "}" * 30,
    "(" * 200 + "1" + ")" * 200,
]


@pytest.mark.parametrize("answer", LARGE)
def test_a_large_formula_is_not_evaluated(answer):
    grade = grade_answer(rf"\boxed{{{answer}}}", r"\frac{1}{2}")
    assert (grade.verdict, grade.reason) == ("ungraded", "TooLargeError")
    assert grade_answer(rf"\boxed{{{answer}}}", "3602289794429065").verdict == "wrong", "a number is a number"
    assert grade_answer(rf"\boxed{{{answer}}}", answer).verdict == "correct"


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("2^{2024}", "4^{1012}"),
        (r"\frac{1}{2004!}", r"\frac{2005}{2005!}"),
        (r"1 + \cfrac{1}{2 + \cfrac{1}{2 + \cfrac{1}{2}}}", r"\frac{17}{12}"),
        (r"\sqrt{2 + \sqrt{2 + \sqrt{4}}}", "2"),
        ("x^{x^{x}}", "x^{(x^x)}"),
    ],
)
def test_smaller_ones_are_evaluated(reference, answer):
    assert grade_answer(rf"\boxed{{{answer}}}", reference).verdict == "correct"
