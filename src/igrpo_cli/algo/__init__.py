"""The maths: arrays in, arrays out. No files, no settings, no randomness that was not passed in.

Importing this package loads nothing. The names of the options are here, so that the settings can share them.
"""

from __future__ import annotations

from typing import Literal

LossType = Literal["grpo", "dapo", "dr_grpo", "gspo", "cispo"]
ScaleRewards = Literal["sample_std", "population_std", "none"]
LrSchedulerType = Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_min_lr"]
Strategy = Literal[
    "best", "random", "worst", "wrong", "balanced", "opposite", "shuffled", "shuffled_wrong", "external", "none"
]
AT_RANDOM: frozenset[Strategy] = frozenset({"random", "wrong", "balanced", "opposite", "shuffled_wrong"})
"""The strategies that draw among drafts of different rewards."""
BY_VERDICT: frozenset[Strategy] = frozenset({"wrong", "balanced", "opposite", "shuffled_wrong"})
"""The strategies that depend on which drafts are wrong."""
WITHOUT_VERDICT: frozenset[Strategy] = frozenset({"shuffled", "shuffled_wrong", "external", "none"})
"""The strategies that show no draft with a verdict for the problem: a draft of another problem or source, or none."""
Baseline = Literal["group", "drafts", "pooled"]
ImportanceMode = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
"""Importance weights of sampler and trainer, with the names of TRL's `vllm_importance_sampling_mode`."""
Ties = Literal["first", "random", "shortest"]
AllZero = Literal["keep", "bare", "drop"]
