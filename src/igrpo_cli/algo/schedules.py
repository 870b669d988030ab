"""The learning rate as a function of the step, without state.

Names are those of `transformers.get_scheduler`, and values too after the warm-up. During the warm-up every step has a
rate above 0: an iteration may have a single step, and with rate 0 its rollouts would be wasted.
"""

from __future__ import annotations

import math

from igrpo_cli.algo import LrSchedulerType


def learning_rate_at(
    step: int,
    total_steps: int,
    peak: float,
    lr_scheduler_type: LrSchedulerType,
    warmup_ratio: float,
    min_lr_rate: float,
) -> float:
    """Return the learning rate of optimiser step `step` (from 0) of `total_steps`.

    The warm-up is the first w = ceil(total_steps * warmup_ratio) steps (`constant` has none). Its step s has the rate
    peak * (s + 1) / (w + 1), so step w is the first at `peak`. Then the rate follows the schedule. `cosine_with_min_lr`
    ends at `min_lr_rate` * `peak`. Steps after the last one keep the final rate.

    Raises ValueError for a negative step or if `total_steps` is less than 1.
    """
    if step < 0 or total_steps < 1:
        raise ValueError(f"no step {step} of {total_steps}")
    if lr_scheduler_type == "constant":
        return peak
    warmup_steps = math.ceil(total_steps * warmup_ratio)
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return peak * _decay(progress, lr_scheduler_type, min_lr_rate)


def _decay(progress: float, lr_scheduler_type: LrSchedulerType, min_lr_rate: float) -> float:
    """Return the rate as a fraction of the peak after the fraction `progress` of the steps after the warm-up."""
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    match lr_scheduler_type:
        case "constant" | "constant_with_warmup":
            return 1.0
        case "linear":
            return 1.0 - progress
        case "cosine":
            return cosine
        case "cosine_with_min_lr":
            return cosine * (1.0 - min_lr_rate) + min_lr_rate
    raise ValueError(f"unknown lr_scheduler_type {lr_scheduler_type!r}")
