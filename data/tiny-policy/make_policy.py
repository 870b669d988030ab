"""Train the tiny policy, a Llama with about a million parameters and one token per character, on arithmetic.

    python make_policy.py OUTPUT_DIRECTORY [--steps 600] [--seed 0]

Prints the loss during training, and at the end the accuracy of samples at temperature 1 on the test problems, without
draft and with the policy's own sample as the draft. No test problem occurs in training, in any order or sign of its
operands.
"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

from demonstrations import LEVEL_WEIGHTS, Demonstration, draw_demonstration
from train_policy import Task, load_module, make_policy

ARITHMETIC = Path(__file__).resolve().parent.parent / "arithmetic"


@cache
def training_problems() -> dict[int, list[Any]]:
    """Return the problems of the training split by level."""
    make_problems = load_module(ARITHMETIC / "make_problems.py")
    levels: dict[int, list[Any]] = {level: [] for level in make_problems.LEVELS}
    for problem in make_problems.problem_space():
        if problem.split == "train":
            levels[problem.level].append(problem)
    return levels


def draw_batch(rng: random.Random, count: int) -> list[Demonstration]:
    levels = training_problems()
    chosen = rng.choices(list(levels), LEVEL_WEIGHTS, k=count)
    return [draw_demonstration(rng.choice(levels[level]), rng) for level in chosen]


if __name__ == "__main__":
    make_policy(Task(draw_batch, ARITHMETIC / "test.jsonl", max_completion_length=40), "Train the tiny policy.")
