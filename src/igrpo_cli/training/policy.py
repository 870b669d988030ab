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

from igrpo_cli.engines.architectures import has_length_dependent_positions
from igrpo_cli.engines.hub import load_causal_lm
from igrpo_cli.errors import IgrpoError, UsageError
from igrpo_cli.training.attention import RowAttention, attention_implementations
from igrpo_cli.training.logprobs import OutputHead, token_logprobs
from igrpo_cli.training.packing import PackedRow
from igrpo_cli.training.ranks import local_shard

AGREEMENT = 1e-3
"""Maximum relative difference by rounding of two computations of the same value in float32."""
HEAD_AGREEMENT = 1e-4
"""The same for log-probs from equal hidden states."""
HALF_AGREEMENT = 0.3
"""The same in bfloat16, where experts near a tie change too. A row that sees wrong tokens differs by more than 1."""
_SCALES = ("logits_scaling", "logit_scale", "lm_head_multiplier", "logits_mup_width_multiplier")
"""Names of a factor, or of a divisor, of all logits in the configurations of transformers."""
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap")
"""Names of the soft cap of all logits."""


class LogprobModel(torch.nn.Module):
    """The forward pass of training, from token ids to log-probs, as one module that can be sharded."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.logit_scale = 1.0

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
        hidden_TH = hidden_states(self.model, input_ids_T, position_ids_T, attention)
        # The head is looked up in every pass, because a sharded head is complete only within one.
        head = _output_head(self.model, self.logit_scale)
        return token_logprobs(hidden_TH[predictor_K], head, targets_K, temperatures_K)


class CausalPolicy:
    """A causal language model of transformers, without dropout."""

    def __init__(self, model: Any, dtype: torch.dtype = torch.float32) -> None:
        """Find out how `model` attends to shared prompts, tested in float32 and in `dtype`, the dtype of autocast.

        Raises IgrpoError for weights that are not finite, or logits that `OutputHead` does not reproduce.
        """
        self.model = model.eval()
        _freeze_other_inputs(model)
        self.logprobs = LogprobModel(model)
        self.device: torch.device = model.get_output_embeddings().weight.device
        """Device of the weights and the inputs."""
        self.attention_failure: str | None = None
        """Why rows are not computed with the fastest attention of the device, if that is compiled."""
        self._attention: RowAttention | None = None
        self._probe(dtype)

    def _probe(self, dtype: torch.dtype) -> None:
        """Find out, from the values of the weights, how the model computes its logits and its attention."""
        refuse_non_finite(dict(self.model.named_parameters()), "loaded policy")
        self.logprobs.logit_scale = _find_logit_scale(self)
        self._attention = _find_attention(self, dtype)

    @property
    def shares_prompts(self) -> bool:
        """True if several completions can share a prompt in a row (see `packing`)."""
        return self._attention is not None

    def prepare(self, row: PackedRow) -> PackedRow:
        """Return the row that is computed in the place of `row`. It may have more tokens, at the end."""
        return row if self._attention is None else self._attention.prepare(row)

    def layout(self, row: PackedRow) -> tuple[Tensor | None, dict[str, Any]]:
        """Return positions [T] of a prepared row and the arguments of its attention; None and {} for a causal row."""
        if row.is_causal or self._attention is None:
            return None, {}
        positions_T = torch.from_numpy(row.position_ids).to(self.device)
        return positions_T, self._attention.arguments(row, self.device)

    def can_share(self, row: PackedRow, tolerance: float) -> bool:
        """Return True if the last completion of a packed row has the hidden states and gradients of a row of its own.

        A row with a single completion is one already.
        """
        if row.is_causal or self._attention is None:
            return True
        return _sharing_is_exact(self, self._attention, row, tolerance)

    def stop_sharing(self) -> None:
        """Give each completion a prompt of its own from now on."""
        self._attention = None
        self.model.set_attn_implementation("sdpa")

    @property
    def vocab_size(self) -> int:
        """Number of token ids that the model has an embedding and a logit for."""
        return min(len(self.model.get_input_embeddings().weight), len(self.model.get_output_embeddings().weight))

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


def load_policy(
    directory: Path, device: torch.device, dtype: torch.dtype = torch.float32, *, trust_remote_code: bool = False
) -> CausalPolicy:
    """Return the policy of a Hugging Face model directory, in float32 on `device`. Raises as `load_causal_lm`.

    `dtype` is that of autocast in the passes to come.
    """
    model = load_causal_lm(directory, torch.float32, trust_remote_code=trust_remote_code).to(device)
    return CausalPolicy(model, dtype)


def refuse_non_finite(tensors: dict[str, Tensor], what: str) -> None:
    """Raise IgrpoError with the name of the first tensor that contains NaN or infinity."""
    for name, part in tensors.items():
        tensor = local_shard(part)
        # A finite sum has finite terms, and is ten times faster to check. Finite terms may have a sum that overflows.
        if not bool(tensor.sum().isfinite()) and not bool(torch.isfinite(tensor).all()):
            raise IgrpoError(f"{what}: tensor {name} holds NaN or infinity")


def _freeze_other_inputs(model: Any) -> None:
    """Freeze the parts of a multimodal model that text does not reach, for example its image encoder."""
    if model.config.get_text_config() is model.config:
        return
    decoder = model.get_decoder()
    parts = (_body(model) if decoder is model else decoder, model.get_output_embeddings())
    trained = {id(parameter) for part in parts for parameter in part.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)


def hidden_states(
    model: Any, input_ids_T: Tensor, position_ids_T: Tensor | None = None, attention: dict[str, Any] | None = None
) -> Tensor:
    """Return the last hidden states [T, H] of one row of a model of transformers."""
    positions = {} if position_ids_T is None else {"position_ids": position_ids_T[None]}
    output = _body(model)(input_ids=input_ids_T[None], use_cache=False, **positions, **(attention or {}))
    last_BTH: Tensor = output.last_hidden_state
    return last_BTH[0]


def _body(model: Any) -> Any:
    """Return the module that computes the last hidden states."""
    if model.base_model is not model:
        return model.base_model
    # Llama 4 names its body differently from its weights.
    return getattr(model, "language_model", model).model


def _output_head(model: Any, scale: float) -> OutputHead:
    layer, config = model.get_output_embeddings(), model.config.get_text_config()
    softcap = next((cap for name in _SOFTCAPS if (cap := getattr(config, name, None))), None)
    return OutputHead(layer.weight, getattr(layer, "bias", None), softcap, scale)


def may_share_prompts(model: Any) -> bool:
    """Return True if, according to the config, a token depends only on the tokens that the mask shows."""
    config = model.config.get_text_config()
    layer_types = getattr(config, "layer_types", None) or []
    if model.config._attn_implementation != "sdpa" or model._is_stateful or has_length_dependent_positions(config):
        return False
    if layer_types:
        return set(layer_types) == {"full_attention"}
    return getattr(config, "sliding_window", None) is None


@torch.no_grad()
def _find_logit_scale(policy: CausalPolicy) -> float:
    """Return the scale of the logits, from the names that configurations have for it.

    Raises IgrpoError if no scale gives the log-probs of the model, which then computes its logits in another way.
    """
    model, config = policy.model, policy.model.config.get_text_config()
    values = [float(value) for name in _SCALES if (value := getattr(config, name, None))]
    ids_T = probe_ids(policy, 8)
    ones_T = torch.ones_like(ids_T, dtype=torch.float32)
    expected_TV = model(input_ids=ids_T[None], use_cache=False).logits[0]
    hidden_TH = hidden_states(model, ids_T)
    weight_VH = model.get_output_embeddings().weight
    if hidden_TH.shape[-1] == weight_VH.shape[-1] and expected_TV.shape[-1] == len(weight_VH):
        expected_T = expected_TV.log_softmax(-1).gather(-1, ids_T[:, None])[:, 0]
        differences = {}
        for scale in (1.0, *values, *(1 / value for value in values)):
            logprobs_T, _ = token_logprobs(hidden_TH, _output_head(model, scale), ids_T, ones_T)
            differences[scale] = float((logprobs_T - expected_T).abs().max())
        best = min(differences, key=lambda scale: differences[scale])
        if differences[best] <= HEAD_AGREEMENT * max(float(expected_T.abs().max()), 1.0):
            return best
    raise IgrpoError(f"{type(model).__name__} computes its logits in a way that igrpo does not support")


def _find_attention(policy: CausalPolicy, dtype: torch.dtype) -> RowAttention | None:
    """Set the fastest implementation of attention with which sharing prompts is exact; return it, or None.

    Float32 shows whether each token sees what it has to see. The passes of training may be compiled for `dtype`, so
    they are tested in it too, forward and backward: what the compiler does not support fails here and not in a step.
    """
    if not may_share_prompts(policy.model):
        return None
    row = _probe_row(policy)
    for attention in attention_implementations(policy.device):
        failure = "its results differ from those of separate rows"
        try:
            policy.model.set_attn_implementation(attention.implementation)
            with _autocast(policy, dtype):
                in_half = dtype == torch.float32 or _sharing_is_exact(policy, attention, row, HALF_AGREEMENT)
            if in_half and _sharing_is_exact(policy, attention, row, AGREEMENT):
                return attention
        # transformers refuses an attention that the architecture lacks, the compiler sizes that it does not support.
        except (ValueError, ImportError, RuntimeError) as error:
            failure = (str(error).strip() or type(error).__name__).splitlines()[0]
        if attention.is_compiled:
            policy.attention_failure = failure
    policy.model.set_attn_implementation("sdpa")
    return None


def _autocast(policy: CausalPolicy, dtype: torch.dtype) -> torch.autocast:
    half = dtype != torch.float32
    return torch.autocast(policy.device.type, dtype=dtype if half else torch.bfloat16, enabled=half)


def _sharing_is_exact(policy: CausalPolicy, attention: RowAttention, row: PackedRow, tolerance: float) -> bool:
    """Return True if the last completion of `row` has what it has in a row of its own: hidden states and gradients.

    The gradient is that of a sum over its hidden states, with respect to the embeddings of the row. It must be 0 for
    tokens of other completions, and for those that the row is padded with.
    """
    last, prompt = row.segment[-1], row.prompt_segment[-1]
    row = attention.prepare(row)
    is_last_T, is_prompt_T = (torch.from_numpy(row.segment == each).to(policy.device) for each in (last, prompt))
    is_own_T = is_last_T | is_prompt_T
    ids_T, positions_T = (torch.from_numpy(each).to(policy.device) for each in (row.input_ids, row.position_ids))
    arguments = attention.arguments(row, policy.device)
    shared_TH, shared_grad_TH = _hidden_and_gradient(policy.model, ids_T, is_last_T, positions_T, arguments)
    own_TH, own_grad_TH = _hidden_and_gradient(policy.model, ids_T[is_own_T], is_last_T[is_own_T])
    return (
        _agree(shared_TH[is_own_T], own_TH, tolerance)
        and _agree(shared_grad_TH[is_own_T], own_grad_TH, tolerance)
        and bool(shared_grad_TH[~is_own_T].norm() <= tolerance * own_grad_TH.norm())
    )


def _hidden_and_gradient(
    model: Any,
    ids_T: Tensor,
    is_counted_T: Tensor,
    positions_T: Tensor | None = None,
    arguments: dict[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return hidden states [T, H], and the gradient [T, E] of a sum of those that count to the embeddings."""
    leaves: list[Tensor] = []

    def make_leaf(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    hook = model.get_input_embeddings().register_forward_hook(make_leaf)
    try:
        with torch.enable_grad():
            hidden_TH = hidden_states(model, ids_T, positions_T, arguments)
    finally:
        hook.remove()
    if len(leaves) != 1:
        raise ValueError(f"{type(model).__name__} looks its embeddings up {len(leaves)} times")
    counted_KH = hidden_TH[is_counted_T]
    # Weights without a pattern, so that no error cancels.
    weights_KH = torch.randn(counted_KH.shape, generator=torch.Generator().manual_seed(0)).to(counted_KH)
    with torch.autocast(hidden_TH.device.type, enabled=False):
        (grad_1TE,) = torch.autograd.grad((counted_KH * weights_KH).sum(), leaves[0])
    return hidden_TH.detach(), grad_1TE[0]


def _probe_row(policy: CausalPolicy) -> PackedRow:
    """Return a short row of two completions."""
    empty = np.zeros(0, dtype=np.int64)
    return PackedRow(
        input_ids=probe_ids(policy, 12).cpu().numpy(),
        position_ids=np.array([*range(8), *range(5, 9)]),
        segment=np.repeat([0, 1, 2], [5, 3, 4]),
        prompt_segment=np.zeros(12, dtype=np.int64),
        predictor=empty,
        token=empty,
    )


def probe_ids(policy: CausalPolicy, length: int) -> Tensor:
    """Return token ids spread over the vocabulary, all different if it is large enough."""
    stride = max(1, policy.vocab_size // (length + 1))
    return torch.arange(1, length + 1, device=policy.device) * stride % policy.vocab_size


def _agree(left: Tensor, right: Tensor, tolerance: float) -> bool:
    return bool((left - right).norm() <= tolerance * right.norm())
