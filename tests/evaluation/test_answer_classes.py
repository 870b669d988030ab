"""Votes that say the same are one class, however they are written."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from igrpo_cli.algo.estimates import maj_at_k
from igrpo_cli.config.rewards import RewardSection
from igrpo_cli.evaluation.consensus import CORRECT, answer_classes
from igrpo_cli.records import Grade
from igrpo_cli.rewards.grading import grade_answer
from igrpo_cli.rewards.grading_pool import GradingPool


class Grader:
    """The real grader in this process, which counts how often it is asked."""

    def __init__(self) -> None:
        self.calls: list[list[tuple[str, str]]] = []

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[Grade]:
        self.calls.append(list(pairs))
        return [grade_answer(*pair) for pair in pairs]


def classes_of(*answers: str | None, right: Sequence[str] = ()) -> list[int | None]:
    """The classes of one problem; of the answers, those in `right` are correct."""
    verdicts = ["no_answer" if a is None else "correct" if a in right else "wrong" for a in answers]
    return answer_classes([answers], [verdicts], Grader())[0]


def test_equal_answers_outvote_one_that_is_written_the_same_way():
    """Two samples say 2, three say a half in two ways: the texts tie at best, the answers do not."""
    answers, correct = ["2", "2", "1/2", "0.5", "0.50"], [1.0, 1.0, 0.0, 0.0, 0.0]
    with GradingPool(RewardSection(num_workers=1)) as pool:
        (classes,) = answer_classes([answers], [["correct", "correct", "wrong", "wrong", "wrong"]], pool.grade)
    assert classes == [CORRECT, CORRECT, 1, 1, 1]
    assert maj_at_k(answers, correct) == 1.0
    assert maj_at_k(classes, correct) == 0.0


def test_right_answers_are_one_vote_in_any_form_and_need_no_comparison():
    grader = Grader()
    answers, verdicts = ["1/2", "0.5", "2", "2"], ["correct", "correct", "wrong", "wrong"]
    (classes,) = answer_classes([answers], [verdicts], grader)
    assert classes == [CORRECT, CORRECT, 1, 1]
    assert grader.calls == []
    correct = [1.0, 1.0, 0.0, 0.0]
    assert (maj_at_k(answers, correct), maj_at_k(classes, correct)) == (0.0, 0.5)


def test_no_answer_is_no_vote_and_an_ungraded_one_is():
    verdicts = ["no_answer", "ungraded", "ungraded", "wrong"]
    assert answer_classes([[None, None, "7", "7.0"]], [verdicts], Grader()) == [[None, None, 1, 1]]


def test_the_same_text_is_one_vote_whatever_its_verdicts():
    assert answer_classes([["7", "7", "8"]], [["ungraded", "correct", "wrong"]], Grader()) == [[CORRECT, CORRECT, 1]]


def test_all_problems_are_compared_in_the_same_few_calls():
    grader = Grader()
    answers = [["1", "2", "3"], ["x+1", "1+x", "y"], ["5"], [None]]
    verdicts = [["wrong"] * 3] * 2 + [["wrong"], ["no_answer"]]
    assert answer_classes(answers, verdicts, grader) == [[1, 2, 3], [1, 1, 2], [1], [None]]
    # Round 1: everything against the first text, then the unequal pairs turned around; round 2: 3 against 2.
    assert [len(call) for call in grader.calls] == [4, 3, 1, 1]


def test_one_direction_is_enough():
    """The grader takes a bare 5 for "5 apples" but reads no number into a word."""
    asked = []

    def accepts_only_turned(pairs):
        asked.extend(pairs)
        return [Grade("correct" if pair == ("\\boxed{a}", "\\boxed{b}") else "wrong", None, 0.0) for pair in pairs]

    assert answer_classes([["a", "b"]], [["wrong", "wrong"]], accepts_only_turned) == [[1, 1]]
    assert asked == [("\\boxed{b}", "\\boxed{a}"), ("\\boxed{a}", "\\boxed{b}")]


def test_an_answer_is_not_read_as_something_else():
    assert classes_of("x = 3 and y = 4", "4") == [1, 2], "of the bare text only the last number would be read"
    assert classes_of("\\text{(A) 12 or 13}", "13") == [1, 2]


def test_what_cannot_stand_in_a_box_equals_its_own_text_alone():
    assert classes_of("\\frac{1}{2", "1/2", "x}", "x}", "") == [1, 2, 3, 3, 4]


def test_equality_is_with_the_text_that_came_first():
    """Six decimal places make 0.3333333 a third, and 0.3333334 equal to 0.3333333."""
    assert classes_of("0.3333333", "\\frac{1}{3}", "0.3333334", "0.34") == [1, 1, 1, 2]


SPELLINGS = ["1/2", "0.5", "\\frac{1}{2}", "2", "2.0", "\\frac{4}{2}", "3", "-1/2", "-0.5", "1/3"]
VALUES = [Fraction(1, 2)] * 3 + [Fraction(2)] * 3 + [Fraction(3)] + [Fraction(-1, 2)] * 2 + [Fraction(1, 3)]


@given(st.lists(st.lists(st.integers(0, len(SPELLINGS) - 1), max_size=8), max_size=4))
def test_classes_are_the_values(drawn):
    answers = [[SPELLINGS[index] for index in group] for group in drawn]
    grader = Grader()
    classes = answer_classes(answers, [["wrong"] * len(group) for group in drawn], grader)
    for group, of_group in zip(drawn, classes, strict=True):
        values = [VALUES[index] for index in group]
        for left, value in zip(of_group, values, strict=True):
            assert [left == right for right in of_group] == [value == other for other in values]
    assert len(grader.calls) <= 2 * max((len({VALUES[index] for index in group}) for group in drawn), default=0)
