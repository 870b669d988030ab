"""Attention over rows with several completions of one prompt.

Each token sees its prompt and its own completion only. There are three exact implementations, and a policy uses the
first that works for its model (see `CausalPolicy`). A causal row needs none of them.

Shapes: T tokens of a row, P of a prompt, L of a completion, A heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from igrpo_cli.training.packing import PackedRow, attention_mask, pad_row

SEGMENTS_IMPLEMENTATION = "igrpo_segments"
"""Name of `segment_attention` in transformers."""
BLOCKS_IMPLEMENTATION = "igrpo_blocks"
"""Name of `block_attention` in transformers."""


@dataclass(frozen=True, slots=True)
class RowAttention:
    """One implementation of attention over packed rows."""

    implementation: str
    """Name for `set_attn_implementation`."""
    arguments: Callable[[PackedRow, torch.device], dict[str, Any]]
    """Returns the arguments of the forward pass of a row, besides its tokens and positions."""
    is_compiled: bool = False
    """True if rows are padded to few lengths, because a new length may be compiled again."""

    def prepare(self, row: PackedRow) -> PackedRow:
        """Return the row that is computed in the place of `row`, padded at its end if it has to be."""
        return pad_row(row) if self.is_compiled and not row.is_causal else row


@dataclass(frozen=True, slots=True)
class Segments:
    """The prompts and completions of a row, in order."""

    lengths: tuple[int, ...]
    prompts: tuple[int, ...]
    """Index of the prompt of each segment; a prompt is its own."""
    masks: tuple[Tensor | None, ...]
    """Bool mask [L, P + L] of each completion: the prompt, and its own tokens up to each one. None for a prompt."""


def attention_implementations(device: torch.device) -> tuple[RowAttention, ...]:
    """Return the implementations for a device, the fastest first.

    FlexAttention skips blocks that are masked completely if it is compiled, which training can do on GPUs only.
    """
    return (FLEX_ATTENTION if device.type == "cuda" else SEGMENT_ATTENTION, DENSE_MASK)


def segment_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments | None = None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute the attention of one layer segment by segment, without pairs of tokens of different completions.

    `query` is [1, A, T, D]; `key` and `value` may have fewer heads. Returns [1, T, A, D]. Without `segments` this is
    the attention of transformers.
    """
    if segments is None:
        plain, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
        return plain, None
    repeats = query.shape[1] // key.shape[1]
    queries, keys, values = (
        torch.split(each, list(segments.lengths), dim=2)
        for each in (query, repeat_kv(key, repeats), repeat_kv(value, repeats))
    )
    outputs = []
    for index, (prompt, mask) in enumerate(zip(segments.prompts, segments.masks, strict=True)):
        if mask is None:
            seen = keys[index], values[index]
        else:
            seen = torch.cat([keys[prompt], keys[index]], 2), torch.cat([values[prompt], values[index]], 2)
        outputs.append(
            scaled_dot_product_attention(queries[index], *seen, attn_mask=mask, is_causal=mask is None, scale=scaling)
        )
    return torch.cat(outputs, 2).transpose(1, 2).contiguous(), None


def block_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: BlockMask | Tensor | None,
    *,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Compute the attention of one layer with FlexAttention. Shapes are those of `segment_attention`.

    Without a block mask this is the attention of transformers, which is not compiled, so causal rows can have any
    length.
    """
    if not isinstance(attention_mask, BlockMask):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    device = query.device.type
    if torch.is_autocast_enabled(device):
        # Rotary embeddings leave queries and keys in float32. Not every version of FlexAttention casts them itself.
        query, key, value = (each.to(torch.get_autocast_dtype(device)) for each in (query, key, value))
    return flex_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)


def segments_of(row: PackedRow, device: torch.device) -> Segments:
    """Return the prompts and completions of a row."""
    starts = np.flatnonzero(np.diff(row.segment, prepend=-1))
    lengths = np.diff(starts, append=len(row.segment)).tolist()
    place = {int(row.segment[start]): index for index, start in enumerate(starts)}
    prompts = [place[int(row.prompt_segment[start])] for start in starts]
    masks = [
        None
        if prompt == index
        else torch.ones(length, lengths[prompt] + length, dtype=torch.bool, device=device).tril_(lengths[prompt])
        for index, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
    ]
    return Segments(tuple(lengths), tuple(prompts), tuple(masks))


def _block_mask(row: PackedRow, device: torch.device) -> dict[str, Any]:
    segment_T = torch.from_numpy(row.segment).to(device)
    prompt_segment_T = torch.from_numpy(row.prompt_segment).to(device)

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = segment_T[query] == segment_T[key]
        prompt = prompt_segment_T[query] == segment_T[key]
        return (own | prompt) & (key <= query)

    # The compiled function never holds the [T, T] table of pairs.
    create = torch.compile(create_block_mask) if device.type == "cuda" else create_block_mask
    length = len(row.segment)
    return {"attention_mask": create(sees, None, None, length, length, device=device)}


def _dense_mask(row: PackedRow, device: torch.device) -> dict[str, Any]:
    mask_TT = attention_mask(row, device)
    return {} if mask_TT is None else {"attention_mask": mask_TT[None, None]}


SEGMENT_ATTENTION = RowAttention(SEGMENTS_IMPLEMENTATION, lambda row, device: {"segments": segments_of(row, device)})
FLEX_ATTENTION = RowAttention(BLOCKS_IMPLEMENTATION, _block_mask, is_compiled=True)
DENSE_MASK = RowAttention("sdpa", _dense_mask)

AttentionInterface.register(SEGMENTS_IMPLEMENTATION, segment_attention)
AttentionInterface.register(BLOCKS_IMPLEMENTATION, block_attention)
