"""A sign or a decimal point at the start of a number is never lost, wherever the number stands."""

from __future__ import annotations

import pytest

from igrpo_cli.rewards.grading import grade_answer


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        (r"\frac{10}{2}", ".5"),
        (r"\sqrt{25}", ".5"),
        (r"\sqrt{25}", r"\$.5"),
        (r"\sqrt{25}", r"\text{.5}"),
        ("1,2", ".1,.2"),
        ("(1,2)", "(.1,.2)"),
        ("[0,5]", "[0,.5]"),
        (r"\{5\}", ".5"),
        (r"\{5\}", r"\{.5\}"),
        ("5x", ".5x"),
        ("x=5", ".5"),
        ("x=5", "x=.5"),
        ("x>5", r"(.5,\infty)"),
        ("5!", ".120"),
        (r"5 \text{ cm}", ".5 cm"),
        (r"5\%", r".5\%"),
        ("2:3", ".2:3"),
        ("101_2", ".101_2"),
        (r"2 \pm 3", r"2 \pm .3"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} .1 \\ 2 \end{pmatrix}"),
        (r"\{-5\}", r"\{5\}"),
        ("(-1,2)", "(1,2)"),
        (r"-5 \text{ cm}", "5 cm"),
        (r"\sqrt{25}", r"\,-5"),
        ("-3!", "6"),
    ],
)
def test_a_number_keeps_its_sign_and_its_point(reference, answer):
    assert grade_answer(rf"\boxed{{{answer}}}", reference).verdict == "wrong"


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        (r"\frac13", ".333333"),
        (r"\frac12", ".5"),
        (".5", r"\frac12"),
        (r"-\frac12", "-.5"),
        (r"-\frac12", "- .5"),
        (r"(\frac12, 2)", "(.5, 2)"),
        (r"\frac{x}{2}", ".5x"),
        (r"\frac{\pi}{2}", r".5\pi"),
        ("1:5", ".2:1"),
        (r"\sqrt{25}", "5."),
        (r"\sqrt{25}", r"5 \,."),
    ],
)
def test_a_number_may_begin_or_end_with_a_point(reference, answer):
    assert grade_answer(rf"\boxed{{{answer}}}", reference).verdict == "correct"


@pytest.mark.parametrize("minus", ["-", "−", "–"])
def test_a_number_in_a_sentence_keeps_every_minus(minus):
    assert grade_answer(f"The result is {minus}5 meters", "5").verdict == "wrong"
    assert grade_answer(f"The result is {minus}.5 meters", "-0.5").verdict == "correct"
    assert grade_answer(f"The answer is 10{minus}20 meters.", "10").verdict == "wrong"
    assert grade_answer(f"The answer is 10{minus}20 meters.", "20").verdict == "wrong"
