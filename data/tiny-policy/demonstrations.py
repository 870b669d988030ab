"""Draw the training demonstrations of the tiny policy: correct, with a slip, or malformed; without or with draft.

A completion is `<think>WORKING</think><answer>NUMBER</answer>`. A working has one step per term (`47+8=55`), or one
step per column for two numbers of two digits (`7+8=15,4+3+1=8`: units, then tens with the carry).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

QUALITIES = ("right", "slip", "malformed")
WEIGHTS_WITHOUT_DRAFT = (0.30, 0.50, 0.20)
DRAFT_SHARE = 0.4
COPY_SHARE = 0.15
"""Share of the demonstrations with draft whose completion repeats the draft."""
WEIGHTS_WITH_DRAFT = (0.36, 0.46, 0.18)
"""Weights of the qualities of the other demonstrations with draft, slightly better than without draft."""
LEVEL_WEIGHTS = (1, 3, 5, 4)


class Problem(Protocol):
    """The part of `make_problems.ArithmeticProblem` that this module uses."""

    @property
    def terms(self) -> tuple[int, ...]: ...
    @property
    def text(self) -> str: ...


@dataclass(frozen=True)
class Demonstration:
    user: str
    """User turn: the problem, followed by the draft if there is one."""
    completion: str


def draw_demonstration(problem: Problem, rng: random.Random) -> Demonstration:
    """Draw one demonstration of mixed quality. A share of `DRAFT_SHARE` has a draft in the prompt."""
    if rng.random() >= DRAFT_SHARE:
        return Demonstration(problem.text, draw_completion(problem, WEIGHTS_WITHOUT_DRAFT, rng))
    draft = draw_completion(problem, WEIGHTS_WITHOUT_DRAFT, rng)
    copies = rng.random() < COPY_SHARE
    completion = draft if copies else draw_completion(problem, WEIGHTS_WITH_DRAFT, rng)
    return Demonstration(user_turn_with_draft(problem.text, draft), completion)


def user_turn_with_draft(problem: str, draft: str) -> str:
    """Return the user turn with a draft, with the same text as in igrpo."""
    return f"{problem}\n\n[draft]\n{draft}\n[/draft]"


def draw_completion(problem: Problem, weights: Sequence[float], rng: random.Random) -> str:
    """Draw a completion. `weights` are the weights of `QUALITIES`, in order."""
    (quality,) = rng.choices(QUALITIES, weights)
    if quality == "malformed":
        working, value = work_out(problem.terms, rng, slips=rng.random() < 0.5)
        return _malform(working, str(value), rng)
    working, value = work_out(problem.terms, rng, slips=quality == "slip")
    return f"<think>{working}</think><answer>{value}</answer>"


def work_out(terms: Sequence[int], rng: random.Random, *, slips: bool) -> tuple[str, int]:
    """Return a working and its value. With `slips`, one step is wrong and the later steps follow from it."""
    by_columns = len(terms) == 2 and min(abs(term) for term in terms) >= 10
    num_steps = 2 if by_columns else len(terms) - 1
    place = rng.randrange(num_steps + 1) if slips else -1
    solve = _by_columns if by_columns else _term_by_term
    working, value = solve(terms, place, rng)
    return working, _misread(value, rng) if place == num_steps else value


def _term_by_term(terms: Sequence[int], wrong_step: int, rng: random.Random) -> tuple[str, int]:
    steps = []
    value = terms[0]
    for index, term in enumerate(terms[1:]):
        result = value + term
        if index == wrong_step:
            result = _misread(result, rng)
        steps.append(f"{value}{term:+d}={result}")
        value = result
    return ",".join(steps), value


def _by_columns(terms: Sequence[int], wrong_step: int, rng: random.Random) -> tuple[str, int]:
    first, second = terms[0], abs(terms[1])
    sign = "+" if terms[1] > 0 else "-"
    direction = 1 if sign == "+" else -1
    borrowed = 10 if sign == "-" and first % 10 < second % 10 else 0
    units = first % 10 + borrowed + direction * (second % 10)
    units_step = f"{first % 10 + borrowed}{sign}{second % 10}="
    if wrong_step == 0:
        units = _misread(units, rng)
    carried = borrowed > 0 or units >= 10
    tens = first // 10 + direction * (second // 10 + carried)
    tens_step = f"{first // 10}{sign}{second // 10}" + (f"{sign}1" if carried else "") + "="
    if wrong_step == 1:
        # Forgetting the carry is the most common slip of people.
        tens = tens - direction if carried and rng.random() < 0.5 else _misread(tens, rng)
    tens = max(tens, 0)
    return f"{units_step}{units},{tens_step}{tens}", 10 * tens + units % 10


def _misread(value: int, rng: random.Random) -> int:
    """Return a number near `value` but not equal to it."""
    wrong = value + rng.choice((-10, -2, -1, 1, 2, 10))
    return wrong if wrong >= 0 else value + 1


def _malform(working: str, value: str, rng: random.Random) -> str:
    return rng.choice(
        (
            f"{working}</think><answer>{value}</answer>",
            f"{working}={value}",
            f"<answer>{value}</answer>",
            f"<answer>{value}</answer><think>{working}</think>",
            f"<think>{working}</think>{value}",
            f"<think>{working}</think>",
            f"<think>{working}<answer>{value}</answer>",
            f"<think>{working}</think><answer></answer>",
            f"<think>{working}</think><answer>{value}</answer> ok",
            f"<think>{working}</think><answer>{value}</answer><answer>{value}</answer>",
        )
    )
