"""Estimates against brute force, tables and simulation."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igrpo_cli.algo.estimates import (
    avg_at_k,
    clustered_interval,
    effective_sample_size,
    maj_at_every_k,
    maj_at_k,
    paired_difference,
    pass_at_k,
    ratio_interval,
    t_central_mass,
    t_quantile,
)


def test_the_average_weighs_problems_alike() -> None:
    assert avg_at_k([[1, 0, 0, 0], [1, 1, 1, 1]]) == 0.625
    assert avg_at_k([0.25, 1.0]) == 0.625


@given(
    st.integers(1, 3).flatmap(
        lambda k: st.lists(st.lists(st.sampled_from([0, 1]), min_size=k, max_size=k), min_size=1, max_size=4)
    )
)
def test_the_average_is_the_expected_score_of_one_sample_of_each_problem(correct: list[list[int]]) -> None:
    draws = list(itertools.product(*correct))
    assert avg_at_k(correct) == pytest.approx(sum(sum(draw) / len(draw) for draw in draws) / len(draws))


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(case: tuple[int, int, int]) -> None:
    num_samples, num_correct, k = case
    samples = [1] * num_correct + [0] * (num_samples - num_correct)
    subsets = list(itertools.combinations(samples, k))
    assert pass_at_k(num_samples, num_correct, k) == pytest.approx(sum(map(max, subsets)) / len(subsets))


def test_pass_at_k_stays_exact_for_many_samples() -> None:
    assert pass_at_k(10_000, 1, 2500) == 0.25
    assert pass_at_k(64, 16, 1) == 0.25


@pytest.mark.parametrize("case", [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)])
def test_pass_at_k_of_more_than_was_sampled_is_refused(case: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="undefined"):
        pass_at_k(*case)


def majority_by_enumeration(answers: list[str | None], worth: dict[str | None, float], k: int) -> float:
    scores = []
    for subset in itertools.combinations(answers, k):
        votes = Counter(answer for answer in subset if answer is not None)
        leaders = [answer for answer, number in votes.items() if number == max(votes.values())]
        scores.append(sum(worth[answer] for answer in leaders) / len(leaders) if leaders else 0.0)
    return sum(scores) / len(scores)


@given(st.lists(st.sampled_from(["1", "2", "3", "4", None]), min_size=1, max_size=9), st.data())
def test_maj_at_k_is_the_mean_over_all_subsets_with_ties_shared(answers: list[str | None], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(answers)))
    worth = {"1": 1.0, "2": 0.0, "3": 0.0, "4": 1.0, None: 0.0}
    expected = majority_by_enumeration(answers, worth, k)
    assert maj_at_k(answers, [worth[answer] for answer in answers], k) == pytest.approx(expected)


@given(st.lists(st.sampled_from(["1", "2", "3", "4", None]), min_size=1, max_size=9))
def test_every_k_at_once_is_each_k_by_itself(answers: list[str | None]) -> None:
    correct = [float(answer == "1") for answer in answers]
    one_by_one = [maj_at_k(answers, correct, k) for k in range(1, len(answers) + 1)]
    assert maj_at_every_k(answers, correct) == pytest.approx(one_by_one)


def test_every_k_of_many_samples_ends_with_the_majority_of_all() -> None:
    answers, correct = ["7"] * 60 + ["8"] * 40 + [None] * 28, [1.0] * 60 + [0.0] * 68
    every_k = maj_at_every_k(answers, correct)
    assert (len(every_k), every_k[-1]) == (128, 1.0)
    assert every_k[0] == pytest.approx(60 / 128)
    assert every_k[40] == pytest.approx(maj_at_k(answers, correct, 41))
    with pytest.raises(ValueError, match="at most 1000 samples"):
        maj_at_every_k(["7"] * 1001, [1.0] * 1001)


def test_maj_at_k_by_hand() -> None:
    assert maj_at_k(["7", "7", "8"], [1, 1, 0]) == 1.0
    assert maj_at_k(["7", "8"], [1, 0]) == 0.5
    assert maj_at_k([None, None, "7"], [0, 0, 1]) == 1.0
    assert maj_at_k([None, None], [0, 0]) == 0.0
    assert maj_at_k(["7", "7", "8"], [1, 1, 0], 2) == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert maj_at_k(["7", "7"], [1, 0]) == 0.5, "one answer with two verdicts is half right"


def test_maj_at_1_is_the_accuracy() -> None:
    answers = [str(n % 7) for n in range(1000)]
    correct = [float(answer == "0") for answer in answers]
    assert maj_at_k(answers, correct, 1) == pytest.approx(sum(correct) / 1000)


def test_many_samples_of_two_answers_follow_the_hypergeometric_distribution() -> None:
    right, wrong, k = 510, 490, 301
    ways = sum(math.comb(right, votes) * math.comb(wrong, k - votes) for votes in range(k // 2 + 1, k + 1))
    answers, correct = ["7"] * right + ["8"] * wrong, [1.0] * right + [0.0] * wrong
    assert maj_at_k(answers, correct, k) == pytest.approx(ways / math.comb(right + wrong, k))


@pytest.mark.parametrize(("num", "verdicts", "k"), [(2, 2, 3), (2, 1, 2), (0, 0, None)])
def test_maj_at_k_of_what_was_not_sampled_is_refused(num: int, verdicts: int, k: int | None) -> None:
    with pytest.raises(ValueError, match="undefined"):
        maj_at_k(["7"] * num, [1.0] * verdicts, k)


def test_subsets_beyond_the_limit_are_refused_but_the_whole_is_counted() -> None:
    answers, correct = ["7"] * 1500 + ["8"] * 1000, [1.0] * 1500 + [0.0] * 1000
    assert maj_at_k(answers, correct) == 1.0
    with pytest.raises(ValueError, match="at most 1000 samples"):
        maj_at_k(answers, correct, 5)


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [
        (1, 12.7062),
        (2, 4.30265),
        (3, 3.18245),
        (4, 2.77645),
        (5, 2.57058),
        (10, 2.22814),
        (29, 2.04523),
        (120, 1.97993),
    ],
)
def test_quantiles_are_those_of_the_tables(degrees: int, quantile: float) -> None:
    assert t_quantile(0.95, degrees) == pytest.approx(quantile, abs=6e-5)


def test_students_distribution_joins_cauchy_and_normal() -> None:
    assert t_central_mass(1.0, 1) == pytest.approx(0.5)
    assert t_central_mass(0.0, 6) == 0.0
    for confidence in (0.5, 0.9, 0.99):
        assert t_quantile(confidence, 100_000) == pytest.approx(NormalDist().inv_cdf((1 + confidence) / 2), rel=1e-4)


@given(st.floats(0, 30), st.integers(1, 40))
def test_more_degrees_of_freedom_mean_thinner_tails(t: float, degrees: int) -> None:
    assert 0 <= t_central_mass(t, degrees) <= t_central_mass(t, degrees + 1) + 1e-15 <= 1 + 2e-15


accuracies = st.lists(st.lists(st.sampled_from([0, 1]), min_size=3, max_size=3), min_size=2, max_size=12)


@given(accuracies)
def test_the_interval_holds_the_estimate_and_stays_within_0_and_1(correct: list[list[int]]) -> None:
    interval = clustered_interval(correct)
    assert interval is not None
    assert 0 <= interval.low <= avg_at_k(correct) <= interval.high <= 1
    assert interval.low < interval.high


@given(accuracies)
def test_the_interval_of_the_errors_mirrors_that_of_the_successes(correct: list[list[int]]) -> None:
    right, wrong = clustered_interval(correct), clustered_interval(1 - np.asarray(correct))
    assert right is not None
    assert wrong is not None
    assert right.low == pytest.approx(1 - wrong.high)


def test_all_solved_does_not_mean_certain() -> None:
    interval = clustered_interval(np.ones((30, 64)))
    assert interval is not None
    # Wilson's lower end for 30 of 30 is n / (n + t^2).
    assert interval == pytest.approx((30 / (30 + 2.04523**2), 1.0), abs=1e-5)


def test_the_interval_by_hand() -> None:
    # Variance of the mean 0.02 / 2, so 25 effective samples; t of one degree of freedom is 12.7062:
    # centre 1/2, margin 12.7062 / 7.45790 * sqrt(0.01 + 161.4476 / 2500).
    assert clustered_interval([0.4, 0.6]) == pytest.approx((0.034727, 0.965273), abs=1e-5)


def test_more_samples_of_the_same_problems_do_not_feign_certainty() -> None:
    problems = np.array([[1.0], [0.0]] * 15)
    assert clustered_interval(problems) == clustered_interval(np.repeat(problems, 64, axis=1))


def test_many_problems_give_the_textbook_interval() -> None:
    means = np.random.default_rng(0).beta(4, 3, 5000)
    interval = clustered_interval(means)
    assert interval is not None
    error = means.std(ddof=1) / math.sqrt(5000)
    assert interval == pytest.approx((means.mean() - 1.96 * error, means.mean() + 1.96 * error), abs=1e-4)


def test_one_problem_has_no_interval_and_more_than_1_is_no_accuracy() -> None:
    assert clustered_interval([[1, 0, 1]]) is None
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        clustered_interval([[2.0], [0.0]])
    for empty in ([], [[]], [[float("nan")]], [[[1]]]):
        with pytest.raises(ValueError, match="finite values"):
            avg_at_k(empty)


@pytest.mark.parametrize(
    ("num_problems", "k", "alpha", "beta"),
    [(30, 64, 0.5, 0.5), (30, 8, 1, 4), (40, 8, 2, 1), (30, 1, 1, 1), (5, 8, 1, 1), (500, 8, 9, 1)],
)
def test_the_interval_covers_the_population_accuracy(num_problems: int, k: int, alpha: float, beta: float) -> None:
    generator = np.random.default_rng(20260209)
    truth, covered = alpha / (alpha + beta), 0
    for _ in range(1000):
        means = generator.binomial(k, generator.beta(alpha, beta, num_problems)) / k
        interval = clustered_interval(means)
        assert interval is not None
        covered += interval.low <= truth <= interval.high
    assert 0.93 <= covered / 1000 <= 0.97


@pytest.mark.parametrize(("num_problems", "k", "gain"), [(30, 8, 0.0), (30, 64, 0.2), (200, 4, 0.2)])
def test_the_paired_interval_covers_and_the_test_keeps_its_level(num_problems: int, k: int, gain: float) -> None:
    generator = np.random.default_rng(7)
    covered = rejected = 0
    for _ in range(400):
        before = generator.uniform(0.1, 0.7, num_problems)
        after = before + gain * (generator.random(num_problems) < 0.3)
        scores = [generator.binomial(1, chance[:, None], (num_problems, k)) for chance in (before, after)]
        paired = paired_difference(*scores)
        assert paired.ci95 is not None
        assert paired.p_value is not None
        covered += paired.ci95.low <= 0.3 * gain <= paired.ci95.high
        rejected += paired.p_value < 0.05
    assert 0.92 <= covered / 400 <= 0.98
    assert rejected / 400 <= 0.08 if gain == 0 else rejected / 400 > 0.3


def test_a_paired_difference_by_hand() -> None:
    # Differences 1/2, 0, 1/2, 0: mean 1/4, standard error sqrt(1/12) / 2, t = sqrt(3), 3 degrees of freedom.
    paired = paired_difference([[0, 1], [1, 0], [0, 0], [1, 1]], [[1], [0.5], [0.5], [1]])
    error = math.sqrt(1 / 12) / 2
    assert paired.difference == 0.25
    assert paired.ci95 == pytest.approx((0.25 - 3.18245 * error, 0.25 + 3.18245 * error), abs=1e-5)
    assert paired.p_value == pytest.approx(0.18169, abs=1e-5)


def test_pairing_sees_through_differences_between_problems() -> None:
    before = np.linspace(0, 0.8, 20)
    paired = paired_difference(before, before + 0.1 + 0.01 * (np.arange(20) % 2))
    assert paired.p_value is not None
    assert paired.p_value < 1e-6


def test_identical_differences_leave_room_for_problems_not_seen() -> None:
    unseen = 1 - 0.05 ** (1 / 10)
    same = paired_difference(np.ones((10, 4)), np.ones((10, 4)))
    assert (same.difference, same.p_value) == (0.0, 1.0)
    assert same.ci95 == pytest.approx((-unseen, unseen))
    solved = paired_difference(np.zeros((10, 4)), np.ones((10, 4)))
    assert solved.ci95 == pytest.approx((1 - 2 * unseen, 1.0))
    assert solved.p_value == 2**-9


def test_differences_that_are_equal_but_for_rounding_are_equal() -> None:
    exact, rounded = paired_difference([0.0] * 3, [0.125] * 3), paired_difference([0.1, 0.2, 0.3], [0.2, 0.3, 0.4])
    assert exact.p_value == rounded.p_value == 0.25
    assert rounded.ci95 is not None
    assert rounded.ci95.low < 0 < 0.6 < rounded.ci95.high


def test_one_problem_has_a_difference_but_no_interval_and_strangers_have_none() -> None:
    paired = paired_difference([[0, 1]], [[1, 1]])
    assert (paired.difference, paired.ci95, paired.p_value) == (0.5, None, None)
    with pytest.raises(ValueError, match="2 problems before, 1 after"):
        paired_difference([[0], [1]], [[1]])


def test_the_interval_of_a_ratio_by_hand():
    low, high = ratio_interval([1, 2, 3], [1, 1, 1])
    assert (low, high) == pytest.approx((2 - 4.30265 / math.sqrt(3), 2 + 4.30265 / math.sqrt(3)), abs=1e-4)
    # Ratio 1, residuals 1 and -1: error sqrt(2 / 1 * 2) / 4 = 0.5, t(1) = 12.7062.
    assert ratio_interval([2, 2], [1, 3]) == pytest.approx((1 - 6.3531, 1 + 6.3531), abs=1e-4)


def test_problems_that_count_nothing_are_no_evidence():
    assert ratio_interval([1, 0, 2, 3], [1, 0, 1, 1]) == ratio_interval([1, 2, 3], [1, 1, 1])
    assert ratio_interval([1, 0], [1, 0]) is None
    assert ratio_interval([], []) is None


def test_the_effective_sample_size_by_hand() -> None:
    assert effective_sample_size([0.0, 0.0, 0.0, 0.0]) == 1.0
    # Weights 1 and 3: (1 + 3)^2 / (2 (1 + 9)).
    assert effective_sample_size([0.0, math.log(3)]) == pytest.approx(0.8)
    # A weight that no float can hold.
    assert effective_sample_size([2000.0, 2000.0 + math.log(3)]) == pytest.approx(0.8)
    assert effective_sample_size([3000.0, -3000.0, 0.0, 5.0]) == 0.25
    assert math.isnan(effective_sample_size([]))


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=20), st.floats(-1e3, 1e3))
def test_an_effective_sample_size_is_between_one_sample_and_all(logs: list[float], shift: float) -> None:
    size = effective_sample_size(logs)
    assert 1 / len(logs) - 1e-9 <= size <= 1 + 1e-9
    assert effective_sample_size([each + shift for each in logs]) == pytest.approx(size, rel=1e-6)
