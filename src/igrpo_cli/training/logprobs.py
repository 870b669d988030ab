"""Log-prob and exact entropy of each token, without holding a [tokens, vocabulary] tensor.

The output matrix is applied to a chunk of hidden states at a time. The forward pass keeps the log-prob and the log of
the softmax denominator of each token, and the backward pass computes the logits again, chunk by chunk.

Shapes: K tokens, C of them in a chunk, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

MAX_LOGITS_IN_CHUNK = 2**25
"""Maximum elements C * V in memory on a CPU, and on a GPU of little memory; about 0.5 GB with their float32 copies."""
BYTES_PER_LOGIT = 16
"""Peak memory of a logit of a chunk: in bfloat16 and float32, and two temporary copies in float32."""
SHARE_OF_DEVICE = 32
"""A chunk takes at most 1 / this of the memory of a GPU, rounded down to a power of two."""


@dataclass(frozen=True, slots=True)
class OutputHead:
    """The output layer: logits are z = scale * (W h + b), or softcap * tanh(z / softcap)."""

    weight: Tensor
    """[V, H]; the embedding matrix if the two are tied."""
    bias: Tensor | None
    """[V]"""
    softcap: float | None
    scale: float = 1.0


def token_logprobs(
    hidden_KH: Tensor, head: OutputHead, targets_K: Tensor, temperatures_K: Tensor
) -> tuple[Tensor, Tensor]:
    """Return log-probs [K] and entropies [K] in nats of softmax(logits / temperature), over the whole vocabulary.

    The log-probs have a gradient to the hidden states and the head, the entropies have none. The matrix product runs in
    the dtype of autocast if it is enabled; everything after it is float32.
    """
    bias_V = head.bias
    if head.scale != 1.0:
        hidden_KH = hidden_KH * head.scale
        bias_V = None if bias_V is None else bias_V * head.scale
    device = hidden_KH.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_KH.dtype
    apply: Callable[..., tuple[Tensor, Tensor]] = _ChunkedLogprobs.apply
    return apply(hidden_KH.to(dtype), head.weight, bias_V, targets_K, temperatures_K, head.softcap)


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_KH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_K: Tensor,
        temperatures_K: Tensor,
        softcap: float | None,
    ) -> tuple[Tensor, Tensor]:
        head = OutputHead(weight_VH.to(hidden_KH.dtype), _to(bias_V, hidden_KH.dtype), softcap)
        full = torch.promote_types(hidden_KH.dtype, torch.float32)
        logprobs_K, entropies_K, normalisers_K = (hidden_KH.new_empty(len(hidden_KH), dtype=full) for _ in range(3))
        for chunk in chunks(hidden_KH, weight_VH):
            logits_CV = _logits(hidden_KH[chunk], head).div_(temperatures_K[chunk, None])
            normalisers_K[chunk] = logits_CV.logsumexp(-1)
            logprobs_K[chunk] = logits_CV.gather(-1, targets_K[chunk, None])[:, 0] - normalisers_K[chunk]
            probs_CV = (logits_CV - normalisers_K[chunk, None]).exp_()
            entropies_K[chunk] = normalisers_K[chunk] - probs_CV.mul_(logits_CV).sum(-1)
        ctx.save_for_backward(hidden_KH, weight_VH, bias_V, targets_K, temperatures_K, normalisers_K)
        ctx.softcap = softcap
        ctx.mark_non_differentiable(entropies_K)
        return logprobs_K, entropies_K

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_KH, weight_VH, bias_V, targets_K, temperatures_K, normalisers_K = ctx.saved_tensors
        head = OutputHead(weight_VH.to(hidden_KH.dtype), _to(bias_V, hidden_KH.dtype), ctx.softcap)
        grad_hidden_KH = torch.empty_like(hidden_KH)
        # The chunks are summed in float32, also for weights in bfloat16.
        full = normalisers_K.dtype
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=full) if ctx.needs_input_grad[1] else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=full) if ctx.needs_input_grad[2] else None
        for chunk in chunks(hidden_KH, weight_VH):
            logits_CV = _logits(hidden_KH[chunk], head)
            slope_CV = None if head.softcap is None else 1 - (logits_CV / head.softcap).square_()
            # d logprob / d logit = (one-hot of the target - softmax) / temperature
            grad_CV = logits_CV.div_(temperatures_K[chunk, None]).sub_(normalisers_K[chunk, None]).exp_()
            grad_CV.scatter_add_(-1, targets_K[chunk, None], torch.full_like(grad_CV[:, :1], -1.0))
            grad_CV.mul_((-grads[0][chunk] / temperatures_K[chunk])[:, None])
            if slope_CV is not None:
                grad_CV.mul_(slope_CV)
            if grad_bias_V is not None:
                grad_bias_V += grad_CV.sum(0)
            grad_CV = grad_CV.to(hidden_KH.dtype)
            grad_hidden_KH[chunk] = grad_CV @ head.weight
            if grad_weight_VH is not None:
                grad_weight_VH += grad_CV.T @ hidden_KH[chunk]
        return grad_hidden_KH, _to(grad_weight_VH, weight_VH.dtype), _to(grad_bias_V, weight_VH.dtype), None, None, None


def _logits(hidden_CH: Tensor, head: OutputHead) -> Tensor:
    """Return logits [C, V] before the temperature, in float32 (float64 for float64 input)."""
    logits_CV = linear(hidden_CH, head.weight, head.bias)
    logits_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
    return logits_CV if head.softcap is None else logits_CV.div_(head.softcap).tanh_().mul_(head.softcap)


def chunks(hidden_KH: Tensor, weight_VH: Tensor) -> Iterator[slice]:
    """Yield the chunks of the K tokens."""
    most = MAX_LOGITS_IN_CHUNK
    if hidden_KH.device.type == "cuda":
        most = max_logits_in_chunk(torch.cuda.get_device_properties(hidden_KH.device).total_memory)
    size = max(1, most // len(weight_VH))
    return (slice(start, start + size) for start in range(0, len(hidden_KH), size))


def max_logits_in_chunk(device_bytes: int) -> int:
    """Return the maximum elements C * V of a chunk on a GPU with so much memory: 2**27 with 80 GB.

    The memory of the device counts, not what is free of it: that differs from one process to the next, and the size of
    a chunk decides how sums are rounded.
    """
    logits = device_bytes // (SHARE_OF_DEVICE * BYTES_PER_LOGIT)
    return max(MAX_LOGITS_IN_CHUNK, 1 << max(logits, 1).bit_length() - 1)


def _to(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)
