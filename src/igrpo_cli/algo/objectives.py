"""The objectives by name, and the constants that each was published with. Light: it imports nothing."""

from __future__ import annotations

from typing import Literal, NamedTuple

LossType = Literal["grpo", "dapo", "dr_grpo", "gspo", "cispo"]
ScaleRewards = Literal["sample_std", "population_std", "none"]


class Published(NamedTuple):
    """What holds where nothing else is set."""

    epsilon: float
    """The ratio is clipped below at 1 - epsilon."""
    epsilon_high: float | None
    """The ratio is clipped above at 1 + epsilon_high; None is the same as below."""
    scale_rewards: ScaleRewards
    """What advantages are divided by."""


PUBLISHED: dict[LossType, Published] = {
    "grpo": Published(0.2, None, "sample_std"),
    "dapo": Published(0.2, 0.28, "sample_std"),
    # Dr. GRPO's point is to divide by no deviation and by no length (arXiv 2503.20783).
    "dr_grpo": Published(0.2, None, "none"),
    "gspo": Published(3e-4, 4e-4, "sample_std"),
    # No clip below, since a ratio is never under 0. TRL writes the upper one as 5.0, the bound of the ratio itself.
    "cispo": Published(1.0, 4.0, "sample_std"),
}


def clip_epsilons(loss_type: LossType, epsilon: float | None, epsilon_high: float | None) -> tuple[float, float]:
    """(epsilon, epsilon_high) in use: what is None is as published."""
    published = PUBLISHED[loss_type]
    low = published.epsilon if epsilon is None else epsilon
    high = published.epsilon_high if epsilon_high is None else epsilon_high
    return low, low if high is None else high
