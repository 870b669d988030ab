"""Right answers in notations that are less common."""

from __future__ import annotations

import pytest

from igrpo_cli.rewards.grading import grade_answer


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        (r"A \cup B", r"B\cup A"),
        ("[0,1)", "[0,1["),
        ("(0,1)", "]0,1["),
        ("(0,1]", r"\left]0,1\right]"),
        (r"[0,1) \cup (2,3)", r"[0,1[ \cup ]2,3["),
        ("42", "42\u200b"),
        (r"(0,\infty)", r"\mathbb{R}^+"),
        (r"(0,\infty)", r"\mathbb{R}_{+}"),
        (r"(-\infty,0)", r"\mathbb{R}^-"),
        ("f'(x)=2x", "2x"),
        ("f'(x)=2x", "f'(x) = x + x"),
        ("2x", "f'(x)=2x"),
    ],
)
def test_notations_of_the_same_answer(reference, answer):
    assert grade_answer(rf"\boxed{{{answer}}}", reference).verdict == "correct"


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        (r"A \cup B", r"A \cup C"),
        (r"A \cup B", r"A \cap B"),
        (r"A \cup B", "A, B"),
        ("[0,1)", "]0,1["),
        ("[0,1)", "[0,1]"),
        (r"[0,\infty)", r"\mathbb{R}^+"),
        (r"\mathbb{R}", r"\mathbb{R}^+"),
        ("f'(x)=2x", "f(x)=2x"),
        ("f(x)=2x", "f'(x)=2x"),
        ("2x", "f'(x)=3x"),
        ("12", "1\u200b3"),
    ],
)
def test_notations_of_other_answers(reference, answer):
    assert grade_answer(rf"\boxed{{{answer}}}", reference).verdict == "wrong"


@pytest.mark.parametrize(
    "completion", ["答案是42", "答案是 $42$。", "所以，答案为42。", "答案：42", r"\boxed{42}" + "\u200b"]
)
def test_an_answer_may_be_marked_in_chinese(completion):
    assert grade_answer(completion, "42").verdict == "correct"
