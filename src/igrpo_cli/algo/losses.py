"""The policy-gradient objective, as a function of log-probs and advantages.

    maximise  mean over groups (1/G) sum_j (1/|o_j|) sum_t [ min(r A, clip(r, 1-eps, 1+eps') A) - beta KL ]
    with      r = exp(policy - old)    and    KL = exp(reference - policy) - (reference - policy) - 1

GRPO: arXiv 2402.03300, equation 3 and its KL estimator (k3) in equation 4. iGRPO uses the same one
over the refinements (arXiv 2602.09000).

Shapes: S sequences (completions) of the whole optimiser batch; K tokens of this call, all tokens of
some of the S sequences. Every weight comes from the S arrays, so the losses of the parts of a batch
add up to the loss of the batch, however it was cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch import Tensor

LossType = Literal["grpo"]


@dataclass(frozen=True, slots=True)
class LossSettings:
    """Which objective, and its constants."""

    loss_type: LossType = "grpo"
    epsilon: float = 0.2
    """The ratio is clipped below at 1 - epsilon."""
    epsilon_high: float | None = None
    """The ratio is clipped above at 1 + epsilon_high (eps' above); None means `epsilon`."""
    beta: float = 0.0
    """Weight of the KL term; 0 needs no reference log-probs."""


@dataclass(frozen=True, slots=True)
class SequenceBatch:
    """What the weights of the objective depend on, for the whole optimiser batch."""

    advantages: Tensor
    """[S] float32."""
    num_tokens: Tensor
    """[S] int64, the length |o_j|. An empty completion adds nothing to the sum and still counts in G."""
    group_sizes: Tensor
    """[S] int64, G of the group that each sequence belongs to."""
    num_groups: int


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probs in nats, and the sequence that each token belongs to."""

    sequence: Tensor
    """[K] int64, index into the S arrays."""
    policy_logprobs: Tensor
    """[K] float32, with gradient."""
    old_logprobs: Tensor
    """[K] float32, of the policy that the ratio is taken against."""
    reference_logprobs: Tensor | None
    """[K] float32; may be None only when beta is 0."""


@dataclass(frozen=True, slots=True)
class LossOutput:
    """The loss, and without gradient what metrics are made of."""

    loss: Tensor
    """Scalar, to be minimised and to be added up over calls."""
    ratio: Tensor
    """[K]."""
    clipped: Tensor
    """[K] bool: the clip holds the token back, its surrogate has no gradient."""
    kl: Tensor | None
    """[K] k3 estimate of KL(policy || reference); None when beta is 0."""


def policy_loss(settings: LossSettings, sequences: SequenceBatch, tokens: TokenLogprobs) -> LossOutput:
    """Loss of K tokens: their share of the objective of the whole batch, negated.

    Non-finite log-probs give a non-finite loss; they are never masked away.
    """
    advantages_K = sequences.advantages[tokens.sequence]
    weights_K = token_weights(settings, sequences)[tokens.sequence]
    ratio_K = torch.exp(tokens.policy_logprobs - tokens.old_logprobs)
    low = 1.0 - settings.epsilon
    high = 1.0 + (settings.epsilon if settings.epsilon_high is None else settings.epsilon_high)
    objective_K = torch.minimum(ratio_K * advantages_K, ratio_K.clamp(low, high) * advantages_K)
    kl_K = None
    if settings.beta != 0.0:
        if tokens.reference_logprobs is None:
            raise ValueError(f"beta {settings.beta} needs the log-probs of the reference")
        kl_K = kl_k3(tokens.policy_logprobs, tokens.reference_logprobs)
        objective_K = objective_K - settings.beta * kl_K
    return LossOutput(
        loss=-(weights_K * objective_K).sum(),
        ratio=ratio_K.detach(),
        clipped=((ratio_K < low) & (advantages_K < 0)) | ((ratio_K > high) & (advantages_K > 0)),
        kl=None if kl_K is None else kl_K.detach(),
    )


def token_weights(settings: LossSettings, sequences: SequenceBatch) -> Tensor:
    """Weight [S] that each token of a sequence has in the objective of the whole batch."""
    match settings.loss_type:
        case "grpo":
            # No token ever reads the weight of an empty sequence; 1 keeps it finite.
            lengths_S = sequences.num_tokens.clamp(min=1)
            tokens_S = sequences.num_groups * sequences.group_sizes * lengths_S
            return 1.0 / tokens_S.to(sequences.advantages.dtype)
    assert_never(settings.loss_type)


def kl_k3(policy_logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Estimate [K] of KL(policy || reference) from one sampled token each: unbiased and never negative."""
    log_ratio_K = reference_logprobs - policy_logprobs
    return torch.expm1(log_ratio_K) - log_ratio_K
