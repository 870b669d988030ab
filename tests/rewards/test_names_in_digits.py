"""Dates, phone numbers, ranges and scores are no arithmetic: they equal only the same digits in the same order."""

from __future__ import annotations

import pytest

from igrpo_cli.rewards.grading import grade_answer


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("2024-01-15", "2008"),
        ("2008", "2024-01-15"),
        ("2024-01-15", "2024-15-01"),
        ("2/3/2024", r"\frac{1}{3036}"),
        (r"\frac{1}{3036}", "2/3/2024"),
        ("2/3/2024", "3/2/2024"),
        ("555-1234", "-679"),
        ("555-123-4567", "-4135"),
        ("(800) 555-1234", "-1479"),
        ("2020-2021", "-1"),
        ("2020 - 2021", "-1"),
        ("2020--2021", "4041"),
        ("10-20", "-10"),
        ("(10-20)", "-10"),
        (r"10-20\%", "-10"),
        (r"10-20 \text{ cm}", "-10"),
        ("3-2", "1"),
    ],
)
def test_names_in_digits_are_not_computed(reference, answer):
    assert grade_answer(rf"\boxed{{{answer}}}", reference).verdict == "wrong"


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("2024-01-15", "2024-1-15"),
        ("2/3/2024", "02/03/2024"),
        ("2020-2021", "2020–2021"),
        ("2020-2021", "2020--2021"),
        ("(800) 555-1234", "800-555-1234"),
        ("10-20", "10 - 20"),
        (r"10-20 \text{ cm}", "10-20"),
        ("10 - 2", "8"),
        ("2024 - 2020", "4"),
        ("2^{10}-1", "1023"),
        (r"\sqrt{9}-1", "2"),
        ("2-5i", "-5i + 2"),
    ],
)
def test_names_in_digits_equal_their_own_digits_and_differences_their_value(reference, answer):
    assert grade_answer(rf"\boxed{{{answer}}}", reference).verdict == "correct"


def test_a_date_in_a_sentence_is_no_fraction():
    assert grade_answer("The date is 2/3/2024", r"\frac{2}{3}").verdict == "wrong"
