"""Decoding of one wave: each prompt is computed once, then all completions of all prompts advance in step.

Legend: P prompts, R rows (completions of the wave), B rows still in the batch (B <= R), L longest prompt, M maximum
tokens of a completion, T tokens in the cache, C capacity of the cache (C >= T), V vocabulary, H key-value heads, D head
size. The batch is on the model's device, the bookkeeping on the host.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from igrpo_cli.config.sections import SamplingSettings, temperature_of
from igrpo_cli.engines.sampling import choose_tokens, row_uniforms
from igrpo_cli.errors import IgrpoError
from igrpo_cli.records import Completion

_ONE_MASK_FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Model types that pass a 4-dimensional mask to all their layers unchanged."""
_CACHE_ARGUMENTS = ("past_key_values", "cache", "cache_params")
"""Names that transformers has given to the cache argument of `forward`. Newer releases warn about all but `cache`."""
_COMPRESSOR_STATES = ("buffer_kv", "buffer_gate", "compressed_kv", "overlap_kv", "overlap_gate")
"""Attributes of a cache layer of DeepSeek-V4, each a dictionary of tensors."""
_COMPACTION_SHARE = 1 / 8
"""Fraction of the batch that must be complete before it is removed: moving the cache costs about one step."""
_TESTED_TOKENS = 24
_TESTED_STEPS = 3
"""Tokens of a sequence that `find_batching` decodes one by one; it computes those before in one pass."""
_AGREEMENT = 1e-3
"""Maximum relative difference by rounding of two computations of the same log-probs in float32."""
_HALF_AGREEMENT = 0.3
"""The same in bfloat16, where experts near a tie change too."""
_GROWTH = 64
"""Tokens by which the cache grows: a copy of it every 64 steps, where `DynamicLayer` makes one in each step."""


@dataclass(frozen=True, slots=True)
class Part:
    """Completions of one group that one wave decodes: the whole group, unless it is larger than a wave."""

    group_index: int
    prompt_ids: Sequence[int]
    seeds: Sequence[int]
    sample_ids: Sequence[int]
    """Position of each completion in its group."""


class NonFiniteLogitsError(Exception):
    """The model gave NaN or infinite logits. The message names the group and the token."""


