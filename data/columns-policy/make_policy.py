"""Train the policy for columns, a Llama with 0.4 million parameters and the tokenizer of the tiny policy.

    python make_policy.py OUTPUT_DIRECTORY [--steps 900] [--seed 0]

Prints the loss during training, and at the end the accuracy of samples at temperature 1 on the test problems, without
draft and with the policy's own sample as the draft. Every demonstration has a new problem, also drawn at random.
"""

from __future__ import annotations

import random
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

DATA = Path(__file__).resolve().parent.parent
sys.path.append(str(DATA / "tiny-policy"))  # the trainer and the format of drafts are those of the tiny policy

from column_demonstrations import draw_demonstration  # noqa: E402
from demonstrations import Demonstration  # noqa: E402
from train_policy import Task, load_module, make_policy  # noqa: E402


@cache
def make_problems() -> ModuleType:
    return load_module(DATA / "columns" / "make_problems.py")


def draw_batch(rng: random.Random, count: int) -> list[Demonstration]:
    return [draw_demonstration(make_problems().draw_problem(rng), rng) for _ in range(count)]


if __name__ == "__main__":
    task = Task(
        draw_batch,
        DATA / "columns" / "test.jsonl",
        max_completion_length=48,
        steps=900,
        batch_size=64,
        learning_rate=3e-3,
        hidden_size=96,
        num_layers=3,
        num_threads=1,
    )
    make_policy(task, "Train the policy for columns.")
