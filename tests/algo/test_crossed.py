"""Estimates over seeds and problems, against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from igrpo_cli.algo.crossed import (
    crossed_difference,
    crossed_interval,
    crossed_variance,
    first_crossing,
    holm,
    mean_weights,
    weights_at,
)
from igrpo_cli.algo.estimates import MIN_P_VALUE, clustered_interval, paired_difference, t_quantile


def test_the_variance_of_seeds_and_of_problems_add_up():
    # Mean squares: seeds 2 * 0.25, problems 3 * 0.125, rest 0. Degrees: 0.875² / (0.5² / 2 + 0.375² / 1) = 2.88.
    found = crossed_variance([[0.0, 0.5], [0.5, 1.0], [1.0, 1.5]])
    assert found.variance == pytest.approx(0.875 / 6)
    assert found.degrees == 2


def test_the_rest_is_counted_once():
    # Mean squares: seeds 9, problems 9, rest 1. Degrees: 17² / (81 + 81 + 1) = 1.77.
    found = crossed_variance([[0, 2], [2, 6]])
    assert found.variance == pytest.approx((9 + 9 - 1) / 4)
    assert found.degrees == 1


def test_seeds_that_differ_by_less_than_the_rest_add_no_variance():
    # All means are equal. The rest has 8 * 0.25 / 3 as its mean square, with (2 - 1) (4 - 1) degrees of freedom.
    found = crossed_variance([[1, 0, 1, 0], [0, 1, 0, 1]])
    assert found.variance == pytest.approx((8 * 0.25 / 3) / 8)
    assert found.degrees == 3


def test_identical_seeds_give_the_interval_over_problems():
    correct_P = [0, 1, 1, 0, 1, 1] * 50
    assert crossed_interval([correct_P, correct_P]) == pytest.approx(clustered_interval(correct_P), abs=1e-3)


def test_one_seed_gives_the_interval_over_problems():
    correct_P = [0.0, 0.5, 1.0, 0.5]
    assert crossed_interval([correct_P]) == clustered_interval(correct_P)


def test_a_seed_more_of_the_same_problems_cannot_remove_the_variance_of_problems():
    rng = np.random.default_rng(0)
    problems_P = rng.random(40)
    few, many = (crossed_interval((rng.random((seeds, 40)) < problems_P).astype(float)) for seeds in (3, 60))
    over_problems = clustered_interval(problems_P)
    assert many[1] - many[0] < few[1] - few[0]
    assert many[1] - many[0] > 0.9 * (over_problems[1] - over_problems[0])


def test_all_solved_is_an_interval_within_0_and_1():
    low, high = crossed_interval(np.ones((3, 5)))
    assert (0 < low < 1, high) == (True, 1.0)


def test_a_difference_is_paired_by_seed_and_problem():
    before_SP = np.array([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5]])
    difference_SP = np.array([[0.1, 0.2, 0.3], [0.3, 0.4, 0.5]])
    found = crossed_difference(before_SP, before_SP + difference_SP)
    # Mean squares: seeds 3 * 0.02, problems 2 * 0.01, rest 0; degrees 0.08² / (0.06² / 1 + 0.02² / 2) = 1.68.
    error = np.sqrt((0.06 + 0.02) / 6)
    assert found.difference == pytest.approx(0.3)
    assert found.ci95[0] == pytest.approx(max(-1, 0.3 - t_quantile(0.95, 1) * error))
    # Student's t with one degree of freedom is the Cauchy distribution.
    assert found.p_value == pytest.approx(1 - 2 / np.pi * np.arctan(0.3 / error))


def test_equal_arms_do_not_differ():
    values_SP = [[0.0, 1.0], [1.0, 1.0]]
    found = crossed_difference(values_SP, values_SP)
    assert (found.difference, found.p_value) == (0.0, 1.0)


def test_one_seed_is_compared_over_problems():
    before, after = [[0.0, 0.5, 0.5]], [[0.5, 0.5, 1.0]]
    assert crossed_difference(before, after) == paired_difference(before[0], after[0])


def test_a_difference_without_rest_is_certain():
    before_SP = np.zeros((2, 3))
    found = crossed_difference(before_SP, before_SP + 0.5)
    assert found.p_value == paired_difference([0, 0, 0], [0.5, 0.5, 0.5]).p_value > MIN_P_VALUE


@pytest.mark.parametrize("shape", [(1, 3), (3, 1), (3,)])
def test_a_variance_needs_two_seeds_and_two_problems(shape):
    with pytest.raises(ValueError, match="at least two"):
        crossed_variance(np.zeros(shape))


def test_arms_with_other_problems_cannot_be_compared():
    with pytest.raises(ValueError, match="only the same"):
        crossed_difference(np.zeros((2, 3)), np.zeros((2, 4)))


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        effects = rng.normal(0, 0.02, (5, 1)) + rng.normal(0, 0.1, (1, 100)) + rng.normal(0, 0.4, (5, 100))
        found = crossed_difference(np.zeros((5, 100)), effects)
        covered += found.ci95[0] <= 0 <= found.ci95[1]
    assert 0.92 < covered / 400 < 0.98


@pytest.mark.parametrize(
    ("p_values", "corrected"),
    [([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]), ([0.6, 0.7], [1.0, 1.0]), ([0.02], [0.02]), ([], [])],
)
def test_holm(p_values, corrected):
    assert holm(p_values) == pytest.approx(corrected)


def test_the_mean_of_a_curve_is_the_area_of_its_trapezoids():
    assert mean_weights([0, 10, 30]) == pytest.approx([1 / 6, 1 / 2, 1 / 3])
    assert mean_weights([7]) == pytest.approx([1])


@pytest.mark.parametrize(("place", "weights"), [(5, [0.5, 0.5, 0]), (20, [0, 0, 1]), (25, [0, 0, 1]), (-1, [1, 0, 0])])
def test_a_curve_is_straight_between_policies(place, weights):
    assert weights_at([0, 10, 20], place) == pytest.approx(weights)


@pytest.mark.parametrize(("level", "place"), [(0.1, 0), (0.3, 5), (0.4, 10), (0.5, None)])
def test_the_first_crossing_of_a_level(level, place):
    assert first_crossing([0, 10, 20], [0.2, 0.4, 0.3], level) == (None if place is None else pytest.approx(place))