class Decoding:
    """One wave. Call `step` until `is_over`. Complete rows leave the batch from time to time.

    `reaches_stop` is called with the tokens of a row after each of them, and ends the row if it returns True.
    """

    def __init__(
        self,
        model: Any,
        parts: Sequence[Part],
        settings: SamplingSettings,
        reaches_stop: Callable[[np.ndarray], bool] | None = None,
    ) -> None:
        counts = [len(part.seeds) for part in parts]
        num_rows = sum(counts)
        self._model, self._parts, self._settings = model, parts, settings
        self._device: torch.device = model.device
        self._stop_token_ids = np.array(settings.stop_token_ids, dtype=np.int64)
        self._reaches_stop = reaches_stop
        self._part_of_row_R = np.repeat(np.arange(len(parts)), counts)
        self._seeds_R = np.array([seed for part in parts for seed in part.seeds], dtype=np.uint64)
        sample_ids = [sample_id for part in parts for sample_id in part.sample_ids]
        temperatures = [temperature_of(settings.temperature, sample_id) for sample_id in sample_ids]
        self._temperatures_R = np.array(temperatures, dtype=np.float32)
        self._tokens_RM = np.zeros((num_rows, settings.max_completion_length), dtype=np.int32)
        self._logprobs_RM = np.zeros((num_rows, settings.max_completion_length), dtype=np.float32)
        self._lengths_R = np.zeros(num_rows, dtype=np.int64)
        """0 until the row is complete."""
        self._has_stopped_R = np.zeros(num_rows, dtype=bool)
        self._rows_B = np.arange(num_rows)
        self._rows_left = dict(enumerate(counts))
        self._step = 0
        self._prefill()

    @property
    def is_over(self) -> bool:
        return not self._rows_left

    @property
    def num_unfinished(self) -> int:
        """Number of rows that are not complete."""
        return int((self._lengths_R == 0).sum())

    @torch.inference_mode()
    def step(self) -> list[tuple[int, list[Completion]]]:
        """Sample the next token of every row; return (group index, completions) of the parts that are now complete."""
        uniforms_B = row_uniforms(self._seeds_R[self._rows_B], self._step)
        has_several = isinstance(self._settings.temperature, list)
        temperatures_B = self._temperatures_R[self._rows_B] if has_several else None
        tokens_B, logprobs_B = choose_tokens(self._logits_BV, uniforms_B, self._settings, temperatures_B)
        complete = self._record(*torch.stack([tokens_B.double(), logprobs_B.double()]).cpu().numpy())
        if not self.is_over:
            self._advance(self._compact(tokens_B))
        return complete

    @torch.inference_mode()
    def _prefill(self) -> None:
        """Compute each prompt once, left-padded to one length, then copy the cache for every row."""
        prompts = [part.prompt_ids for part in self._parts]
        lengths_P = torch.tensor([len(prompt) for prompt in prompts])
        longest = int(lengths_P.max())
        token_ids_PL = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        columns_L, padding_P1 = torch.arange(longest), longest - lengths_P[:, None]
        is_padded = bool(padding_P1.any())
        self._cache = create_cache(self._model.config)
        self._forward = _Forward(self._model, self._cache)
        logits_PV = self._forward(
            token_ids_PL.to(self._device),
            (columns_L - padding_P1).clamp(min=0).to(self._device),
            (columns_L >= padding_P1).to(self._device) if is_padded else None,
        )
        prompt_of_row_R = torch.from_numpy(self._part_of_row_R).to(self._device)
        select_rows(self._cache, prompt_of_row_R)
        self._logits_BV = logits_PV[prompt_of_row_R]
        self._positions_B = lengths_P.to(self._device)[prompt_of_row_R]
        self._num_cached = longest
        room = longest + self._settings.max_completion_length
        visible_PT = torch.arange(room) >= padding_P1
        self._mask_BT = self._decoding_mask(visible_PT.to(self._device)[prompt_of_row_R]) if is_padded else None

    def _decoding_mask(self, visible_BT: torch.Tensor) -> torch.Tensor:
        """Return the mask of the cached tokens that each row sees.

        The model expands a 2-dimensional mask in each step, which takes a tenth of the time with a small model. So if
        one mask fits all layers, this returns the expanded mask [B, 1, 1, T].
        """
        one_mask_fits = self._model.config.model_type in _ONE_MASK_FAMILIES and is_full_attention(self._cache)
        if self._device.type != "cpu" or not one_mask_fits:
            return visible_BT
        hidden_BT = torch.zeros(visible_BT.shape, dtype=self._model.dtype).masked_fill(~visible_BT, -torch.inf)
        return hidden_BT[:, None, None]

    def _record(self, tokens_B: np.ndarray, logprobs_B: np.ndarray) -> list[tuple[int, list[Completion]]]:
        rows_B = self._rows_B
        if not np.isfinite(logprobs_B).all():
            part = self._parts[self._part_of_row_R[rows_B[~np.isfinite(logprobs_B)][0]]]
            raise NonFiniteLogitsError(f"group {part.group_index}, token {self._step} of the completion")
        self._tokens_RM[rows_B, self._step] = tokens_B
        self._logprobs_RM[rows_B, self._step] = logprobs_B
        self._step += 1
        stops_B = np.isin(tokens_B, self._stop_token_ids)
        if self._reaches_stop is not None:
            stops_B |= [self._reaches_stop(self._tokens_RM[row, : self._step]) for row in rows_B]
        ends_B = stops_B | (self._step == self._settings.max_completion_length)
        complete_B = ends_B & (self._lengths_R[rows_B] == 0)
        complete_rows = rows_B[complete_B]
        self._lengths_R[complete_rows] = self._step
        self._has_stopped_R[complete_rows] = stops_B[complete_B]
        return [part for row in complete_rows for part in self._close_row(int(self._part_of_row_R[row]))]

    def _close_row(self, part_index: int) -> list[tuple[int, list[Completion]]]:
        self._rows_left[part_index] -= 1
        if self._rows_left[part_index]:
            return []
        del self._rows_left[part_index]
        rows = np.flatnonzero(self._part_of_row_R == part_index)
        return [(self._parts[part_index].group_index, [self._completion(row) for row in rows.tolist()])]

    def _completion(self, row: int) -> Completion:
        length = self._lengths_R[row]
        tokens = self._tokens_RM[row, :length].tolist()
        return Completion(
            completion_ids=tokens,
            sampling_logprobs=self._logprobs_RM[row, :length].tolist(),
            finish_reason="stop" if self._has_stopped_R[row] else "length",
            seed=int(self._seeds_R[row]),
        )

    def _compact(self, tokens_B: torch.Tensor) -> torch.Tensor:
        """Remove complete rows from the batch if there are enough of them; return the tokens of the other rows."""
        kept_B = np.flatnonzero(self._lengths_R[self._rows_B] == 0)
        if len(self._rows_B) - len(kept_B) < max(1, _COMPACTION_SHARE * len(self._rows_B)):
            return tokens_B
        self._rows_B = self._rows_B[kept_B]
        kept = torch.from_numpy(kept_B).to(self._device)
        select_rows(self._cache, kept)
        self._positions_B = self._positions_B[kept]
        self._mask_BT = None if self._mask_BT is None else self._mask_BT[kept]
        return tokens_B[kept]

    def _advance(self, tokens_B: torch.Tensor) -> None:
        self._num_cached += 1
        mask_BT = None if self._mask_BT is None else self._mask_BT[..., : self._num_cached]
        self._logits_BV = self._forward(tokens_B[:, None], self._positions_B[:, None], mask_BT)
        self._positions_B = self._positions_B + 1


