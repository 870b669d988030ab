"""Sampling of one token per row: temperature, min-p, top-k and top-p, log-probs, and the choice by a seed.

Legend: B rows, V vocabulary, K candidates for the nucleus.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from igrpo_cli.config.sections import SamplingSettings, temperature_of

_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_FEW_CANDIDATES = 1024


def row_uniforms(seeds_B: np.ndarray, step: int) -> np.ndarray:
    """Return the number in [0, 1) with which each row chooses its token number `step`: float64 [B].

    SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators") of seed (uint64) and step.
    So the randomness of a row depends on nothing else, and there is no generator to keep. `torch.Generator` is not
    suitable: on a CPU it reads only 32 bits of its seed, so rows of a large run would share random numbers.
    """
    state_B = seeds_B + np.uint64((step + 1) * _GOLDEN_GAMMA % 2**64)
    state_B = (state_B ^ (state_B >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state_B = (state_B ^ (state_B >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state_B = state_B ^ (state_B >> np.uint64(31))
    return (state_B >> np.uint64(11)).astype(np.float64) * 2.0**-53


def choose_tokens(
    logits_BV: torch.Tensor,
    uniforms_B: Sequence[float] | np.ndarray,
    settings: SamplingSettings,
    temperatures_B: np.ndarray | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens (int64 [B]) and their log-probs (float32 [B]) under the distribution that they are sampled from.

    `temperatures_B` (float32) are the temperatures of the rows; None means that all have the one of the settings.
    Temperature 0 is greedy: the first of the largest logits, with log-prob 0. The log-prob is not finite for a row
    whose logits contain NaN or +inf.
    """
    if temperatures_B is not None and not temperatures_B.all():
        return _choose_some_greedily(logits_BV, np.asarray(uniforms_B), settings, temperatures_B)
    if temperatures_B is None and settings.temperature == 0:
        best_B, tokens_B = logits_BV.float().max(dim=-1)
        return tokens_B, best_B - best_B
    logprobs_BV = tempered_logprobs(logits_BV, settings, temperatures_B)
    tokens_B = _invert_cumulative(logprobs_BV, torch.as_tensor(uniforms_B, device=logits_BV.device))
    return tokens_B, logprobs_BV.gather(1, tokens_B[:, None])[:, 0]


def _choose_some_greedily(
    logits_BV: torch.Tensor, uniforms_B: np.ndarray, settings: SamplingSettings, temperatures_B: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the tokens of rows of which some have temperature 0."""
    greedy = settings.model_copy(update={"temperature": 0.0})
    tokens_B, logprobs_B = choose_tokens(logits_BV, uniforms_B, greedy)
    drawn_B = np.flatnonzero(temperatures_B)
    if len(drawn_B):
        drawn = torch.from_numpy(drawn_B).to(logits_BV.device)
        tokens_B[drawn], logprobs_B[drawn] = choose_tokens(
            logits_BV[drawn], uniforms_B[drawn_B], settings, temperatures_B[drawn_B]
        )
    return tokens_B, logprobs_B


def tempered_logprobs(
    logits_BV: torch.Tensor, settings: SamplingSettings, temperatures_B: np.ndarray | None = None
) -> torch.Tensor:
    """Return log-probs (float32 [B, V]) after temperature, min-p, top-k and top-p; excluded tokens have -inf.

    The order is that of vLLM.
    Tokens as likely as the least likely one that is kept are kept too, so that the result depends on the values alone
    and not on the order in which a device sorts equal ones.
    """
    if temperatures_B is None:
        # A GPU rounds a division by a number and one by a tensor differently.
        scaled_BV = logits_BV.float() / temperature_of(settings.temperature, 0)
    else:
        scaled_BV = logits_BV.float() / torch.from_numpy(temperatures_B).to(logits_BV.device)[:, None]
    if settings.min_p:
        least_B1 = scaled_BV.amax(dim=-1, keepdim=True) + math.log(settings.min_p)
        scaled_BV = scaled_BV.masked_fill(scaled_BV < least_B1, -torch.inf)
    if 0 < settings.top_k < scaled_BV.shape[-1]:
        least_kept_B1 = scaled_BV.topk(settings.top_k).values[:, -1:]
        scaled_BV = scaled_BV.masked_fill(scaled_BV < least_kept_B1, -torch.inf)
    if settings.top_p < 1:
        scaled_BV = scaled_BV.masked_fill(scaled_BV < _least_in_nucleus(scaled_BV, settings.top_p), -torch.inf)
    return scaled_BV.log_softmax(dim=-1)


def _least_in_nucleus(scaled_BV: torch.Tensor, top_p: float) -> torch.Tensor:
    """Return the smallest value [B, 1] among the fewest largest ones whose probabilities sum to `top_p` or more."""
    total_B1 = scaled_BV.logsumexp(dim=-1, keepdim=True)
    # A few hundred tokens are nearly always enough, and sorting a vocabulary costs as much as running a small model.
    for num_candidates in (min(_FEW_CANDIDATES, scaled_BV.shape[-1]), scaled_BV.shape[-1]):
        values_BK = scaled_BV.topk(num_candidates).values
        probs_BK = (values_BK - total_B1).double().exp()
        # The mass before a token decides, so the first token is kept, and the one that reaches top_p.
        kept_BK = probs_BK.cumsum(dim=-1) - probs_BK < top_p
        if not kept_BK[:, -1].any():
            break
    return values_BK.masked_fill(~kept_BK, torch.inf).amin(dim=-1, keepdim=True)


def _invert_cumulative(logprobs_BV: torch.Tensor, uniforms_B: torch.Tensor) -> torch.Tensor:
    """Return the token [B] at which the cumulative probability first exceeds the uniform number of the row."""
    # float64 keeps the probability of rare tokens of a large vocabulary.
    cumulative_BV = logprobs_BV.exp().cumsum(dim=-1, dtype=torch.float64)
    total_B = cumulative_BV[:, -1]
    # Strictly below the total, so there is always a token that exceeds it, and never one of probability 0.
    target_B = torch.minimum(uniforms_B * total_B, torch.nextafter(total_B, torch.zeros_like(total_B)))
    tokens_B = torch.searchsorted(cumulative_BV, target_B[:, None], right=True)[:, 0]
    return tokens_B.clamp(max=logprobs_BV.shape[-1] - 1)  # only reached by a row of NaN
