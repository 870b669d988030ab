"""Group-relative advantages: the baseline of GRPO and iGRPO is the mean reward of the group.

GRPO: arXiv 2402.03300, section 4.1.2. iGRPO: arXiv 2602.09000, over the refinements only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from igrpo_cli.algo import ScaleRewards

_DDOF: dict[ScaleRewards, int] = {"sample_std": 1, "population_std": 0}


def group_advantages(
    rewards: NDArray[np.float64],
    scale_rewards: ScaleRewards,
    epsilon: float = 1e-4,
    is_graded: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """Return advantages [G] of the rewards [G] of one group: (r - mean) / (std + epsilon), or r - mean for `none`.

    As in TRL, `epsilon` is added to the standard deviation. So of the rewards [1, 0, 0, 0], the first completion has
    the advantage 0.75 / (0.5 + 1e-4) = 1.4997 with the sample deviation (ddof 1), 0.75 / (0.4330 + 1e-4) = 1.7317 with
    the population deviation, and 0.75 with `none`. If all rewards are equal, the advantages are exactly 0.0. Otherwise
    the rounding error of the mean, divided by `epsilon`, would be a gradient of noise.

    Completions where `is_graded` [G] is False have the advantage 0 and do not count in mean and deviation.

    Raises ValueError if `rewards` is not a vector of finite numbers.
    """
    rewards_G = np.asarray(rewards, dtype=np.float64)
    if rewards_G.ndim != 1:
        raise ValueError(f"rewards of one group must be a vector, got shape {rewards_G.shape}")
    if not np.isfinite(rewards_G).all():
        raise ValueError(f"rewards must be finite, got {rewards_G.tolist()}")
    if is_graded is not None and not is_graded.all():
        advantages_G: NDArray[np.float64] = np.zeros_like(rewards_G)
        advantages_G[is_graded] = group_advantages(rewards_G[is_graded], scale_rewards, epsilon)
        return advantages_G
    if rewards_G.size == 0 or (rewards_G == rewards_G[0]).all():
        return np.zeros_like(rewards_G)
    advantages_G = rewards_G - rewards_G.mean()
    if scale_rewards != "none":
        advantages_G /= rewards_G.std(ddof=_DDOF[scale_rewards]) + epsilon
    return advantages_G
