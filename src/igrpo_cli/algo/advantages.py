"""Group-relative advantages: the baseline of GRPO and iGRPO is the mean reward of the group.

GRPO: arXiv 2402.03300, section 4.1.2. iGRPO: arXiv 2602.09000, over the refinements only. RLTF (arXiv 2602.02482) takes
the mean of the drafts as the baseline of the refinements.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from igrpo_cli.algo import ScaleRewards

_DDOF: dict[ScaleRewards, int] = {"sample_std": 1, "population_std": 0}


def group_advantages(
    rewards: NDArray[np.float64],
    scale_rewards: ScaleRewards,
    epsilon: float = 1e-4,
    is_graded: NDArray[np.bool_] | None = None,
    baseline: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """Return advantages [G] of the rewards [G] of one group: (r - mean) / (std + epsilon), or r - mean for `none`.

    As in TRL, `epsilon` is added to the standard deviation. So of the rewards [1, 0, 0, 0], the first completion has
    the advantage 0.75 / (0.5 + 1e-4) = 1.4997 with the sample deviation (ddof 1), 0.75 / (0.4330 + 1e-4) = 1.7317 with
    the population deviation, and 0.75 with `none`. If all rewards are equal, the advantages are exactly 0.0. Otherwise
    the rounding error of the mean, divided by `epsilon`, would be a gradient of noise.

    Completions where `is_graded` [G] is False have the advantage 0 and do not count in mean and deviation.

    `baseline` [M] are other rewards to take mean and deviation of; None or an empty one means those of the group. If
    they are all equal, there is no deviation to divide by, and the advantage is the plain difference: of the rewards
    [1, 0] with the baseline [0, 0, 0], the advantages are 1 and 0. With the baseline [1, 0, 0, 0] they are 1.4997 and
    -0.4999, and a group of equal rewards [1, 1] has the advantages 1.4997, too.

    Raises ValueError if `rewards` or `baseline` is not a vector of finite numbers.
    """
    rewards_G, baseline_M = (np.asarray(each, np.float64) for each in (rewards, () if baseline is None else baseline))
    for vector in (rewards_G, baseline_M):
        if vector.ndim != 1:
            raise ValueError(f"rewards of one group must be a vector, got shape {vector.shape}")
        if not np.isfinite(vector).all():
            raise ValueError(f"rewards must be finite, got {vector.tolist()}")
    if is_graded is not None and not is_graded.all():
        advantages_G: NDArray[np.float64] = np.zeros_like(rewards_G)
        advantages_G[is_graded] = group_advantages(rewards_G[is_graded], scale_rewards, epsilon, baseline=baseline_M)
        return advantages_G
    if baseline_M.size == 0:
        baseline_M = rewards_G
    if baseline_M.size == 0 or (baseline_M == baseline_M[0]).all():
        return rewards_G - baseline_M[0] if baseline_M.size else rewards_G
    advantages_G = rewards_G - baseline_M.mean()
    if scale_rewards != "none":
        advantages_G /= baseline_M.std(ddof=_DDOF[scale_rewards]) + epsilon
    return advantages_G
