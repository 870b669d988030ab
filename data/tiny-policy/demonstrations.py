"""What the tiny policy is shown: right workings, slips and malformed ones, bare or with a draft.

A completion is `<think>WORKING</think><answer>NUMBER</answer>`. A working is one step a term (`47+8=55`), or
column by column for two numbers of two digits (`7+8=15,4+3+1=8`: units, then tens with the carry).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

QUALITIES = ("right", "slip", "malformed")
BARE_WEIGHTS = (0.30, 0.50, 0.20)
DRAFT_SHARE = 0.4
COPY_SHARE = 0.15
"""Of the demonstrations with a draft, those that repeat it word for word."""
DRAFTED_WEIGHTS = (0.36, 0.46, 0.18)
"""Qualities of the others: a little better than without a draft."""
LEVEL_WEIGHTS = (1, 3, 5, 4)


class Problem(Protocol):
    """What is needed of `make_problems.ArithmeticProblem`."""

    @property
    def terms(self) -> tuple[int, ...]: ...
    @property
    def text(self) -> str: ...


@dataclass(frozen=True)
class Demonstration:
    user: str
    """The user turn: the problem, and below it the draft if there is one."""
    completion: str


def draw_demonstration(problem: Problem, rng: random.Random) -> Demonstration:
    """One demonstration of mixed quality, with a draft in its prompt in `DRAFT_SHARE` of the cases."""
    if rng.random() >= DRAFT_SHARE:
        return Demonstration(problem.text, draw_completion(problem, BARE_WEIGHTS, rng))
    draft = draw_completion(problem, BARE_WEIGHTS, rng)
    copies = rng.random() < COPY_SHARE
    completion = draft if copies else draw_completion(problem, DRAFTED_WEIGHTS, rng)
    return Demonstration(conditioned_user_turn(problem.text, draft), completion)


def conditioned_user_turn(problem: str, draft: str) -> str:
    """The user turn that shows a draft: the same text as igrpo writes."""
    return f"{problem}\n\n[draft]\n{draft}\n[/draft]"


def draw_completion(problem: Problem, weights: Sequence[float], rng: random.Random) -> str:
    """A completion whose quality is drawn with `weights`, in the order of `QUALITIES`."""
    (quality,) = rng.choices(QUALITIES, weights)
    if quality == "malformed":
        working, value = work_out(problem.terms, rng, slips=rng.random() < 0.5)
        return _malform(working, str(value), rng)
    working, value = work_out(problem.terms, rng, slips=quality == "slip")
    return f"<think>{working}</think><answer>{value}</answer>"


def work_out(terms: Sequence[int], rng: random.Random, *, slips: bool) -> tuple[str, int]:
    """The working and the value it comes to; with `slips`, one place is wrong and the rest follows."""
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
        # Forgetting the carry is the slip that people make most often.
        tens = tens - direction if carried and rng.random() < 0.5 else _misread(tens, rng)
    tens = max(tens, 0)
    return f"{units_step}{units},{tens_step}{tens}", 10 * tens + units % 10


def _misread(value: int, rng: random.Random) -> int:
    """A number near `value` and never equal to it."""
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
