"""Advantages: golden values of the field's three conventions, and what must be exactly zero."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igrpo_cli.algo.advantages import group_advantages
from igrpo_cli.config.update import UpdateSection

SCALES = ("sample_std", "population_std", "none")
REWARDS = st.lists(st.floats(-10, 10, allow_subnormal=False), min_size=1, max_size=16)


@pytest.mark.parametrize(
    ("scale", "epsilon", "first", "others"),
    [
        ("sample_std", 0.0, 1.5, -0.5),
        ("sample_std", 1e-4, 0.75 / 0.5001, -0.25 / 0.5001),
        ("population_std", 0.0, np.sqrt(3), -1 / np.sqrt(3)),
        ("none", 1e-4, 0.75, -0.25),
    ],
)
def test_one_success_in_four(scale, epsilon, first, others):
    advantages = group_advantages(np.array([1.0, 0.0, 0.0, 0.0]), scale, epsilon)
    np.testing.assert_allclose(advantages, [first, others, others, others], rtol=1e-12)


def test_the_default_is_the_sample_deviation_with_1e4_added_to_it():
    rewards = np.array([2.0, 0.0])
    np.testing.assert_allclose(
        group_advantages(rewards, UpdateSection().constants().scale_rewards),
        [1 / (np.sqrt(2) + 1e-4), -1 / (np.sqrt(2) + 1e-4)],
    )


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("rewards", [[], [0.3], [0.0, 0.0], [0.1] * 7, [1e9 + 0.1] * 3])
def test_a_group_with_one_distinct_reward_is_exactly_zero(scale, rewards):
    # The mean of seven times 0.1 is not 0.1 in floating point.
    advantages = group_advantages(np.array(rewards), scale)
    assert advantages.shape == (len(rewards),)
    assert (advantages == 0.0).all()


@pytest.mark.parametrize("scale", SCALES)
@given(rewards=REWARDS)
def test_advantages_have_mean_zero_and_keep_the_order_of_rewards(scale, rewards):
    advantages = group_advantages(np.array(rewards), scale)
    assert abs(advantages.mean()) < 1e-9
    order = np.argsort(rewards, kind="stable")
    assert (np.diff(advantages[order]) >= 0).all()


@given(rewards=REWARDS, seed=st.integers(0, 100))
def test_the_order_of_completions_does_not_matter(rewards, seed):
    order = np.random.default_rng(seed).permutation(len(rewards))
    np.testing.assert_allclose(
        group_advantages(np.array(rewards)[order], "sample_std"),
        group_advantages(np.array(rewards), "sample_std")[order],
        atol=1e-9,
    )


@pytest.mark.parametrize("rewards", [[1.0, np.nan], [np.inf, 0.0], [[1.0, 0.0]]])
def test_what_is_no_vector_of_finite_rewards_is_refused(rewards):
    with pytest.raises(ValueError, match="must be"):
        group_advantages(np.array(rewards), "sample_std")


@pytest.mark.parametrize(
    ("rewards", "baseline", "scale", "expected"),
    [
        # Mean 0.25, sample deviation 0.5, population deviation sqrt(3)/4 of the baseline.
        ([1.0, 0.0], [1.0, 0.0, 0.0, 0.0], "sample_std", [0.75 / 0.5001, -0.25 / 0.5001]),
        ([1.0, 1.0], [1.0, 0.0, 0.0, 0.0], "population_std", [0.75 / (3**0.5 / 4 + 1e-4)] * 2),
        ([1.0, 1.0], [1.0, 0.0, 0.0, 0.0], "none", [0.75, 0.75]),
        # Without a deviation of the baseline the difference is not divided.
        ([1.0, 0.0], [0.0, 0.0, 0.0], "sample_std", [1.0, 0.0]),
        ([1.0, 0.0], [1.0], "sample_std", [0.0, -1.0]),
        ([0.1, 0.1], [0.1] * 7, "sample_std", [0.0, 0.0]),
        ([1.0, 0.0], [], "sample_std", [0.5 / (0.5**0.5 + 1e-4), -0.5 / (0.5**0.5 + 1e-4)]),
    ],
)
def test_advantages_against_other_rewards(rewards, baseline, scale, expected):
    advantages = group_advantages(np.array(rewards), scale, baseline=baseline)
    assert advantages.tolist() == pytest.approx(expected, rel=1e-12)


def test_an_ungraded_completion_has_no_advantage_against_other_rewards_either():
    found = group_advantages(np.array([1.0, 0.0]), "none", is_graded=np.array([True, False]), baseline=[0.5, 0.0])
    assert found.tolist() == [0.75, 0.0]


@given(rewards=REWARDS)
@pytest.mark.parametrize("scale", SCALES)
def test_a_group_measured_against_itself_has_the_advantages_of_a_group(scale, rewards):
    own = group_advantages(np.array(rewards), scale)
    assert group_advantages(np.array(rewards), scale, baseline=rewards).tolist() == own.tolist()
