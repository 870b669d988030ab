"""Problems are chosen and sorted by the solve rates of an earlier run."""

from __future__ import annotations

import pytest

from igrpo_cli.problems.external import easy_first, with_solve_rates_between
from igrpo_cli.records import Problem

RATES = {"never": 0.0, "rarely": 0.25, "often": 0.75, "always": 1.0}
PROBLEMS = [Problem(name, name, "1", "x:1") for name in ("new", "often", "never", "always", "rarely")]


@pytest.mark.parametrize(
    ("minimum", "maximum", "kept", "counts"),
    [
        (None, None, "new often never always rarely", (0, 0, 0)),
        (0.25, None, "often always rarely", (1, 1, 0)),
        (None, 0.75, "often never rarely", (1, 0, 1)),
        (0.25, 0.75, "often rarely", (1, 1, 1)),
        (0.3, 0.7, "", (1, 2, 2)),
    ],
)
def test_the_limits_belong_to_the_range(
    minimum: float | None, maximum: float | None, kept: str, counts: tuple[int, int, int]
) -> None:
    problems, others = with_solve_rates_between(PROBLEMS, RATES, minimum, maximum)
    assert [problem.problem_id for problem in problems] == kept.split()
    assert others == dict(zip(("no_solve_rate", "solved_too_rarely", "solved_too_often"), counts, strict=True))


def test_easy_problems_come_first_and_unknown_ones_last() -> None:
    order = [problem.problem_id for problem in easy_first(PROBLEMS, RATES, 0)]
    assert order == ["always", "often", "rarely", "never", "new"]


def test_problems_of_the_same_rate_are_shuffled_by_the_seed() -> None:
    many = [Problem(str(number), "rarely", "1", "x:1") for number in range(20)]
    orders = [easy_first(many, RATES, seed) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] == easy_first(many[::-1], RATES, 0)
    assert len({tuple(problem.problem_id for problem in order) for order in [*orders, many]}) == 3
