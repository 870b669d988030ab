"""A policy for training: a body that computes hidden states and a head that computes log-probs from them.

Weights are loaded in float32, in which they are trained, whatever the dtype of the model directory.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from igrpo_cli.engines.hub import load_causal_lm
from igrpo_cli.errors import IgrpoError, UsageError
from igrpo_cli.training.attention import RowAttention, attention_implementations
from igrpo_cli.training.logprobs import OutputHead, token_logprobs
from igrpo_cli.training.packing import PackedRow
from igrpo_cli.training.ranks import local_shard

AGREEMENT = 1e-3
"""Maximum relative difference by rounding of two computations of the same value in float32."""


class LogprobModel(torch.nn.Module):
    """The forward pass of training, from token ids to log-probs, as one module that can be sharded."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids_T: Tensor,
        position_ids_T: Tensor | None,
        attention: dict[str, Any],
        predictor_K: Tensor,
        targets_K: Tensor,
        temperatures_K: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return log-probs [K] and entropies [K] of `targets_K`, each predicted at index `predictor_K` of the row.

        `position_ids_T` and `attention` are the result of `CausalPolicy.layout`.
        """
        hidden_TH = _hidden_states(self.model, input_ids_T, position_ids_T, attention)
        # The head is looked up in every pass, because a sharded head is complete only within one.
        return token_logprobs(hidden_TH[predictor_K], _output_head(self.model), targets_K, temperatures_K)


class CausalPolicy:
    """A causal language model of transformers, without dropout."""

    def __init__(self, model: Any) -> None:
        """Raise IgrpoError for weights that are not finite, or logits that `OutputHead` does not reproduce."""
        self.model = model.eval()
        refuse_non_finite(dict(model.named_parameters()), "loaded policy")
        self.logprobs = LogprobModel(model)
        self.device: torch.device = model.get_output_embeddings().weight.device
        """Device of the weights and the inputs."""
        _check_head(self)
        self._attention = _find_attention(self)

    @property
    def shares_prompts(self) -> bool:
        """True if several completions can share a prompt in a row (see `packing`)."""
        return self._attention is not None

    def layout(self, row: PackedRow) -> tuple[Tensor | None, dict[str, Any]]:
        """Return positions [T] of a row and the arguments of its attention; None and {} for a causal row."""
        if row.is_causal or self._attention is None:
            return None, {}
        positions_T = torch.from_numpy(row.position_ids).to(self.device)
        return positions_T, self._attention.arguments(row, self.device)

    @property
    def vocab_size(self) -> int:
        """Number of token ids that the model has an embedding for."""
        return len(self.model.get_input_embeddings().weight)

    @property
    def layers(self) -> list[torch.nn.Module]:
        """The layers of the body."""
        return [layer for layer in self.model.modules() if isinstance(layer, GradientCheckpointingLayer)]

    def checkpoint_layers(self) -> None:
        """Store only the inputs of each layer for the backward pass, and recompute its activations.

        The switch of transformers works in training mode only, which would enable dropout.
        """
        layers = self.layers
        if not layers:
            raise UsageError(
                f"{type(self.model).__name__} cannot recompute its activations",
                hint="set update.gradient_checkpointing = false",
            )
        for layer in layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def load_policy(directory: Path, device: torch.device, *, trust_remote_code: bool = False) -> CausalPolicy:
    """Return the policy of a Hugging Face model directory, in float32 on `device`. Raises as `load_causal_lm`."""
    return CausalPolicy(load_causal_lm(directory, torch.float32, trust_remote_code=trust_remote_code).to(device))


def refuse_non_finite(tensors: dict[str, Tensor], what: str) -> None:
    """Raise IgrpoError with the name of the first tensor that contains NaN or infinity."""
    for name, part in tensors.items():
        tensor = local_shard(part)
        # A finite sum has finite terms, and is ten times faster to check. Finite terms may have a sum that overflows.
        if not bool(tensor.sum().isfinite()) and not bool(torch.isfinite(tensor).all()):
            raise IgrpoError(f"{what}: tensor {name} holds NaN or infinity")


def _hidden_states(
    model: Any, input_ids_T: Tensor, position_ids_T: Tensor | None = None, attention: dict[str, Any] | None = None
) -> Tensor:
    """Return the last hidden states [T, H] of one row."""
    positions = {} if position_ids_T is None else {"position_ids": position_ids_T[None]}
    output = model.base_model(input_ids=input_ids_T[None], use_cache=False, **positions, **(attention or {}))
    last_BTH: Tensor = output.last_hidden_state
    return last_BTH[0]


def _output_head(model: Any) -> OutputHead:
    layer = model.get_output_embeddings()
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return OutputHead(layer.weight, getattr(layer, "bias", None), softcap)


def _may_share_prompts(model: Any) -> bool:
    """Return True if, according to the config, a token depends only on the tokens that the mask shows."""
    config = model.config.get_text_config()
    layer_types = getattr(config, "layer_types", None) or []
    if model.config._attn_implementation != "sdpa" or model._is_stateful:
        return False
    if layer_types:
        return set(layer_types) == {"full_attention"}
    return getattr(config, "sliding_window", None) is None


@torch.no_grad()
def _check_head(policy: CausalPolicy) -> None:
    """Raise IgrpoError if the model computes logits in another way than `OutputHead`, for example with a scale."""
    ids_T = _probe_ids(policy, 8)
    expected_TV = policy.model(input_ids=ids_T[None], use_cache=False).logits[0].log_softmax(-1)
    hidden_TH = _hidden_states(policy.model, ids_T)
    head, ones_T = _output_head(policy.model), torch.ones_like(ids_T, dtype=torch.float32)
    logprobs_T, _ = token_logprobs(hidden_TH, head, ids_T, ones_T)
    if not _agree(logprobs_T, expected_TV.gather(-1, ids_T[:, None])[:, 0]):
        raise IgrpoError(f"{type(policy.model).__name__} computes its logits in a way that igrpo does not support")


def _find_attention(policy: CausalPolicy) -> RowAttention | None:
    """Set the fastest implementation of attention with which sharing prompts is exact; return it, or None."""
    if not _may_share_prompts(policy.model):
        return None
    for attention in attention_implementations(policy.device):
        try:
            policy.model.set_attn_implementation(attention.implementation)
            if _sharing_is_exact(policy, attention):
                return attention
        # transformers refuses an attention that the architecture lacks, the compiler sizes that it does not support.
        except (ValueError, ImportError, RuntimeError):
            continue
    policy.model.set_attn_implementation("sdpa")
    return None


@torch.no_grad()
def _sharing_is_exact(policy: CausalPolicy, attention: RowAttention) -> bool:
    """Return True if two completions that share a prompt get the hidden states that they get in rows of their own."""
    ids_T = _probe_ids(policy, 12)
    prompt_T, first_T, second_T = ids_T[:5], ids_T[5:8], ids_T[8:]
    empty = np.zeros(0, dtype=np.int64)
    row = PackedRow(
        input_ids=ids_T.cpu().numpy(),
        position_ids=np.array([*range(8), *range(5, 9)]),
        segment=np.repeat([0, 1, 2], [5, 3, 4]),
        prompt_segment=np.zeros(12, dtype=np.int64),
        predictor=empty,
        token=empty,
    )
    positions_T = torch.from_numpy(row.position_ids).to(policy.device)
    shared_TH = _hidden_states(policy.model, ids_T, positions_T, attention.arguments(row, policy.device))
    first_TH = _hidden_states(policy.model, torch.cat([prompt_T, first_T]))
    second_TH = _hidden_states(policy.model, torch.cat([prompt_T, second_T]))
    return _agree(shared_TH, torch.cat([first_TH, second_TH[5:]]))


def _probe_ids(policy: CausalPolicy, length: int) -> Tensor:
    """Return token ids spread over the vocabulary, all different if it is large enough."""
    stride = max(1, policy.vocab_size // (length + 1))
    return torch.arange(1, length + 1, device=policy.device) * stride % policy.vocab_size


def _agree(left: Tensor, right: Tensor) -> bool:
    return bool((left - right).abs().max() <= AGREEMENT * right.abs().max())
