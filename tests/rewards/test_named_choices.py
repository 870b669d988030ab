"""Multiple choice: which answers name the letter of the reference. docs/grading.md explains the decisions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igrpo_cli.rewards.choices import named_choice, reference_choice
from igrpo_cli.rewards.grading import grade_answer


@pytest.mark.parametrize("reference", ["(B)", "\\text{(B)}", "$(B)$", "**(B)**", "\\boxed{(B)}", "（B）"])
def test_a_letter_in_parentheses_is_a_choice(reference):
    assert grade_answer("<answer>B) 42</answer>", reference).verdict == "correct"
    assert grade_answer("<answer>C) 42</answer>", reference).verdict == "wrong"


@pytest.mark.parametrize("reference", ["B", "b", "x", "(b)", "(AB)", "(B) 42", "(B, C)", "f(B)", "\\(B\\)", "", "(1)"])
def test_anything_else_is_none(reference):
    assert reference_choice(reference) is None


@pytest.mark.parametrize(
    ("answer", "reference", "verdict"),
    [
        ("B", "B", "correct"),
        ("b", "B", "wrong"),
        ("(B)", "B", "correct"),
        ("B) 42", "B", "wrong"),
        ("(B) 42", "B", "wrong"),
        ("x", "x", "correct"),
        ("y", "x", "wrong"),
        ("option x", "x", "wrong"),
    ],
)
def test_a_bare_letter_is_graded_as_a_variable(answer, reference, verdict):
    assert grade_answer(f"\\boxed{{{answer}}}", reference).verdict == verdict


NAMES_B = [
    "B",
    "b",
    "B.",
    "B)",
    "(B)",
    "(b).",
    "[B]",
    "( B )",
    "B) 42",
    "B)42",
    "B. 42",
    "B: 42",
    "(B) 42",
    "(B): 42",
    "(B)\n42",
    "(b) 42",
    "$B$",
    "\\(B\\)",
    "{B}",
    "**B**",
    "**(B)** 42",
    '"B"',
    "`B`",
    "Ｂ",
    "（Ｂ）",
    "\\text{B}",
    "\\text{(B)}",
    "\\mathrm{B}",
    "\\textbf{(B)}\\ 42",
    "\\textbf{\\text{(B)}}",
    "\\boxed{\\text{(B)}}",
    "B\\.",
    "option B",
    "Option (B)",
    "choice (B)",
    "Option B: 42",
    "Answer: B",
    "the correct answer is (B)",
    "The best choice is B.",
    "The answer is option B",
]
WITH_TEXT_OF_B = [
    "(B) 5 J",
    "(B) 8.3 J/K",
    "(B) f(A) = 3",
    "(B) vitamin C",
    "(B) I only",
    "(B) E. coli",
    "(B) HCl (g)",
    "(B) copper(II), as it has two",
    "(B) (R)-2-butanol",
    "B. Because A is too small",
    "(B) or (b)",
    "(B) red or blue",
    "(B) a virus or a cell",
    "(B) It is not possible",
    "B) because a is small",
    "(B) 60 km/h",
    "(B) HCl (g) and H2O (l)",
    "(B) 2(a + c)",
    "(B) x = 5, g = 9.8",
    "(B) x",
    "B is the answer",
    "Therefore, B is the answer.",
]


@pytest.mark.parametrize("answer", NAMES_B + WITH_TEXT_OF_B)
def test_a_letter_alone_or_before_the_text_of_its_choice_is_named(answer):
    assert named_choice(answer) == "B"
    for completion in (f"\\boxed{{{answer}}}", f"<think>A? No.</think> <answer>{answer}</answer>"):
        assert grade_answer(completion, "(B)").verdict == "correct"
        assert grade_answer(completion, "(B)").extracted_answer == "(B)"
        assert grade_answer(completion, "(A)").verdict == "wrong"


NAMES_NONE = [
    "ABCD",
    "A B C D",
    "A\nB\nC\nD",
    "(A)(B)(C)(D)",
    "(A) (B) (C) (D)",
    "(A,B)",
    "(A or B)",
    "A or B",
    "A, B",
    "A; B",
    "A and B",
    "A/B",
    "A | B",
    "A-B",
    "B or C",
    "(A) or (B)",
    "(A), (B)",
    "(A)/(B)",
    "(B) or A",
    "(B) A",
    "(B) perhaps option C",
    "(B), C is possible",
    "(B) both (A) and (C)",
    "(D) A and B",
    "(C) N",
    "(b) or (c)",
    "(B) or (c)",
    "(B) (c) (d) (a)",
    "B) c) d) a)",
    "B) 1, c) 2, d) 3, a) 0",
    "B: 42; c: 43",
    "B. a. 3",
    "(B) 42 (g) 43",
    "(B) c",
    "B, c, d",
    "B. Or maybe c",
    "B (or c)",
    "(B) / c",
    "The answer is (B), (c).",
    "B is correct and so is c",
    "B is the answer, or c",
    "(B) or the third option",
    "(B) 42, or maybe the third option",
    "(B), alternatively c",
    "B) all of the above",
    "(B) any of these",
    "(B) Flu C. rabies D. polio",
    "(B) which is wrong",
    "B?",
    "B is the answer?",
    "The answer is B? No.",
    "b) or c)",
    "B) 42 C) 43",
    "B. 42 C. 43",
    "(A) 41 (B) 42 (C) 43",
    "\\boxed{A}, \\boxed{B}",
    "option A or option B",
    "any",
    "any of them",
    "all",
    "none",
    "not A",
    "not B",
    "Both B",
    "42",
    "B 42",
    "A cat",
    "because",
    "(R)-2-butanol",
    "It could be A, but B or C are just as good, and D is not excluded",
]


@pytest.mark.parametrize("answer", NAMES_NONE)
def test_several_letters_or_the_text_alone_name_no_choice(answer):
    assert named_choice(answer) is None
    for letter in "ABCD":
        for completion in (answer, f"\\boxed{{{answer}}}", f"<answer>{answer}</answer>"):
            assert grade_answer(completion, f"({letter})").verdict in ("wrong", "no_answer")


@pytest.mark.parametrize(
    ("completion", "verdict", "extracted"),
    [
        ("B", "correct", "(B)"),
        ("The answer is (B).", "correct", "(B)"),
        ("The correct answer is (B) 50.0 mL, as 2 mol react.\nWell done, me.", "correct", "(B)"),
        ("**Answer:** B", "correct", "(B)"),
        ("The answer is B\\", "correct", "(B)"),
        ("Answer: A was my guess.\nAnswer: B", "correct", "(B)"),
        ("We weigh them.\n\n**(B)**", "correct", "(B)"),
        ("We weigh them.\n\n(B) 5 kg of lead", "correct", "(B)"),
        ("<answer>(B) 42 metres in all</answer>", "correct", "(B)"),
        ("<answer>We get 42, so the answer is (B).</answer>", "correct", "(B)"),
        ("<answer>so \\boxed{B} it is</answer>", "correct", "(B)"),
        ("\\boxed{A} was wrong, hence \\boxed{B}", "correct", "(B)"),
        ("\\boxed{A}. The final answer is (B).", "correct", "(B)"),
        ("The answer is A or B.", "wrong", "A or B"),
        ("The answer is (B). Or maybe c.", "wrong", "(B). Or maybe c"),
        ("The answer is B. No, wait, C.", "wrong", "B. No, wait, C"),
        ("The answer is (B). That is all.", "correct", "(B)"),
        ("The answer is 42 metres.", "wrong", "42 metres"),
        ("<answer>42</answer>", "wrong", "42"),
        ("<answer></answer>", "no_answer", None),
        ("\\boxed{}", "no_answer", None),
        ("<think>(B)", "no_answer", None),
        ("<think>The answer is (B)</think>", "no_answer", None),
        ("(B) was my first thought, but I would not bet on it at all.", "no_answer", None),
        ("A\nB\nC\nD", "no_answer", None),
        ("", "no_answer", None),
    ],
)
def test_where_a_letter_stands_in_a_completion(completion, verdict, extracted):
    grade = grade_answer(completion, "(B)")
    assert (grade.verdict, grade.extracted_answer) == (verdict, extracted)


def test_a_choice_beyond_the_length_limit_is_not_judged():
    grade = grade_answer(f"\\boxed{{(B) {'m' * 50}}}", "(B)", max_characters=50)
    assert (grade.verdict, grade.reason) == ("ungraded", "answer longer than 50 characters")
    assert grade_answer(f"\\boxed{{(B) {'m' * 40}}}", "(B)", max_characters=50).verdict == "correct"


PIECES = [
    "A",
    "B",
    "(A)",
    "(B)",
    "b",
    ")",
    ".",
    ":",
    " or ",
    ", ",
    " ",
    "\n",
    "42",
    "option ",
    "answer is ",
    "\\text{",
    "}",
]


@settings(deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join) | st.text(st.characters(codec=None), max_size=20))
def test_whatever_is_said_at_most_one_letter_is_right(answer):
    assert sum(grade_answer(answer, f"({letter})").verdict == "correct" for letter in "ABCDEFGHIJ") <= 1
    named = named_choice(answer)
    assert named is None or named in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@pytest.mark.parametrize("unit", ["(", "A ", "A,", "(A) ", "the answer is ", "option ", "or A", "\\", "a", ") ", "A."])
def test_long_repetitions_of_letters_need_no_backtracking(unit):
    for start in ("", "(B) "):
        named_choice(start + unit * (400_000 // len(unit)) + "!")
