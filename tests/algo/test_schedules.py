"""The schedule as a function of the step equals those of transformers, which advance step by step."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import get_scheduler

from igrpo_cli.algo.schedules import learning_rate_at

PEAK = 3e-4


def walk(name: str, total_steps: int, warmup_ratio: float, min_lr_rate: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    scheduler = get_scheduler(
        name,
        optimizer,
        num_warmup_steps=math.ceil(total_steps * warmup_ratio),
        num_training_steps=total_steps,
        scheduler_specific_kwargs={"min_lr_rate": min_lr_rate} if name == "cosine_with_min_lr" else None,
    )
    rates = []
    for _ in range(total_steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("name", ["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_min_lr"])
@pytest.mark.parametrize(("total_steps", "warmup_ratio"), [(1, 0.0), (7, 0.1), (40, 0.25), (10, 0.0), (4, 1.0)])
def test_rates_are_those_of_transformers(name, total_steps, warmup_ratio):
    expected = walk(name, total_steps, warmup_ratio, 0.1)[:total_steps]
    rates = [learning_rate_at(step, total_steps, PEAK, name, warmup_ratio, 0.1) for step in range(total_steps)]
    # transformers starts a warm-up at 0, which would waste the rollouts of the first step.
    warmup = 0 if name == "constant" else math.ceil(total_steps * warmup_ratio)
    assert rates[:warmup] == pytest.approx([PEAK * (step + 1) / (warmup + 1) for step in range(warmup)])
    assert rates[warmup:] == pytest.approx(expected[warmup:], rel=1e-12, abs=1e-18)


def test_the_papers_schedule_at_its_corners():
    def rate(step):
        return learning_rate_at(step, 100, 1e-6, "cosine_with_min_lr", 0.1, 0.1)

    assert [rate(0), rate(10), rate(55), rate(100)] == pytest.approx([1e-6 / 11, 1e-6, 5.5e-7, 1e-7])


@pytest.mark.parametrize(("name", "final"), [("linear", 0.0), ("cosine", 0.0), ("cosine_with_min_lr", 0.1)])
def test_steps_past_the_end_keep_the_final_rate(name, final):
    assert learning_rate_at(25, 10, 1.0, name, 0.1, 0.1) == pytest.approx(final)


@pytest.mark.parametrize(("step", "total_steps"), [(-1, 10), (0, 0)])
def test_a_step_that_cannot_be_is_refused(step, total_steps):
    with pytest.raises(ValueError, match="no step"):
        learning_rate_at(step, total_steps, 1.0, "constant", 0.1, 0.1)
