"""A model directory as a body that makes hidden states and a head that makes log-probs of them.

Weights are loaded in float32, the dtype they are trained in, whatever the directory holds.
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
from igrpo_cli.training.attention import RowAttention, ways_to_attend
from igrpo_cli.training.logprobs import OutputHead, token_logprobs
from igrpo_cli.training.packing import PackedRow
from igrpo_cli.training.ranks import local

AGREEMENT = 1e-3
"""Largest relative difference that rounding may leave between two ways to compute the same in float32."""


class LogprobModel(torch.nn.Module):
    """Token ids in, log-probs out: one forward pass of training as one module, which is what can be sharded."""

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
        """Log-probs [K] and entropies [K] of `targets_K`, each predicted by the token of the row at `predictor_K`.

        Positions and `attention` are those of `CausalPolicy.layout`.
        """
        hidden_TH = _hidden_states(self.model, input_ids_T, position_ids_T, attention)
        # The head is looked up in every pass: where weights are sharded it is only whole within one.
        return token_logprobs(hidden_TH[predictor_K], _output_head(self.model), targets_K, temperatures_K)


class CausalPolicy:
    """A transformers causal language model, without dropout."""

    def __init__(self, model: Any) -> None:
        """Raises IgrpoError for weights that are not finite, or logits that `OutputHead` cannot reproduce."""
        self.model = model.eval()
        refuse_non_finite(dict(model.named_parameters()), "loaded policy")
        self.logprobs = LogprobModel(model)
        self.device: torch.device = model.get_output_embeddings().weight.device
        """Where the weights are, and where inputs must be."""
        _check_head(self)
        self._attention = _find_attention(self)

    @property
    def shares_prompts(self) -> bool:
        """Whether completions may stand behind one prompt in a row (see `packing`)."""
        return self._attention is not None

    def layout(self, row: PackedRow) -> tuple[Tensor | None, dict[str, Any]]:
        """Positions [T] of a row and what attention needs to know of it; a plain sequence needs neither."""
        if row.is_causal or self._attention is None:
            return None, {}
        positions_T = torch.from_numpy(row.position_ids).to(self.device)
        return positions_T, self._attention.arguments(row, self.device)

    @property
    def vocab_size(self) -> int:
        """Token ids that the model has an embedding for."""
        return len(self.model.get_input_embeddings().weight)

    @property
    def layers(self) -> list[torch.nn.Module]:
        """The blocks that the body is a stack of."""
        return [layer for layer in self.model.modules() if isinstance(layer, GradientCheckpointingLayer)]

    def checkpoint_layers(self) -> None:
        """From now on keep only the inputs of each layer for the backward pass, and compute the rest again.

        transformers' own switch works in training mode only, which would bring dropout with it.
        """
        layers = self.layers
        if not layers:
            raise UsageError(
                f"{type(self.model).__name__} cannot recompute its layers",
                hint="set update.gradient_checkpointing = false",
            )
        for layer in layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def load_policy(directory: Path, device: torch.device, *, trust_remote_code: bool = False) -> CausalPolicy:
    """Return the policy of a Hugging Face model directory, in float32 on `device`. Raises as `load_causal_lm`."""
    return CausalPolicy(load_causal_lm(directory, torch.float32, trust_remote_code=trust_remote_code).to(device))


def refuse_non_finite(tensors: dict[str, Tensor], what: str) -> None:
    """Raise IgrpoError naming the first tensor that holds NaN or infinity."""
    for name, part in tensors.items():
        tensor = local(part)
        # A finite sum has finite terms, and is ten times faster to see; finite terms may have a sum that overflows.
        if not bool(tensor.sum().isfinite()) and not bool(torch.isfinite(tensor).all()):
            raise IgrpoError(f"{what}: tensor {name} holds NaN or infinity")


def _hidden_states(
    model: Any, input_ids_T: Tensor, position_ids_T: Tensor | None = None, attention: dict[str, Any] | None = None
) -> Tensor:
    """Last hidden states [T, H] of one row."""
    positions = {} if position_ids_T is None else {"position_ids": position_ids_T[None]}
    output = model.base_model(input_ids=input_ids_T[None], use_cache=False, **positions, **(attention or {}))
    last_BTH: Tensor = output.last_hidden_state
    return last_BTH[0]


def _output_head(model: Any) -> OutputHead:
    layer = model.get_output_embeddings()
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return OutputHead(layer.weight, getattr(layer, "bias", None), softcap)


def _may_share_prompts(model: Any) -> bool:
    """Whether the architecture says that a token depends only on the tokens that its mask lets it see."""
    config = model.config.get_text_config()
    layer_types = getattr(config, "layer_types", None) or []
    if model.config._attn_implementation != "sdpa" or model._is_stateful:
        return False
    if layer_types:
        return set(layer_types) == {"full_attention"}
    return getattr(config, "sliding_window", None) is None


@torch.no_grad()
def _check_head(policy: CausalPolicy) -> None:
    """Architectures scale logits in ways of their own; wrong log-probs must not pass for right ones."""
    ids_T = _probe_ids(policy, 8)
    expected_TV = policy.model(input_ids=ids_T[None], use_cache=False).logits[0].log_softmax(-1)
    hidden_TH = _hidden_states(policy.model, ids_T)
    head, ones_T = _output_head(policy.model), torch.ones_like(ids_T, dtype=torch.float32)
    logprobs_T, _ = token_logprobs(hidden_TH, head, ids_T, ones_T)
    if not _agree(logprobs_T, expected_TV.gather(-1, ids_T[:, None])[:, 0]):
        raise IgrpoError(f"{type(policy.model).__name__} makes its logits in a way that igrpo does not know")


def _find_attention(policy: CausalPolicy) -> RowAttention | None:
    """The fastest way to share prompts that is exact; None where there is none. The model is left attending so."""
    if not _may_share_prompts(policy.model):
        return None
    for way in ways_to_attend(policy.device):
        try:
            policy.model.set_attn_implementation(way.implementation)
            if _sharing_is_exact(policy, way):
                return way
        # transformers refuses an attention that the architecture does not have, the compiler sizes that it cannot do.
        except (ValueError, ImportError, RuntimeError):
            continue
    policy.model.set_attn_implementation("sdpa")
    return None


@torch.no_grad()
def _sharing_is_exact(policy: CausalPolicy, way: RowAttention) -> bool:
    """Whether two completions behind one prompt get the hidden states that they get in rows of their own."""
    ids_T = _probe_ids(policy, 12)
    prompt_T, first_T, second_T = ids_T[:5], ids_T[5:8], ids_T[8:]
    nothing = np.zeros(0, dtype=np.int64)
    row = PackedRow(
        input_ids=ids_T.cpu().numpy(),
        position_ids=np.array([*range(8), *range(5, 9)]),
        segment=np.repeat([0, 1, 2], [5, 3, 4]),
        prompt_segment=np.zeros(12, dtype=np.int64),
        predictor=nothing,
        token=nothing,
    )
    positions_T = torch.from_numpy(row.position_ids).to(policy.device)
    shared_TH = _hidden_states(policy.model, ids_T, positions_T, way.arguments(row, policy.device))
    first_TH = _hidden_states(policy.model, torch.cat([prompt_T, first_T]))
    second_TH = _hidden_states(policy.model, torch.cat([prompt_T, second_T]))
    return _agree(shared_TH, torch.cat([first_TH, second_TH[5:]]))


def _probe_ids(policy: CausalPolicy, length: int) -> Tensor:
    """Token ids spread over the vocabulary, all different where it is large enough."""
    stride = max(1, policy.vocab_size // (length + 1))
    return torch.arange(1, length + 1, device=policy.device) * stride % policy.vocab_size


def _agree(left: Tensor, right: Tensor) -> bool:
    return bool((left - right).abs().max() <= AGREEMENT * right.abs().max())
