"""Metrics of an optimiser step, and an audit of each of its completions.

Shapes: S completions, N their tokens, as in `packing`. Means are over tokens unless stated otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from igrpo_cli.training.packing import FloatArray, TrainingBatch


@dataclass(frozen=True, slots=True)
class TokenMetrics:
    """Results of the forward pass for each of the N completion tokens."""

    policy_logprobs: FloatArray
    old_logprobs: FloatArray
    entropy: FloatArray
    """Entropy in nats of the distribution of the token."""
    ratio: FloatArray
    clipped: FloatArray
    """1 where the clip limits the objective of the token, else 0."""
    importance_weight: FloatArray
    """Importance weight of the old policy over the sampler; 1 if none is used."""
    kl: FloatArray
    """k3 estimate of the KL divergence; 0 without a reference."""

    @classmethod
    def empty(cls, num_tokens: int) -> TokenMetrics:
        """Return arrays of zeros, which are filled row by row; every token is in one row."""
        return cls(*np.zeros((len(cls.__slots__), num_tokens), dtype=np.float32))

    def sum_over_ranks(self, sum_over_ranks: Callable[[FloatArray], FloatArray]) -> None:
        """Add the results of the other ranks. Each rank fills other tokens."""
        for field in fields(self):
            values_N = getattr(self, field.name)
            values_N[:] = sum_over_ranks(values_N)


@dataclass(frozen=True, slots=True)
class CompletionAudit:
    """One entry per completion, in the order of the groups: means over its tokens, 0 for an empty completion."""

    num_tokens: NDArray[np.int64]
    advantages: FloatArray
    policy_logprob: NDArray[np.float64]
    old_logprob: NDArray[np.float64]
    entropy: NDArray[np.float64]
    ratio: NDArray[np.float64]
    clip_fraction: NDArray[np.float64]
    kl: NDArray[np.float64]
    sampler_mismatch: NDArray[np.float64]
    """Mean of |old - sampling log-prob|."""


def audit_completions(batch: TrainingBatch, tokens: TokenMetrics) -> CompletionAudit:
    """Return the means of each completion."""

    def mean(values_N: FloatArray) -> NDArray[np.float64]:
        sums_S = np.bincount(batch.sequence, values_N, minlength=len(batch.num_tokens))
        means_S: NDArray[np.float64] = sums_S / np.maximum(batch.num_tokens, 1)
        return means_S

    return CompletionAudit(
        num_tokens=batch.num_tokens,
        advantages=batch.advantages,
        policy_logprob=mean(tokens.policy_logprobs),
        old_logprob=mean(tokens.old_logprobs),
        entropy=mean(tokens.entropy),
        ratio=mean(tokens.ratio),
        clip_fraction=mean(tokens.clipped),
        kl=mean(tokens.kl),
        sampler_mismatch=mean(_mismatch(batch, tokens)),
    )


def batch_metrics(batch: TrainingBatch, tokens: TokenMetrics) -> dict[str, float]:
    """Return metrics by name; entropy and sampler mismatch also per stage (`entropy/draft`).

    `sampler_mismatch` is |old - sampling log-prob|, the difference of trainer and engine for the same policy. It is
    never 0 if sampling truncates the distribution (top-p, top-k) or is greedy.
    """
    mismatch_N = _mismatch(batch, tokens)
    active = [any(advantage != 0 for advantage in group.advantages) for group in batch.groups]
    metrics = {
        "num_groups": float(len(batch.groups)),
        "num_tokens": float(batch.num_tokens.sum()),
        "groups_with_gradient": float(np.mean(active)),
        "advantage_abs_mean": float(np.abs(batch.advantages).mean(dtype=np.float64)),
        "ratio_mean": _mean(tokens.ratio),
        "ratio_max": float(tokens.ratio.max()),
        "ratio_max_deviation": float(np.abs(tokens.ratio - 1).max()),
        "clip_fraction": _mean(tokens.clipped),
        "importance_weight_mean": _mean(tokens.importance_weight),
        "masked_completions": float(batch.is_masked.mean()),
        "kl": _mean(tokens.kl),
        "entropy": _mean(tokens.entropy),
        "sampler_mismatch_mean": _mean(mismatch_N),
        "sampler_mismatch_max": float(mismatch_N.max()),
    }
    if with_baseline := [index for index, group in enumerate(batch.groups) if group.baseline]:
        # A group of equal rewards has a gradient there, so the metric of the whole step does not show reward variance.
        metrics["groups_with_gradient/refine"] = float(np.mean([active[index] for index in with_baseline]))
    stages_S = np.array([group.stage for group in batch.groups])[batch.group]
    for stage in np.unique(stages_S[batch.num_tokens > 0]).tolist():
        of_stage_N = (stages_S == stage)[batch.sequence]
        metrics[f"entropy/{stage}"] = _mean(tokens.entropy[of_stage_N])
        metrics[f"sampler_mismatch_mean/{stage}"] = _mean(mismatch_N[of_stage_N])
        metrics[f"sampler_mismatch_max/{stage}"] = float(mismatch_N[of_stage_N].max())
    return metrics


def _mismatch(batch: TrainingBatch, tokens: TokenMetrics) -> FloatArray:
    mismatch_N: FloatArray = np.abs(tokens.old_logprobs - batch.sampling_logprobs)
    return mismatch_N


def _mean(values: FloatArray) -> float:
    return float(values.mean(dtype=np.float64))
