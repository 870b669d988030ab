"""Selection of the draft that the refinements see."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import product
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igrpo_cli.algo import AT_RANDOM
from igrpo_cli.algo.selection import (
    Choices,
    Strategy,
    Ties,
    allocate,
    choose_actions,
    choose_drafts,
    derangement,
    majority_draft,
    partners,
    wrong_partners,
)
from igrpo_cli.seeds import derive_seed


def choose(rewards: list[float], lengths: list[int] | None = None, seed: int = 0, **how: Any) -> tuple[int, int]:
    """(index, num_tied) for one group."""
    choices = choose_drafts(
        [rewards],
        [lengths or [1] * len(rewards)],
        [seed],
        how.get("strategy", "best"),
        how.get("ties", "first"),
    )
    return int(choices.indices[0]), int(choices.num_tied[0])


@pytest.mark.parametrize(
    ("strategy", "ties", "expected"),
    [
        ("best", "first", (1, 2)),
        ("best", "shortest", (3, 2)),
        ("worst", "first", (0, 2)),
        ("worst", "shortest", (2, 2)),
        ("shuffled", "first", (1, 2)),
        ("none", "shortest", (3, 2)),
    ],
)
def test_strategies_and_ties_by_hand(strategy: str, ties: str, expected: tuple[int, int]) -> None:
    rewards, lengths = [0.0, 2.0, 0.0, 2.0, 1.0], [9, 8, 7, 6, 5]
    assert choose(rewards, lengths, strategy=strategy, ties=ties) == expected


def test_among_equally_short_ties_the_first_wins() -> None:
    assert choose([1, 1, 1], [5, 3, 3], ties="shortest") == (1, 3)


def test_a_random_tie_falls_on_every_tied_draft_alike_and_on_no_other() -> None:
    seeds = [derive_seed(0, "select", group) for group in range(3000)]
    tied = Counter(choose([1, 0, 1, 1], seed=seed, ties="random") for seed in seeds)
    assert set(tied) == {(0, 3), (2, 3), (3, 3)}
    assert all(abs(number - 1000) < 110 for number in tied.values())  # 4.2 standard deviations


def test_the_random_strategy_ignores_rewards_and_tells_their_ties() -> None:
    seeds = [derive_seed(1, "select", group) for group in range(3000)]
    drawn = Counter(choose([1, 0, 0], seed=seed, strategy="random", ties="shortest") for seed in seeds)
    assert set(drawn) == {(0, 1), (1, 2), (2, 2)}
    assert all(abs(number - 1000) < 110 for number in drawn.values())


@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=3, max_size=3), min_size=1, max_size=8),
    st.sampled_from(get_args(Strategy)),
    st.sampled_from(get_args(Ties)),
    st.integers(0, 2**63 - 1),
)
def test_a_group_is_chosen_the_same_alone_and_in_company(
    rewards: list[list[float]], strategy: Strategy, ties: Ties, seed: int
) -> None:
    lengths = [[3, 1, 2]] * len(rewards)
    seeds = [(seed + group) % 2**63 for group in range(len(rewards))]
    together = choose_drafts(rewards, lengths, seeds, strategy, ties)
    for group, row in enumerate(rewards):
        alone = choose_drafts([row], lengths[:1], seeds[group : group + 1], strategy, ties)
        assert alone.indices[0] == together.indices[group]
        chosen = row[alone.indices[0]]
        assert together.num_tied[group] == row.count(chosen)
        if strategy not in AT_RANDOM:
            assert chosen == (min(row) if strategy == "worst" else max(row))


def statistics(rewards: list[float]) -> tuple[float, float]:
    choices: Choices = choose_drafts([rewards], [[1] * len(rewards)], [0], "best", "first")
    return float(choices.reward_mean[0]), float(choices.reward_std[0])


def test_the_spread_of_a_group_is_the_sample_deviation() -> None:
    assert statistics([1, 0, 0, 0]) == (0.25, 0.5)
    assert statistics([2, 0]) == (1.0, pytest.approx(2**0.5))
    assert statistics([3]) == (3.0, 0.0)
    assert statistics([0.1] * 3) == (0.1, 0.0)
    assert statistics([0.1] * 7) == (0.1, 0.0)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=9))
def test_the_statistics_agree_with_numpy(rewards: list[float]) -> None:
    assert statistics(rewards) == pytest.approx((np.mean(rewards), np.std(rewards, ddof=1)), abs=1e-12)


@pytest.mark.parametrize(
    ("rewards", "lengths", "message"),
    [
        ([[1.0, float("nan")]], [[1, 1]], "not finite"),
        ([[]], [[]], "must both be"),
        ([[1.0, 0.0]], [[1]], "must both be"),
        ([1.0, 0.0], [1, 1], "must both be"),
    ],
)
def test_what_has_no_maximum_is_refused(rewards: Any, lengths: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_drafts(rewards, lengths, [0], "best", "first")


@pytest.mark.parametrize(
    ("strategy", "all_zero", "actions"),
    [
        ("best", "keep", ["condition", "condition", "condition"]),
        ("best", "bare", ["condition", "bare", "bare"]),
        ("worst", "drop", ["condition", "drop", "drop"]),
        ("shuffled", "bare", ["condition", "bare", "bare"]),
        ("none", "keep", ["bare", "bare", "bare"]),
        ("none", "bare", ["bare", "bare", "bare"]),
        ("none", "drop", ["bare", "drop", "drop"]),
    ],
)
def test_groups_that_earned_nothing_follow_the_rule(strategy: Any, all_zero: Any, actions: list[str]) -> None:
    rewards = [[0.0, 0.5], [0.0, 0.0], [-1.0, 0.0]]
    assert choose_actions(rewards, strategy, all_zero) == actions


@given(st.integers(2, 60), st.integers(0, 2**63 - 1))
def test_a_derangement_moves_everything_and_loses_nothing(size: int, seed: int) -> None:
    partner = derangement(size, seed).tolist()
    assert sorted(partner) == list(range(size))
    assert all(partner[index] != index for index in range(size))
    assert derangement(size, seed).tolist() == partner


def test_derangements_of_one_and_none_and_of_different_seeds() -> None:
    assert derangement(1, 5).tolist() == [0]
    assert derangement(0, 5).tolist() == []
    assert {tuple(derangement(3, seed).tolist()) for seed in range(50)} == {(1, 2, 0), (2, 0, 1)}


@given(st.lists(st.sampled_from(["condition", "bare", "drop"]), max_size=20), st.integers(0, 2**63 - 1))
def test_only_conditioning_groups_exchange_drafts(actions: Any, seed: int) -> None:
    partner, after = partners(actions, seed)
    conditioning = [group for group, action in enumerate(actions) if action == "condition"]
    assert sorted(partner.tolist()) == list(range(len(actions)))
    for group, action in enumerate(actions):
        if action != "condition":
            assert (partner[group], after[group]) == (group, action)
        elif len(conditioning) > 1:
            assert partner[group] != group
            assert actions[partner[group]] == after[group] == "condition"


def test_a_lone_group_is_refined_bare_rather_than_shown_its_own_draft() -> None:
    partner, actions = partners(["drop", "condition", "bare"], 3)
    assert partner.tolist() == [0, 1, 2]
    assert actions == ["drop", "bare", "bare"]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["5", "4", "4"], 1),
        (["5", "4", "4", "5"], 0),
        ([None, None, None, "4"], 3),
        ([None, "5", "4"], 1),
        ([None, None], 0),
        (["4"], 0),
    ],
)
def test_the_majority_draft_is_the_first_with_the_most_frequent_answer(
    answers: list[str | None], expected: int
) -> None:
    assert majority_draft(answers) == expected


@given(st.lists(st.sampled_from(["1", "2", "3", None]), min_size=1, max_size=8))
def test_no_answer_has_more_votes_than_that_of_the_majority_draft(answers: list[str | None]) -> None:
    index = majority_draft(answers)
    votes = Counter(answer for answer in answers if answer is not None)
    assert votes[answers[index]] == max(votes.values(), default=0)
    assert answers.index(answers[index]) == index


def test_an_ungraded_draft_is_not_chosen_and_counts_in_no_statistic():
    choices = choose_drafts([[0.0, 1.0, 2.0]], [[1, 1, 1]], [0], "best", "first", [[True, True, False]])
    assert (choices.indices.tolist(), choices.num_tied.tolist()) == ([1], [1])
    assert (choices.reward_mean.tolist(), choices.reward_std.tolist()) == ([0.5], [pytest.approx(0.5**0.5)])
    worst = choose_drafts([[0.0, 1.0, 2.0]], [[1, 1, 1]], [0], "worst", "first", [[False, True, True]])
    assert worst.indices.tolist() == [1]


def test_a_group_without_graded_drafts_counts_as_one_without_reward():
    rewards, is_graded = [[1.0, 2.0], [1.0, 0.0]], [[False, False], [True, True]]
    assert choose_drafts(rewards, [[1, 1], [1, 1]], [0, 0], "best", "first", is_graded).indices.tolist() == [1, 0]
    assert choose_actions(rewards, "best", "drop", is_graded) == ["drop", "condition"]


# Rewards of a problem with a format part: two wrong drafts (0, 2), two right ones (1, 3).
MIXED, IS_WRONG = [0.0, 2.0, 1.0, 2.0], [True, False, True, False]


def drawn(strategy: Strategy, is_wrong: list[bool], is_graded: Any = True) -> Counter[int]:
    seeds = [derive_seed(2, "select", group) for group in range(2000)]
    rows, num_groups = [MIXED] * len(seeds), len(seeds)
    graded = np.broadcast_to(np.asarray(is_graded), (num_groups, 4))
    found = choose_drafts(rows, np.ones((num_groups, 4)), seeds, strategy, "first", graded, [is_wrong] * num_groups)
    return Counter(found.indices.tolist())


@pytest.mark.parametrize("strategy", ["wrong", "shuffled_wrong"])
def test_a_wrong_draft_is_drawn_among_the_wrong_ones_whatever_their_reward(strategy: Strategy) -> None:
    found = drawn(strategy, IS_WRONG)
    assert set(found) == {0, 2}
    assert all(abs(number - 1000) < 95 for number in found.values())  # 4.2 standard deviations
    assert set(drawn(strategy, IS_WRONG, [False, True, True, True])) == {2}
    assert set(drawn(strategy, [False] * 4)) == {0, 1, 2, 3}, "without a wrong draft any draft is shown"


def test_a_balanced_choice_tosses_a_coin_and_then_draws() -> None:
    found = drawn("balanced", IS_WRONG)
    assert all(abs(found[index] - 500) < 82 for index in range(4))
    assert abs(found[0] + found[2] - 1000) < 95
    one_right = drawn("balanced", [True, False, True, True])
    assert abs(one_right[1] - 1000) < 95, "the only right draft is shown every second time"
    assert set(drawn("balanced", [False] * 4)) == {0, 1, 2, 3}


@given(
    st.lists(st.tuples(st.sampled_from(["condition", "bare", "drop"]), st.booleans()), max_size=20),
    st.integers(0, 2**63 - 1),
)
def test_each_group_sees_the_wrong_draft_of_another_one(groups: Any, seed: int) -> None:
    actions, has_wrong = [action for action, _ in groups], [wrong for _, wrong in groups]
    partner, after = wrong_partners(actions, has_wrong, seed)
    for group, action in enumerate(actions):
        others = [each for each, wrong in enumerate(has_wrong) if wrong and each != group]
        if action != "condition":
            assert (partner[group], after[group]) == (group, action)
        elif others:
            assert partner[group] in others
            assert after[group] == "condition"
        else:
            assert (partner[group], after[group]) == (group, "bare")


def test_wrong_drafts_are_shared_evenly() -> None:
    everyone = wrong_partners(["condition"] * 12, [True] * 12, 4)[0]
    assert sorted(everyone.tolist()) == list(range(12))
    few = Counter(wrong_partners(["condition"] * 12, [group in (3, 7) for group in range(12)], 4)[0].tolist())
    assert set(few) == {3, 7}
    assert few.total() == 12


@pytest.mark.parametrize(
    ("is_wrong", "shown"),
    [
        ([True, False, True, False], {0, 2}),
        ([True, False, False, False], {0}),
        ([True, True, True, False], {3}),
        ([True] * 4, {0, 1, 2, 3}),
        ([False] * 4, {0, 1, 2, 3}),
    ],
)
def test_the_opposite_draft_goes_against_the_majority(is_wrong: list[bool], shown: set[int]) -> None:
    assert set(drawn("opposite", is_wrong)) == shown


def test_refinements_go_where_variance_is_likely_by_hand() -> None:
    # Drafts right of four: 4, 2, 1, 0. Two refinements have variance with probability 50/120, 42/120 and 18/120.
    right, wrong = [4, 2, 1, 0], [0, 2, 3, 4]
    assert allocate(right, wrong, 2, 8, 0).tolist() == [0, 2, 0, 0]
    # A third one of the second group adds 25/120 and a fourth one 14/120; each of three of the third group adds 21/120.
    assert allocate(right, wrong, 5, 8, 0).tolist() == [0, 3, 2, 0]
    assert allocate(right, wrong, 6, 8, 0).tolist() == [0, 3, 3, 0]
    assert allocate(right, wrong, 7, 8, 0).tolist() == [0, 4, 3, 0]
    # 9/120 each of two of the last group come before the fifth ones of the others, which add 8.6/120 and 8.3/120.
    assert allocate(right, wrong, 10, 8, 0).tolist() == [0, 4, 4, 2]
    assert allocate(right, wrong, 100, 8, 0).tolist() == [0, 8, 8, 8]
    assert allocate([4, 4], [0, 0], 8, 8, 0).tolist() == [0, 0]
    assert allocate([0], [0], 4, 8, 0).tolist() == [4], "a group without graded drafts may have any solve rate"


def variance(right: int, wrong: int, size: int) -> Fraction:
    """The probability that `size` refinements have reward variance, under the solve rate of the drafts."""
    a, b, same_right, same_wrong = right + Fraction(1, 2), wrong + Fraction(1, 2), Fraction(1), Fraction(1)
    for number in range(size):
        same_right *= (a + number) / (a + b + number)
        same_wrong *= (b + number) / (a + b + number)
    return 1 - same_right - same_wrong if size else Fraction(0)


SOLVED = st.lists(st.integers(0, 4), min_size=1, max_size=4)


@given(SOLVED, st.integers(1, 3), st.integers(2, 5), st.integers(0, 2**63 - 1))
def test_no_other_allocation_of_the_budget_expects_more_variance(solved: list[int], mean: int, top: int, seed: int):
    wrong, budget = [4 - right for right in solved], 2 * (mean * len(solved) // 2)
    found = allocate(solved, wrong, budget, top, seed).tolist()
    choices = [(0,) if right == 4 else (0, *range(2, top + 1)) for right in solved]
    best = max(
        sum(variance(right, 4 - right, size) for right, size in zip(solved, sizes, strict=True))
        for sizes in product(*choices)
        if sum(sizes) <= budget
    )
    ours = sum(variance(right, 4 - right, size) for right, size in zip(solved, found, strict=True))
    # A group begins with two refinements, so the last one may have to go elsewhere. One adds at most 25/120.
    assert best - ours <= Fraction(25, 120)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=40),
    st.integers(1, 9),
    st.integers(2, 20),
    st.integers(0, 2**63 - 1),
)
def test_the_average_budget_of_a_problem_is_never_exceeded(drafts: Any, number: int, maximum: int, seed: int) -> None:
    right, wrong = [each for each, _ in drafts], [each for _, each in drafts]
    sizes = allocate(right, wrong, number * len(drafts), maximum, seed)
    assert sizes.sum() <= number * len(drafts)
    assert set(sizes.tolist()) <= {0, *range(2, maximum + 1)}
    for size, (num_right, num_wrong) in zip(sizes.tolist(), drafts, strict=True):
        assert not size or num_wrong or not num_right
    assert allocate(right, wrong, number * len(drafts), maximum, seed).tolist() == sizes.tolist()
