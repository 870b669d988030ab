"""The problems of an iteration."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igrpo_cli.problems.order import WeightedSource, problems_of_iteration, shares_of, weighted_sources
from igrpo_cli.records import Problem


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


def mix(*sources: tuple[str, float, int]) -> list[WeightedSource]:
    """Sources of the given names, weights and sizes, whose problems follow each other."""
    starts = accumulate((size for _, _, size in sources), initial=0)
    return [
        WeightedSource(name, weight, list(range(start, start + size)))
        for (name, weight, size), start in zip(sources, starts, strict=False)
    ]


def draws(sources: list[WeightedSource], num_draws: int, per_iteration: int = 1, seed: int = 0) -> list[int]:
    size = sum(len(source.places) for source in sources)
    iterations = range(-(-num_draws // per_iteration))
    order = [i for n in iterations for i in problems_of_iteration(size, n, per_iteration, seed, sources)]
    return order[:num_draws]


def test_sources_are_interleaved_by_rate() -> None:
    # Two problems each, and weights 2 and 1, are rates of 4 and 2. Draws of a are at 1/8, 3/8, 5/8, 7/8 of a unit and
    # those of b at 2/8 and 6/8.
    sources = mix(("a", 2, 2), ("b", 1, 2))
    names = ["a" if index < 2 else "b" for index in draws(sources, 12)]
    assert names == ["a", "b", "a", "a", "b", "a"] * 2
    assert shares_of(sources) == [4 / 6, 2 / 6]


def test_a_problem_of_twice_the_weight_is_drawn_twice_as_often() -> None:
    sources = mix(("a", 2, 3), ("b", 1, 6), ("c", 0.5, 4))  # rates 6, 6 and 2
    counts = Counter(draws(sources, 28))
    assert [counts[index] for index in range(13)] == [4] * 3 + [2] * 6 + [1] * 4


@given(
    st.lists(st.tuples(st.floats(0.01, 100), st.integers(1, 20)), min_size=1, max_size=4),
    st.integers(1, 30),
    st.integers(0, 2**62),
    st.integers(1, 60),
)
def test_each_source_has_its_share_and_its_own_epochs(
    sizes: list[tuple[float, int]], per_iteration: int, seed: int, num_draws: int
) -> None:
    sources = mix(*((chr(97 + n), weight, size) for n, (weight, size) in enumerate(sizes)))
    order = draws(sources, num_draws, per_iteration, seed)
    assert order == draws(sources, num_draws, 1, seed)
    assert len(order) == num_draws
    for source, share in zip(sources, shares_of(sources), strict=True):
        own, size = [index for index in order if index in source.places], len(source.places)
        assert abs(len(own) - share * num_draws) <= len(sources) / 2 + 1
        for start in range(0, len(own), size):
            assert len(set(own[start : start + size])) == len(own[start : start + size])


def test_equal_weights_draw_each_problem_once_per_epoch() -> None:
    order = draws(mix(("a", 3, 5), ("b", 3, 11)), 32, 4)
    assert sorted(order[:16]) == sorted(order[16:]) == list(range(16))


def test_the_order_of_a_mix_is_fixed_because_old_runs_must_resume_under_new_versions() -> None:
    assert draws(mix(("a", 2, 3), ("b", 1, 4)), 10, 5) == [0, 4, 1, 6, 2, 0, 5, 2, 3, 1]


def test_a_curriculum_keeps_the_order_of_the_problems_in_each_epoch() -> None:
    order = [index for n in range(4) for index in problems_of_iteration(3, n, 2, 0, is_shuffled=False)]
    assert order == [0, 1, 2, 0, 1, 2, 0, 1]
    sources = mix(("a", 2, 2), ("b", 1, 2))
    assert problems_of_iteration(4, 0, 6, 0, sources, is_shuffled=False) == [0, 2, 1, 0, 3, 1]


def test_problems_belong_to_the_source_that_their_id_names() -> None:
    problems = [Problem(name, "1?", "1", "x:1") for name in ("a/1", "b/1", "a/x/2")]
    assert weighted_sources(problems, {"a": 2, "b": 1, "gone": 1}) == [
        WeightedSource("a", 2, [0, 2]),
        WeightedSource("b", 1, [1]),
    ]
    assert weighted_sources(problems, {}) == []
