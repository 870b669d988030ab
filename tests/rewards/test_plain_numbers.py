"""Numbers written out in full are read exactly, and agree as math-verify would have it."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from igrpo_cli.rewards.plain_numbers import is_unevaluated, numbers_agree, read_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("-12", -12),
        ("+12", 12),
        ("007", 7),
        ("1,234,567", 1234567),
        ("1 234", 1234),
        ("1,234.5", Fraction(2469, 2)),
        (".5", Fraction(1, 2)),
        ("5.", 5),
        ("0,25", Fraction(1, 4)),
        ("$3.50", Fraction(7, 2)),
        ("-\\$3", -3),
        ("3€", 3),
        ("3/4", Fraction(3, 4)),
        ("-3 / 4", Fraction(-3, 4)),
        ("2 1/2", Fraction(5, 2)),
        ("-2 1/2", Fraction(-5, 2)),
        ("1.5e3", 1500),
        ("2.5E-3", Fraction(1, 400)),
        ("2.5 \\times 10^{-3}", Fraction(1, 400)),
        ("3\\cdot10^2", 300),
    ],
)
def test_plain_numbers_have_an_exact_value(text, value):
    assert read_number(text) == value


@pytest.mark.parametrize(
    "text",
    ["", "-", ".", "x", "1/0", "1,23", "12,34,567", "1.2.3", "1e9999", "--1", "1 2", "3 4 5", "10^2", "5%", "1" * 500],
)
def test_anything_else_is_no_plain_number(text):
    assert read_number(text) is None


def test_whole_numbers_agree_only_with_themselves():
    assert numbers_agree(Fraction(10**20), Fraction(10**20))
    assert not numbers_agree(Fraction(10**20 + 1), Fraction(10**20))


@pytest.mark.parametrize(
    ("answer", "reference", "agree"),
    [
        ("0.333333", "1/3", True),
        ("0.33333", "1/3", False),
        ("2.232", "2.23", False),
        ("16.0000001", "16", False),
        ("16.00", "16", True),
        ("16.5000001", "16.5", True),
        ("5.001", "5", False),
        ("0.0", "3.6e-10", False),
        ("3.600001e-10", "3.6e-10", True),
        ("3.6001e-10", "3.6e-10", False),
        ("31415.926536", "31415.926535897932", True),
        ("0.0000001", "0", False),
        ("0.0", "0", True),
    ],
)
def test_decimals_agree_to_six_places_and_small_ones_to_six_digits(answer, reference, agree):
    assert numbers_agree(read_number(answer), read_number(reference)) is agree


@pytest.mark.parametrize(
    "answer", ["7 * 8", "7*8", "50 + 6", "(50) + (6)", "7 \\times 8", "57 - 1", "112/2", "28 + 28 + 0"]
)
def test_arithmetic_is_unevaluated(answer):
    assert is_unevaluated(answer, Fraction(56))


@pytest.mark.parametrize("answer", ["56", "-56", "5.6e1", "5.6 \\times 10^{1}", "\\frac{112}{2}", "x + 6", "(56)"])
def test_a_number_is_not(answer):
    assert not is_unevaluated(answer, Fraction(56))


def test_a_fraction_is_a_number_where_the_reference_is_not_whole():
    assert not is_unevaluated("2/4", Fraction(1, 2))
    assert is_unevaluated("1/2 + 0", Fraction(1, 2))


DECIMALS = st.builds(
    lambda whole, places: f"{whole}{places}",
    st.integers(-50, 50),
    st.sampled_from(["", ".0", ".5", ".25", ".3333333", ".333333", ".33", ".10", ".000001", ".0000004"]),
)


@settings(max_examples=150, deadline=None)
@given(DECIMALS, DECIMALS)
def test_the_short_way_gives_the_verdict_of_math_verify(answer, reference):
    from math_verify import parse, verify

    numbers = (read_number(answer), read_number(reference))
    has_whole = 1 in {number.denominator for number in numbers}
    assume(not (has_whole and "." in answer and "." in reference))  # math-verify rounds 2.0, here it is whole
    assume(not 0 < abs(numbers[0] - numbers[1]) < Fraction(2, 10**6))  # math-verify rounds both, here they are close
    gold, given_answer = (parse(f"${text}$", parsing_timeout=None) for text in (reference, answer))
    expected = verify(gold, given_answer, timeout_seconds=None)
    assert numbers_agree(*numbers) == expected
