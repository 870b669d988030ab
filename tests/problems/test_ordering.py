"""The problems of an iteration."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igrpo_cli.problems.loading import problems_of_iteration


@given(st.integers(1, 30), st.integers(1, 70), st.integers(0, 2**62), st.integers(1, 4))
def test_every_epoch_contains_every_problem_once(num_problems: int, per_iteration: int, seed: int, epochs: int) -> None:
    iterations = range(-(-num_problems * epochs // per_iteration))
    order = [index for n in iterations for index in problems_of_iteration(num_problems, n, per_iteration, seed)]
    for epoch in range(epochs):
        assert sorted(order[epoch * num_problems : (epoch + 1) * num_problems]) == list(range(num_problems))


def test_an_iteration_is_complete_also_across_epochs() -> None:
    assert [len(problems_of_iteration(10, n, 4, 0)) for n in range(4)] == [4, 4, 4, 4]
    assert sorted(problems_of_iteration(3, 0, 6, 0)) == [0, 0, 1, 1, 2, 2]


def test_the_size_of_iterations_does_not_change_the_order() -> None:
    small = [index for n in range(12) for index in problems_of_iteration(9, n, 3, 5)]
    large = [index for n in range(4) for index in problems_of_iteration(9, n, 9, 5)]
    assert small == large


def test_seeds_and_epochs_shuffle_differently() -> None:
    orders = [tuple(problems_of_iteration(50, epoch, 50, seed)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert tuple(range(50)) not in orders


def test_the_order_is_fixed_because_old_runs_must_resume_under_new_versions() -> None:
    assert problems_of_iteration(10, 0, 10, 0) == [3, 9, 2, 0, 8, 4, 7, 6, 1, 5]


@pytest.mark.parametrize(("num_problems", "iteration", "size"), [(0, 0, 1), (5, -1, 1), (5, 0, 0)])
def test_invalid_arguments_are_rejected(num_problems: int, iteration: int, size: int) -> None:
    with pytest.raises(ValueError, match="at least one problem"):
        problems_of_iteration(num_problems, iteration, size, 0)
