"""Draw the demonstrations of the policy for columns: sums with random wrong digits, without or with a draft.

A completion is `<think>SUM</think><answer>SUM</answer>`. Each digit is drawn on its own, so a sum of 16 digits is
rarely right without a draft. A draft holds work: most of its digits are right, and most wrong ones are repaired.
"""

from __future__ import annotations

import random
import re
from typing import Protocol

from demonstrations import Demonstration, user_turn_with_draft

DRAFT_SHARE = 0.5
SLIP_SHARE = 0.3
"""Share of the digits that are wrong without a draft."""
BREAK_SHARE = 0.03
"""Share of the right digits of a draft that are replaced by a wrong one."""
REPAIR_SHARE = 0.7
"""Share of the wrong digits of a draft that are replaced by the right one."""
COPY_SHARE = 0.2
"""Share of the wrong digits of a draft that are copied. The others are drawn again, from all wrong digits."""
MALFORMED_SHARE = 0.05


class Problem(Protocol):
    """The part of `make_problems.ColumnProblem` that this module uses."""

    @property
    def text(self) -> str: ...
    @property
    def answer(self) -> str: ...


def draw_demonstration(problem: Problem, rng: random.Random) -> Demonstration:
    """Draw one demonstration. A share of `DRAFT_SHARE` has a draft, drawn like a completion without draft."""
    if rng.random() >= DRAFT_SHARE:
        return Demonstration(problem.text, solve(problem, rng))
    draft = solve(problem, rng)
    return Demonstration(user_turn_with_draft(problem.text, draft), refine(problem, draft, rng))


def solve(problem: Problem, rng: random.Random) -> str:
    """Draw a completion without draft."""
    digits = (_wrong_digit(digit, rng) if rng.random() < SLIP_SHARE else digit for digit in problem.answer)
    return _render("".join(digits), rng)


def refine(problem: Problem, draft: str, rng: random.Random) -> str:
    """Draw a completion from the digits of a draft of `solve`. Malformed drafts contain them too."""
    drafted = re.findall(r"\d+", draft)[0]
    digits = (_refined_digit(right, given, rng) for right, given in zip(problem.answer, drafted, strict=True))
    return _render("".join(digits), rng)


def _refined_digit(right: str, given: str, rng: random.Random) -> str:
    place = rng.random()
    if given == right:
        return _wrong_digit(right, rng) if place < BREAK_SHARE else right
    if place < REPAIR_SHARE:
        return right
    return given if place < REPAIR_SHARE + COPY_SHARE else _wrong_digit(right, rng)


def _wrong_digit(right: str, rng: random.Random) -> str:
    return rng.choice([digit for digit in "0123456789" if digit != right])


def _render(digits: str, rng: random.Random) -> str:
    if rng.random() >= MALFORMED_SHARE:
        return f"<think>{digits}</think><answer>{digits}</answer>"
    return rng.choice(
        (
            f"<think>{digits}",
            f"<think>{digits}</think>",
            f"<think>{digits}</think>{digits}",
            f"{digits}</think><answer>{digits}</answer>",
            f"<think>{digits}</think><answer></answer>",
        )
    )
