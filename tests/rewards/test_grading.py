"""Verdicts: correct, wrong, no_answer, ungraded."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igrpo_cli.rewards import grading
from igrpo_cli.rewards.grading import grade_answer


@pytest.mark.parametrize(
    ("completion", "reference", "verdict", "extracted"),
    [
        ("<think>3 * 6</think><answer>18</answer>", "18", "correct", "18"),
        ("It is \\boxed{17}.", "18", "wrong", "17"),
        ("I would rather not say anything about it.", "18", "no_answer", None),
        ("<think>18", "18", "no_answer", None),
        ("\\boxed{}", "18", "no_answer", None),
        ("10:30 am", "10:30 am", "correct", "10:30 am"),
        ("\\boxed{18\ud800}", "18", "wrong", "18?"),
        ("\\boxed{1\x008}", "18", "wrong", "1\x008"),
    ],
)
def test_verdicts(completion, reference, verdict, extracted):
    grade = grade_answer(completion, reference)
    assert (grade.verdict, grade.extracted_answer) == (verdict, extracted)
    assert grade.seconds >= 0.0


@pytest.mark.parametrize("reference", ["", " ", "\\boxed{}", "$$"])
@pytest.mark.parametrize("completion", ["", "\\boxed{}", "18", "<answer></answer>"])
def test_an_empty_reference_rewards_nobody(completion, reference):
    assert grade_answer(completion, reference).verdict == "ungraded"
    assert grade_answer(completion, reference).reason == "empty reference"


def test_an_answer_beyond_the_length_limit_is_not_judged():
    grade = grade_answer("\\boxed{" + "0" * 50 + "7}", "7", max_characters=50)
    assert (grade.verdict, grade.reason) == ("ungraded", "answer longer than 50 characters")
    assert grade_answer("\\boxed{" + "0" * 49 + "7}", "7", max_characters=50).verdict == "correct"


def test_a_failing_comparison_is_ungraded_and_says_why(monkeypatch):
    def fail(answer, reference):
        raise ZeroDivisionError("the model's own words")

    monkeypatch.setattr(grading, "are_equal", fail)
    grade = grade_answer("\\boxed{18}", "19")
    assert (grade.verdict, grade.reason) == ("ungraded", "ZeroDivisionError")


@settings(deadline=None)
@given(st.text(st.characters(codec=None)), st.text(st.characters(codec=None), max_size=8))
def test_no_text_raises_and_every_extract_can_be_stored(completion, reference):
    grade = grade_answer(completion[:40], reference)
    (grade.extracted_answer or "").encode("utf-8")


def test_importing_the_room_imports_no_algebra():
    code = (
        "import sys\n"
        "from igrpo_cli.rewards import equivalence, extraction, grading, grading_pool, scorer\n"
        "grading.grade_answer('<answer>18</answer>', '18')\n"
        "print([name for name in ('sympy', 'math_verify', 'torch', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_no_text_of_a_completion_is_ever_compiled():
    """sympy compiles source of its own making; what a completion says must not be in it, beyond its digits."""
    code = r"""
import sys
from igrpo_cli.rewards.grading import grade_answer
from igrpo_cli.rewards.grading_worker import _load
_load()
seen = []
sys.addaudithook(lambda event, arguments: seen.append(str(arguments[0])) if event == "compile" else None)
shapes = ["MARK", "MARK(3)", "\\text{MARK}", "\\operatorname{MARK}(3)", "x_{MARK}", "\\overline{MARK}",
          "\\variable{MARK}",
          "\\sum_{n=0}^{\\infty} \\frac{MARK^n}{n!}", "\\sum_{n=0}^{\\infty} \\frac{\\variable{MARK}^n}{n!}",
          "\\sum_{n=0}^{\\infty} \\frac{(q(3))^n}{n!}", "\\sum_{n=0}^{\\infty} \\frac{2^n}{n!}", "2 + MARK", "(2).MARK"]
for shape in shapes:
    for text in ("\\boxed{%s}", "The answer is %s"):
        grade_answer(text % shape.replace("MARK", "zqj"), "\\sqrt{2}")
print(len(seen) > 0, [source for source in seen if "zqj" in source or "q(3)" in source])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "True []\n"
