"""What counts as the answer of a completion."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igrpo_cli.rewards.extraction import answer_scope, extract_answer, extract_reference
from igrpo_cli.rewards.grading import grade_answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("<think>maybe \\boxed{5}</think> So it is \\boxed{6}.", "6"),
        ("<think>a</think>\\boxed{1}<think>b</think>\\boxed{2}", "2"),
        ("<think>the answer is 9</think>Goodbye, dear reader of these lines.", None),
        ("<think>the answer is 9", None),
        ("\\boxed{9}<think>let me check that again", None),
        ("</think>", None),
    ],
)
def test_only_text_behind_the_thought_counts(completion, answer):
    assert extract_answer(completion) == answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("<answer>7</answer>", "7"),
        ("\\boxed{1} <answer> 7 </answer> \\boxed{2}", "7"),
        ("<answer>7</answer> no, wait: <answer>8</answer>", "8"),
        ("<answer>7</answer> and <answer>8", "8"),
        ("<answer>8", "8"),
        ("<answer>so \\boxed{8} it is</answer>", "8"),
        ("<answer>The answer is 8.</answer>", "8"),
        ("<answer>She saves $8 in a week.</answer>", "$8"),
        ("<answer>x^2 + 1</answer>", "x^2 + 1"),
        ("<answer>an isosceles triangle with a right angle</answer>", "an isosceles triangle with a right angle"),
        ("The answer is 3. <answer></answer>", None),
        ("The answer is 3. <answer> \n </answer>", None),
    ],
)
def test_answer_tags_outrank_everything(completion, answer):
    assert extract_answer(completion) == answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("First \\boxed{3}, which is wrong, thus \\boxed{4}.", "4"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{ \\{1, 2\\} }", "\\{1, 2\\}"),
        ("\\fbox{4}", "4"),
        ("$1 + 3 = \\framebox{4}$", "4"),
        ("\\boxed {4}", "4"),
        ("\\\\boxed{4}", "4"),
        ("\\boxed{\\boxed{4}}", "4"),
        ("\\boxed{x = \\boxed{4}}", "4"),
        ("Put it in \\boxed{}: \\boxed{4}. Did I put it in \\boxed{}?", "4"),
        ("The answer is 5, in a box: \\boxed{}", None),
        ("\\boxed{4\n and this line never closed it", "4"),
        ("\\boxed{\\frac{1}{2}", "\\frac{1}{2}"),
        ("\\boxed{4", "4"),
    ],
)
def test_the_last_box_counts(completion, answer):
    assert extract_answer(completion) == answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("\\boxed{3}\\boxed{4}", "3, 4"),
        ("$\\boxed{3}$ and $\\boxed{4}$", "3, 4"),
        ("\\boxed{3}, \\boxed{4} \\text{ or } \\boxed{5}", "3, 4, 5"),
        ("\\boxed{3} or perhaps \\boxed{4}", "3, 4"),
        ("\\boxed{4} \\boxed{4}", "4"),
        ("\\boxed{3} is too small, hence \\boxed{4} and \\boxed{5}", "4, 5"),
    ],
)
def test_boxes_with_only_separators_between_them_are_one_list(completion, answer):
    assert extract_answer(completion) == answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("\\boxed{30} for one. Final answer: 60.", "60"),
        ("\\boxed{60}. The final answer is above.", "60"),
        ("\\boxed{60}. My answer is 61.", "60"),
    ],
)
def test_only_a_final_answer_outranks_an_earlier_box(completion, answer):
    assert extract_answer(completion) == answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("Answer: 3 was too small.\nAnswer: 4\nThat took 2 minutes.", "4"),
        ("The answer is 4. I checked it 3 times.", "4"),
        ("**Answer:** 4", "4"),
        ("The answer is **4**.", "4"),
        ("The answer is:\n\n$$\nx + 4\n$$\nGood luck, 7!", "$$\nx + 4\n$$"),
        ("The answer is $\nx + 4\n$.\nGood luck, 7!", "$\nx + 4\n$"),
        (
            "The answer is $\\begin{pmatrix} 0 \\\\\n1 \\end{pmatrix}$, 7!",
            "$\\begin{pmatrix} 0 \\\\\n1 \\end{pmatrix}$",
        ),
        ("The answer is $5.\nShe paid $6 before.", "$5"),
        ("The answer is $x$ and $y$.", "$x$ and $y$"),
        ("The answer is 2x + 3.", "2x + 3"),
        ("The answer is 1/2.", "1/2"),
        ("The answer is a square.", "a square"),
        ("2 + 2 = 4 apples\n#### 4", "4"),
        ("#### Step 3\nso we have 4 apples", "4"),
    ],
)
def test_without_a_box_what_follows_the_last_mark_counts(completion, answer):
    assert extract_answer(completion) == answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("18", "18"),
        ("2x + 1", "2x + 1"),
        ("Tom has 3 + 4 = 7 apples", "7"),
        ("In total that makes $3,500 a month.", "$3,500"),
        ("There were 3 of them at first.\nNow there are 5.", "5"),
        ("Now there are 5.\nWhat a fine day that was for everyone.", None),
        ("It is $\n5\n$", None),
        ("I cannot say what it would be in the end.", None),
        ("", None),
    ],
)
def test_without_any_mark_the_last_line_may_hold_the_answer(completion, answer):
    assert extract_answer(completion) == answer


@pytest.mark.parametrize("separator", [" or ", ", ", " and ", ", or ", "; "])
def test_alternatives_in_prose_stay_together(separator):
    listed = f"17{separator}18"
    assert extract_answer(listed) == listed
    assert extract_answer(f"The answer is {listed}.") == listed
    assert extract_answer(f"It must be one of {listed}") == listed


def test_of_long_prose_only_the_end_is_read():
    assert extract_answer("The answer is 3. " + "la " * 2_000 + "so 4") == "4"
    assert extract_answer("The answer is 3. " + "la " * 1_000 + "so 4") == "3"


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("12 inches", "12 inches"),
        ("10:30 am", "10:30 am"),
        ("\\frac{1}{2}", "\\frac{1}{2}"),
        ("x_0 \\sin t$ $+ y_0", "x_0 \\sin t$ $+ y_0"),
        ("We find \\boxed{7}.", "7"),
        ("3 + 4 = 7 apples. The answer is 7.", "7"),
        ("Hence the angle is $x + 1$ in degrees.", "$x + 1$"),
    ],
)
def test_a_reference_is_itself_unless_it_is_a_whole_solution(reference, answer):
    assert extract_reference(reference) == answer


PIECES = r"\boxed{ { } $ $$ \[ \] <think> </think> <answer> </answer> \text{or} 18 , or \ #### x= . word answer is"
WILD = st.text(st.characters(codec=None)) | st.lists(
    st.sampled_from([*PIECES.split(" "), "answer is", "\n", " ", "\ud800", "\0"])
).map("".join)


@given(WILD)
def test_any_text_has_an_answer_that_stands_in_it_or_none(completion):
    answer = extract_answer(completion)
    assert answer is None or answer.strip()
    scope, _ = answer_scope(completion)
    assert answer is None or set(answer) <= set(scope) | {",", " "}
    extract_reference(completion)


@pytest.mark.parametrize(
    "unit", ["\\", "{", "\\boxed{", "\\boxed{4} ", "$", "\\[", "<think>", "1,", "answer", "answer is $\n", "- "]
)
def test_long_repetitions_need_no_backtracking(unit):
    extract_answer(unit * (400_000 // len(unit)))


@pytest.mark.parametrize(
    ("completion", "reference"),
    [
        ("The answer is 1, 2, ... and so on", "1,2"),
        ("The answer is 2, 4, 6, ...", "2,4,6"),
        ("So the terms are 1, 2, ..., 10.", "10"),
        ("The answer is 5? No.", "5"),
        ("Is it 5?", "5"),
    ],
)
def test_an_answer_keeps_its_ellipsis_and_its_question_mark(completion, reference):
    assert grade_answer(completion, reference).verdict != "correct"
    assert grade_answer(f"{completion}\n\nThe answer is {reference}.", reference).verdict == "correct"


@pytest.mark.parametrize(
    "words", ["thirteen", "lakh", "tenths", "doubled", "wrongly", "approximately", "baker's dozen"]
)
def test_a_number_keeps_the_words_that_change_it(words):
    for completion in (f"The answer is 12 {words}.", f"So it is $12$ {words}."):
        assert grade_answer(completion, "12").verdict == "wrong"


@pytest.mark.parametrize(
    "words", ["apples", "five-dollar bills", "more apples", "pairs of shoes", "left four years later"]
)
def test_a_number_may_stand_before_other_words(words):
    assert grade_answer(f"So Tom has 12 {words}.", "12").verdict == "correct"
    assert grade_answer(f"So all that he piles up = 12 {words}.", "12").verdict == "correct"
