"""Drawing one token a row: which tokens stay in play, with what log-probs, and which one a seed picks.

Legend: B rows, V vocabulary, K candidates for the nucleus.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from igrpo_cli.config.sections import SamplingSettings

_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_FEW_CANDIDATES = 1024


def row_uniforms(seeds_B: np.ndarray, step: int) -> np.ndarray:
    """The number in [0, 1) with which each row draws its token number `step`: float64 [B].

    SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"), as a function of
    seed (uint64) and step, so that a row's randomness depends on nothing else, and no generator is carried.
    `torch.Generator` would not do: on CPU it reads only 32 bits of its seed, so rows of a large run would
    share their streams.
    """
    state_B = seeds_B + np.uint64((step + 1) * _GOLDEN_GAMMA % 2**64)
    state_B = (state_B ^ (state_B >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state_B = (state_B ^ (state_B >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state_B = state_B ^ (state_B >> np.uint64(31))
    return (state_B >> np.uint64(11)).astype(np.float64) * 2.0**-53


def choose_tokens(
    logits_BV: torch.Tensor, uniforms_B: Sequence[float] | np.ndarray, settings: SamplingSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (int64 [B]) and their log-probs (float32 [B]) under the distribution that they were drawn from.

    Greedy where the temperature is 0: the first of the largest logits, with log-prob 0. The log-prob is not
    finite for a row whose logits hold NaN or +inf.
    """
    if settings.temperature == 0:
        best_B, tokens_B = logits_BV.float().max(dim=-1)
        return tokens_B, best_B - best_B
    logprobs_BV = tempered_logprobs(logits_BV, settings)
    tokens_B = _invert_cumulative(logprobs_BV, torch.as_tensor(uniforms_B, device=logits_BV.device))
    return tokens_B, logprobs_BV.gather(1, tokens_B[:, None])[:, 0]


def tempered_logprobs(logits_BV: torch.Tensor, settings: SamplingSettings) -> torch.Tensor:
    """Log-probs (float32 [B, V]) after temperature, top-k and top-p, in this order; -inf for what is cut off.

    Tokens as likely as the last one kept are kept too: then the choice depends on the values alone, not on how
    a device orders equal ones.
    """
    scaled_BV = logits_BV.float() / settings.temperature
    if 0 < settings.top_k < scaled_BV.shape[-1]:
        least_kept_B1 = scaled_BV.topk(settings.top_k).values[:, -1:]
        scaled_BV = scaled_BV.masked_fill(scaled_BV < least_kept_B1, -torch.inf)
    if settings.top_p < 1:
        scaled_BV = scaled_BV.masked_fill(scaled_BV < _least_in_nucleus(scaled_BV, settings.top_p), -torch.inf)
    return scaled_BV.log_softmax(dim=-1)


def _least_in_nucleus(scaled_BV: torch.Tensor, top_p: float) -> torch.Tensor:
    """The smallest value [B, 1] among the fewest of the largest whose probabilities sum to `top_p` or more."""
    total_B1 = scaled_BV.logsumexp(dim=-1, keepdim=True)
    # Nearly always some hundred tokens will do, and sorting a vocabulary costs as much as running a small model.
    for num_candidates in (min(_FEW_CANDIDATES, scaled_BV.shape[-1]), scaled_BV.shape[-1]):
        values_BK = scaled_BV.topk(num_candidates).values
        probs_BK = (values_BK - total_B1).double().exp()
        # The mass before a token decides: so the first token stays, and so does the one that reaches top_p.
        kept_BK = probs_BK.cumsum(dim=-1) - probs_BK < top_p
        if not kept_BK[:, -1].any():
            break
    return values_BK.masked_fill(~kept_BK, torch.inf).amin(dim=-1, keepdim=True)


def _invert_cumulative(logprobs_BV: torch.Tensor, uniforms_B: torch.Tensor) -> torch.Tensor:
    """The token [B] at which the cumulative probability first exceeds the row's uniform."""
    # In float64, so that rare tokens of a large vocabulary are not rounded away.
    cumulative_BV = logprobs_BV.exp().cumsum(dim=-1, dtype=torch.float64)
    total_B = cumulative_BV[:, -1]
    # Strictly below the total: then there is always a token that exceeds it, and never one of probability 0.
    target_B = torch.minimum(uniforms_B * total_B, torch.nextafter(total_B, torch.zeros_like(total_B)))
    tokens_B = torch.searchsorted(cumulative_BV, target_B[:, None], right=True)[:, 0]
    return tokens_B.clamp(max=logprobs_BV.shape[-1] - 1)  # only a row of NaN comes to this