class _Forward:
    """The model with its cache, as a function from new tokens to the logits of the last one."""

    def __init__(self, model: Any, cache: Any) -> None:
        accepted = inspect.signature(model.forward).parameters
        self._model = model
        self._takes_positions = "position_ids" in accepted
        cache_argument = next((name for name in _CACHE_ARGUMENTS if name in accepted), _CACHE_ARGUMENTS[0])
        self._fixed = {cache_argument: cache, "use_cache": True}
        if "logits_to_keep" in accepted:
            self._fixed["logits_to_keep"] = 1

    def __call__(self, token_ids: torch.Tensor, position_ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return logits [B, V] after tokens [B, N] at positions [B, N]. `mask` covers the cache and these tokens."""
        positions = {"position_ids": position_ids} if self._takes_positions else {}
        output = self._model(input_ids=token_ids, attention_mask=mask, **positions, **self._fixed)
        logits_BV: torch.Tensor = output.logits[:, -1]
        return logits_BV


@torch.inference_mode()
def find_batching(model: Any) -> Literal["any", "equal"]:
    """Return "equal" if only prompts of equal length can be decoded together, because left padding changes the result.

    Decodes two prompts with the cache of `create_cache`, and compares every step with a forward pass of the whole
    sequence. Raises IgrpoError if not even a single prompt agrees.
    """
    vocabulary = len(model.get_input_embeddings().weight)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or _TESTED_TOKENS
    length = min(_TESTED_TOKENS, positions)
    stride = max(1, vocabulary // (length + 1))
    ids_T = torch.arange(1, length + 1, device=model.device) * stride % vocabulary
    rows = [ids_T, ids_T.flip(0)[: length // 3]]
    if len(rows[1]) <= _TESTED_STEPS:
        return "any"  # There is no room for two lengths.
    expected = [model(input_ids=row[None], use_cache=False).logits[0, -1 - _TESTED_STEPS :] for row in rows]
    if not all(bool(logits_SV.isfinite().all()) for logits_SV in expected):
        return "any"  # Sampling names the tensor that is not finite.
    batchings: dict[Literal["any", "equal"], list[list[torch.Tensor]]] = {
        "any": [rows],
        "equal": [[row] for row in rows],
    }
    for batching, batches in batchings.items():
        try:
            found = [logits_SV for batch in batches for logits_SV in _decode(model, batch)]
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, IndexError, AttributeError, TypeError):
            continue
        tolerance = _AGREEMENT if model.dtype == torch.float32 else _HALF_AGREEMENT
        if all(_agree(left, right, tolerance) for left, right in zip(found, expected, strict=True)):
            return batching
    raise IgrpoError(
        f"{type(model).__name__} computes other log-probs with a cache than without, so it cannot be sampled from with "
        "transformers",
        hint="use --engine vllm, or another model (docs/results/architectures.md lists what works)",
    )


def _decode(model: Any, rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return logits [B, S, V] of the last tokens of `rows`, left-padded to one length, which are decoded one by one.

    After the first pass each row is repeated, as for completions of one prompt, and the logits are those of its copy.
    """
    longest = max(len(row) for row in rows)
    copies = torch.arange(2 * len(rows), device=model.device) // 2
    padding_B1 = torch.tensor([[longest - len(row)] for row in rows], device=model.device)
    ids_BT = torch.stack([torch.cat([row.new_zeros(longest - len(row)), row]) for row in rows])
    columns_T = torch.arange(longest, device=model.device)
    positions_BT, visible_BT = (columns_T - padding_B1).clamp(min=0), columns_T >= padding_B1
    cache, is_padded = create_cache(model.config), bool(padding_B1.any())
    forward = _Forward(model, cache)
    first = longest - _TESTED_STEPS
    logits = [forward(ids_BT[:, :first], positions_BT[:, :first], visible_BT[:, :first] if is_padded else None)[copies]]
    select_rows(cache, copies)
    ids_BT, positions_BT, visible_BT = ids_BT[copies], positions_BT[copies], visible_BT[copies]
    for end in range(first + 1, longest + 1):
        mask_BT = visible_BT[:, :end] if is_padded else None
        logits.append(forward(ids_BT[:, end - 1 : end], positions_BT[:, end - 1 : end], mask_BT))
    return torch.stack(logits, 1)[1::2]


def _agree(found_SV: torch.Tensor, expected_SV: torch.Tensor, tolerance: float) -> bool:
    """Return True for equal log-probs up to rounding, relative to their deviation over the vocabulary."""
    found_SV, expected_SV = found_SV.float().log_softmax(-1), expected_SV.float().log_softmax(-1)
    deviation_SV = expected_SV - expected_SV.mean(-1, keepdim=True)
    return bool((found_SV - expected_SV).norm() <= tolerance * deviation_SV.norm())


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of a full-attention layer, written in place into buffers [B, H, C, D] that are larger."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._key_buffer = self._value_buffer = torch.empty(0)
        self._length = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append states [B, H, new, D]; return keys and values of all tokens, [B, H, T, D] each."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self._length, self._length + key_states.shape[-2]
        if start == 0 or end > self._key_buffer.shape[-2]:
            self._key_buffer = _with_room(key_states, self.keys if start else None, end)
            self._value_buffer = _with_room(value_states, self.values if start else None, end)
        self._key_buffer[:, :, start:end] = key_states
        self._value_buffer[:, :, start:end] = value_states
        return self._set_length(end)

    def get_seq_length(self) -> int:
        return self._length

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Replace the batch by the rows with the indices `beam_idx`."""
        self._key_buffer = self._key_buffer.index_select(0, beam_idx)
        self._value_buffer = self._value_buffer.index_select(0, beam_idx)
        self._set_length(self._length)

    def _set_length(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        self._length = length
        self.keys = keys = self._key_buffer[:, :, :length]
        self.values = values = self._value_buffer[:, :, :length]
        return keys, values


def _with_room(like: torch.Tensor, filled: torch.Tensor | None, needed: int) -> torch.Tensor:
    """Return a buffer for `needed` tokens and up to `_GROWTH` more, which starts with `filled`."""
    batch, heads, _, size = like.shape
    buffer = like.new_empty(batch, heads, (needed // _GROWTH + 1) * _GROWTH, size)
    if filled is not None:
        buffer[:, :, : filled.shape[-2]] = filled
    return buffer


def create_cache(config: Any) -> Cache:
    """Return an empty cache for a model. Layers of full attention grow in place, others are those of transformers."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def is_full_attention(cache: Cache) -> bool:
    """Return True if every layer is a full-attention layer, so that one mask fits all of them."""
    return bool(cache.layers) and all(isinstance(layer, GrowingLayer) for layer in cache.layers)


def select_rows(cache: Cache, rows: torch.Tensor) -> None:
    """Replace the batch of the cache by `rows` (int64 indices, which may repeat or leave out rows).

    Uses `reorder_cache`, which every kind of layer has, including recurrent states. That of DeepSeek-V4 leaves out the
    states of its compressors.
    """
    layers: list[Any] = cache.layers
    for layer in layers:
        layer.reorder_cache(rows)
        for name in _COMPRESSOR_STATES:
            states: dict[str, torch.Tensor | None] = getattr(layer, name, {})
            states.update({key: state.index_select(0, rows) for key, state in states.items() if state is not None})
