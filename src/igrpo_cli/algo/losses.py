"""The policy-gradient objectives, as functions of log-probs and advantages.

    maximise  sum over tokens of  weight * [ w * surrogate(r, A) - beta * KL ],   r = exp(policy - old)

| `loss_type` | surrogate | r | weight of a token | source |
|---|---|---|---|---|
| `grpo` | min(r A, clip(r, 1-eps, 1+eps') A) | token | 1 / (groups * G * length) | arXiv 2402.03300, eq. 3 |
| `dapo` | as `grpo`, eps' > eps | token | 1 / tokens of the batch | arXiv 2503.14476, eq. 8 |
| `dr_grpo` | as `grpo`, A undivided | token | 1 / (groups * G * max length) | arXiv 2503.20783, sec. 3.2 |
| `gspo` | as `grpo` | sequence: exp(mean log-ratio) | 1 / (groups * G * length) | arXiv 2507.18071, eq. 5 |
| `cispo` | detached clip(r, 1-eps, 1+eps') A logprob | token | 1 / tokens of the batch | arXiv 2506.13585, eq. 4 |

KL is the k3 estimate, exp(reference - policy) - (reference - policy) - 1 (arXiv 2402.03300, eq. 4). w is 1, or an
importance weight, which corrects for the difference of trainer and sampler: exp(old - sampling) of the token, or of its
sequence (the sum of the log-ratios), and above a bound that bound or 0 (Yao et al. 2025, "Your efficient RL framework
secretly brings you off-policy RL training"). iGRPO uses `grpo` over the refinements (arXiv 2602.09000), and works with
every other objective.

Shapes: S sequences (completions) of the whole optimiser batch; K tokens of this call, all tokens of some of the S
sequences. Every weight comes from the S arrays, so the losses of the parts of a batch sum to the loss of the batch,
however it is split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from igrpo_cli.algo import ImportanceMode, LossType


@dataclass(frozen=True, slots=True)
class Objective:
    """An objective and its constants."""

    loss_type: LossType
    epsilon: float
    """The ratio is clipped below at 1 - epsilon."""
    epsilon_high: float
    """The ratio is clipped above at 1 + epsilon_high (eps' in the table)."""
    beta: float
    """Weight of the KL term; 0 needs no reference log-probs."""
    max_importance_weight: float | None
    """Upper bound of the importance weights; None uses no such weights."""
    importance_mode: ImportanceMode = "token_truncate"
    """Whose ratio the weight is, and what takes its place above the bound."""


@dataclass(frozen=True, slots=True)
class SequenceBatch:
    """The sequences of the whole optimiser batch, on which the weights of the objective depend."""

    advantages: Tensor
    """[S] float32."""
    num_tokens: Tensor
    """[S] int64, the length |o_j|. An empty completion adds nothing to the sum, but counts in G."""
    group_sizes: Tensor
    """[S] int64, the size G of the group of each sequence."""
    max_lengths: Tensor
    """[S] int64, `max_completion_length` of each sequence."""
    loss_weights: Tensor
    """[S] float32, a factor of the objective of each sequence; 1 where all count alike."""
    shaping_gammas: Tensor
    """[S] float32, the gamma of sequences that were sampled from another prompt; 0 for the others."""
    is_masked: Tensor
    """[S] bool: the sequence is excluded and its tokens are not counted, but it counts in G."""
    num_groups: int
    """Number of groups in the batch."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probs in nats of K tokens, and the sequence of each token."""

    sequence: Tensor
    """[K] int64, index into the S arrays."""
    policy_logprobs: Tensor
    """[K] float32, with gradient."""
    old_logprobs: Tensor
    """[K] float32, of the policy before the steps on this batch."""
    sampling_logprobs: Tensor
    """[K] float32, of the distribution that the engine sampled from."""
    reference_logprobs: Tensor | None
    """[K] float32; may be None only when beta is 0."""


@dataclass(frozen=True, slots=True)
class LossOutput:
    """The loss, and values for metrics, which have no gradient."""

    loss: Tensor
    """Scalar to minimise. The losses of the calls of a batch are summed."""
    ratio: Tensor
    """[K] probability ratio of policy and old policy; for `gspo` that of the sequence."""
    clipped: Tensor
    """[K] bool: the clip limits the objective of the token."""
    importance_weights: Tensor | None
    """[K] importance weights; None if there are none."""
    kl: Tensor | None
    """[K] k3 estimate of KL(policy || reference); None when beta is 0."""


def policy_loss(objective: Objective, sequences: SequenceBatch, tokens: TokenLogprobs) -> LossOutput:
    """Return the loss of K tokens: their part of the objective of the whole batch, negated.

    Log-probs that are not finite give a loss that is not finite. A clip or an advantage of 0 does not hide them. Raises
    ValueError if beta is not 0 and there are no log-probs of the reference.
    """
    advantages_K = sequences.advantages[tokens.sequence]
    weights_K = token_weights(objective, sequences)[tokens.sequence]
    low, high = 1.0 - objective.epsilon, 1.0 + objective.epsilon_high
    ratio_K = _ratio(objective, sequences, tokens)
    if objective.loss_type == "cispo":
        objective_K = ratio_K.detach().clamp(low, high) * advantages_K * tokens.policy_logprobs
        clipped_K = (ratio_K < low) | (ratio_K > high)
    else:
        objective_K = torch.minimum(ratio_K * advantages_K, ratio_K.clamp(low, high) * advantages_K)
        clipped_K = ((ratio_K < low) & (advantages_K < 0)) | ((ratio_K > high) & (advantages_K > 0))
    gammas_K = sequences.shaping_gammas[tokens.sequence]
    if (gammas_K > 0).any():
        # Policy shaping (arXiv 2506.03106, eq. 6): no clip, since the old policy did not sample from this prompt.
        probabilities_K = torch.exp(tokens.policy_logprobs)
        shaped_K = advantages_K * probabilities_K / (probabilities_K + gammas_K)
        objective_K = torch.where(gammas_K > 0, shaped_K, objective_K)
        clipped_K = clipped_K & (gammas_K == 0)
    importance_K = None
    if objective.max_importance_weight is not None:
        importance_K = _importance_weights(objective, sequences, tokens, objective.max_importance_weight)
        # The weight corrects for another policy or another rounding. Shaping stands for the other prompt.
        importance_K = torch.where(gammas_K > 0, torch.ones_like(importance_K), importance_K)
        objective_K = importance_K * objective_K
    kl_K = None
    if objective.beta != 0.0:
        if tokens.reference_logprobs is None:
            raise ValueError(f"beta {objective.beta} needs the log-probs of the reference")
        kl_K = kl_k3(tokens.policy_logprobs, tokens.reference_logprobs)
        objective_K = objective_K - objective.beta * kl_K
    return LossOutput(
        loss=-(weights_K * objective_K).sum(),
        ratio=ratio_K.detach(),
        clipped=clipped_K,
        importance_weights=importance_K,
        kl=None if kl_K is None else kl_K.detach(),
    )


def _importance_weights(
    objective: Objective, sequences: SequenceBatch, tokens: TokenLogprobs, largest: float
) -> Tensor:
    """Return the importance weight [K] of old policy and sampler."""
    log_ratio_K = tokens.old_logprobs - tokens.sampling_logprobs
    level, _, limit = objective.importance_mode.partition("_")
    if level == "sequence":
        sums_S = log_ratio_K.new_zeros(len(sequences.num_tokens)).index_add(0, tokens.sequence, log_ratio_K)
        log_ratio_K = sums_S[tokens.sequence]
    weights_K = torch.exp(log_ratio_K)
    # In this order a ratio that is not finite stays so, and is found.
    return weights_K.clamp(max=largest) if limit == "truncate" else weights_K * (weights_K <= largest)


def token_weights(objective: Objective, sequences: SequenceBatch) -> Tensor:
    """Return the weight [S] of each token of a sequence in the objective of the whole batch."""
    # No token has the weight of an empty sequence; 1 keeps it finite.
    lengths_S = sequences.num_tokens.clamp(min=1)
    sequences_S = sequences.num_groups * sequences.group_sizes
    match objective.loss_type:
        case "grpo" | "gspo":
            divisors_S = sequences_S * lengths_S
        case "dr_grpo":
            divisors_S = sequences_S * sequences.max_lengths
        case "dapo" | "cispo":
            total = sequences.num_tokens[~sequences.is_masked].sum().clamp(min=1)
            divisors_S = total.expand_as(lengths_S)
        case _:
            assert_never(objective.loss_type)
    weights_S = sequences.loss_weights / divisors_S.to(sequences.advantages.dtype)
    return weights_S.masked_fill(sequences.is_masked, 0.0)


def kl_k3(policy_logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Return an estimate [K] of KL(policy || reference) from one sampled token each, unbiased and never negative."""
    log_ratio_K = reference_logprobs - policy_logprobs
    return torch.expm1(log_ratio_K) - log_ratio_K


def _ratio(objective: Objective, sequences: SequenceBatch, tokens: TokenLogprobs) -> Tensor:
    """Return the ratio [K] of policy and old policy, of each token or of its sequence."""
    log_ratio_K = tokens.policy_logprobs - tokens.old_logprobs
    if objective.loss_type == "gspo":
        sums_S = log_ratio_K.new_zeros(len(sequences.num_tokens)).index_add(0, tokens.sequence, log_ratio_K)
        log_ratio_K = (sums_S / sequences.num_tokens.clamp(min=1))[tokens.sequence]
    return torch.exp(log_ratio_K)
