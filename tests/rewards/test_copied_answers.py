"""An answer that only repeats the problem is wrong, even where its value is right."""

from __future__ import annotations

import pytest

from igrpo_cli.config.rewards import RewardSection
from igrpo_cli.records import Problem
from igrpo_cli.rewards.grading import grade_answer
from igrpo_cli.rewards.grading_pool import GradingPool
from igrpo_cli.rewards.scorer import Scorer, ScoringInput


@pytest.mark.parametrize(
    ("problem", "answer", "reference"),
    [
        (r"Compute $\dbinom{9}{2}$.", r"\dbinom{9}{2}", "36"),
        (r"Compute $\dbinom{9}{2}$.", r"\binom92", "36"),
        (r"Evaluate $\sqrt{144} + 3^2$.", r"\sqrt{144}+3^{2}", "21"),
        (r"Write $\frac{10}{16}$ in lowest terms.", r"\frac{10}{16}", r"\frac{5}{8}"),
        ("Write 0.625 as a fraction.", "0.625", r"\frac{5}{8}"),
        (r"Expand $(x + 2)^2$.", "(x+2)^2", "x^2 + 4x + 4"),
        ("What is 3! + 5! ?", "3! + 5!", "126"),
        (r"Find $\log_2 32$.", r"\log_{2}32", "5"),
        (r"Solve $|x| < 3$.", "|x| < 3", "(-3, 3)"),
        (r"What is $6 \cdot 7$?", r"6\times 7", "42"),
        (r"Compute $\dbinom{9}{2}$.", r"n = \dbinom{9}{2}", "36"),
        (r"Compute $\dbinom{9}{2}$.", r"\left(\dbinom{9}{2}\right)", "36"),
    ],
)
def test_a_copy_of_the_question_is_wrong(problem, answer, reference):
    assert grade_answer(rf"\boxed{{{answer}}}", reference, problem=problem).verdict == "wrong"


@pytest.mark.parametrize(
    ("problem", "answer", "reference"),
    [
        ("Which is larger, 12 or 7?", "12", "12"),
        ("Which is larger, 12 or 7?", "12.0", "12"),
        ("Is the length 12 feet or 7 feet?", "12 feet", "12"),
        (r"Which is larger, $\frac{1}{2}$ or $\frac{1}{3}$?", "1/2", r"\frac{1}{2}"),
        (r"Which is larger, $\frac{1}{2}$ or $\frac{1}{3}$?", r"\dfrac12", r"\frac{1}{2}"),
        ("One root of x^2 - 5x + 6 is 2. Give the roots 3, 2 in order.", "3, 2", "2, 3"),
        (r"Compute $\dbinom{9}{2}$.", "36", "36"),
        (r"Compute $\dbinom{9}{2}$.", "36.0", "36"),
        (r"Compute $\dbinom{9}{2}$.", r"\dbinom{9}{2} = 36", "36"),
        (r"Compute $\dbinom{9}{2}$.", r"36 = \dbinom{9}{2}", "36"),
        (r"Compute $\dbinom{19}{2}$.", r"\dbinom{9}{2}", "36"),
        ("Is 8 even or odd?", "even", r"\text{even}"),
        ("How many 2s are in 125?", "x = 5", "5"),
        ("What is 12/4?", "3", "3"),
        ("A train covers 300 km in 5 h.", "60 km/h", "60"),
    ],
)
def test_the_reference_itself_may_stand_in_the_problem(problem, answer, reference):
    assert grade_answer(rf"\boxed{{{answer}}}", reference, problem=problem).verdict == "correct"


def test_a_choice_is_never_a_copy():
    problem = "What is 6 * 7?\n\n(A) 41\n(B) 42\n\nAnswer with the letter."
    assert grade_answer("(B) 42", "(B)", problem=problem).verdict == "correct"


@pytest.mark.parametrize(("refuses", "accuracy"), [(True, 0.0), (False, 1.0)])
def test_the_setting_reaches_the_grading_workers(refuses, accuracy):
    problem = Problem("p", r"Compute $\dbinom{9}{2}$.", "36", "problems.jsonl:1")
    row = ScoringInput(problem, "prompt", r"\boxed{\dbinom{9}{2}}", 9, 99, "stop")
    section = RewardSection(num_workers=1, refuse_copied_answers=refuses)
    with GradingPool(section) as pool:
        (result,) = Scorer(pool, {"accuracy": 1.0}).score([row])
    assert result.parts["accuracy"] == accuracy


@pytest.mark.parametrize(
    ("problem", "answer", "reference"),
    [
        (r"What is $\binom{8}{4}$?", r"{8 \choose 4}", "70"),
        (r"What is ${8 \choose 4}$?", r"\binom84", "70"),
        (r"Reduce $\frac{6}{8}$.", "6/8", r"\frac{3}{4}"),
        (r"Reduce $\frac{6}{8}$.", r"\frac68", r"\frac{3}{4}"),
        (r"Reduce $\frac{6}{8}$.", r"{6 \over 8}", r"\frac{3}{4}"),
        ("Reduce 6/8.", r"\frac{6}{8}", r"\frac{3}{4}"),
    ],
)
def test_a_copy_in_another_spelling_is_wrong(problem, answer, reference):
    assert grade_answer(rf"\boxed{{{answer}}}", reference, problem=problem).verdict == "wrong"


@pytest.mark.parametrize(
    ("problem", "answer", "reference"),
    [
        (r"Reduce $\frac{6}{8}$.", "3/4", r"\frac{3}{4}"),
        (r"Reduce $\frac{6}{8}$.", "0.75", r"\frac{3}{4}"),
        ("Which is larger, 1/2 or 1/3?", "1/2", r"\frac{1}{2}"),
        ("Which is larger, 1/2 or 1/3?", r"\frac12", "1/2"),
        (r"Compute $\frac{16}{8}$.", "6/8", r"\frac{3}{4}"),
    ],
)
def test_a_right_answer_is_no_copy_in_another_spelling(problem, answer, reference):
    assert grade_answer(rf"\boxed{{{answer}}}", reference, problem=problem).verdict == "correct"
