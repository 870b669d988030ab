"""Lay groups out in rows so that a prompt is computed once for all of its completions.

A group becomes one block, `[prompt | completion 1 | … | completion G]`: positions restart after the
prompt for each completion, and each completion sees the prompt and itself, nothing else. Every token
then has exactly the inputs that it would have in a row of its own, so log-probs and gradients are
the same, without padding and without computing the prompt G times. Small blocks, blind to each other,
join in one row. The last token of a completion predicts nothing, so it
stands in no row.

Shapes: T tokens of a row, K completion tokens that the row predicts, N and S as in `batch`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from igrpo_cli.training.batch import IntArray, TrainingBatch


@dataclass(frozen=True, slots=True)
class RowLimits:
    """How much stands in a row."""

    block_tokens: int
    """Tokens up to which completions share a prompt; 0 gives each completion a block of its own."""
    joined_tokens: int
    """Tokens up to which further blocks join a row; 0 gives each block a row of its own."""


@dataclass(frozen=True, slots=True)
class Block:
    """A prompt and those of its completions that stand behind it in one row."""

    group: int
    """Position in the batch's groups."""
    completions: Sequence[int]
    """Indices among the S completions, none of them empty."""
    num_tokens: int


@dataclass(frozen=True, slots=True)
class PackedRow:
    """One forward pass of the model."""

    input_ids: IntArray
    """[T]"""
    position_ids: IntArray
    """[T]"""
    segment: IntArray
    """[T] number of the prompt or completion that each token belongs to, unique in the row."""
    prompt_segment: IntArray
    """[T] segment of the prompt that each token's block begins with."""
    predictor: IntArray
    """[K] position in the row whose hidden state predicts the token."""
    token: IntArray
    """[K] which of the N completion tokens is predicted."""

    @property
    def is_causal(self) -> bool:
        """One prompt with one completion, which needs no mask."""
        return bool(self.segment[-1] <= 1)

    @property
    def num_pairs(self) -> int:
        """Of a token and one that it sees, itself among them: what attention costs."""
        # A token sees as many as stand before it in its own sequence, and itself.
        return int(self.position_ids.sum()) + len(self.position_ids)


def pack_rows(batch: TrainingBatch, groups: Iterable[int], limits: RowLimits) -> list[PackedRow]:
    """Rows for the completions of `groups` (positions in the batch), in their order.

    A group longer than `limits.block_tokens` is cut into several blocks, each with the prompt; a
    single completion longer than that gets a block of its own all the same.
    """
    rows: list[list[Block]] = []
    room = 0
    for group in groups:
        for block in _blocks_of_group(batch, group, limits.block_tokens):
            if block.num_tokens > room:
                rows.append([])
                room = limits.joined_tokens
            rows[-1].append(block)
            room -= block.num_tokens
    return [_lay_out(batch, row) for row in rows]


def attention_mask(row: PackedRow, device: torch.device) -> Tensor | None:
    """Bool [T, T], True at (query, key) where the query sees the key; None for a plain sequence."""
    if row.is_causal:
        return None
    segment_T = torch.from_numpy(row.segment).to(device)
    prompt_segment_T = torch.from_numpy(row.prompt_segment).to(device)
    own_TT = segment_T[:, None] == segment_T[None, :]
    prompt_TT = prompt_segment_T[:, None] == segment_T[None, :]
    return own_TT.logical_or_(prompt_TT).tril_()


def _blocks_of_group(batch: TrainingBatch, group: int, max_tokens: int) -> list[Block]:
    prompt_tokens = len(batch.groups[group].prompt_ids)
    blocks: list[Block] = []
    completions: list[int] = []
    num_tokens = prompt_tokens
    for sequence in np.flatnonzero((batch.group == group) & (batch.num_tokens > 0)).tolist():
        inputs = int(batch.num_tokens[sequence]) - 1
        if completions and num_tokens + inputs > max_tokens:
            blocks.append(Block(group, completions, num_tokens))
            completions, num_tokens = [], prompt_tokens
        completions.append(sequence)
        num_tokens += inputs
    return [*blocks, Block(group, completions, num_tokens)] if completions else blocks


def _lay_out(batch: TrainingBatch, blocks: Sequence[Block]) -> PackedRow:
    parts: list[PackedRow] = []
    length = segment = 0
    for block in blocks:
        parts.append(_lay_out_block(batch, block, length, segment))
        length += block.num_tokens
        segment += 1 + len(block.completions)
    names = [field.name for field in fields(PackedRow)]
    return PackedRow(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _lay_out_block(batch: TrainingBatch, block: Block, offset: int, first_segment: int) -> PackedRow:
    """The part of a row, from token `offset` and segment `first_segment` on, that is this block."""
    prompt_ids = np.asarray(batch.groups[block.group].prompt_ids, dtype=np.int64)
    spans = [(batch.first_token[index], batch.num_tokens[index]) for index in block.completions]
    inputs = [batch.token_ids[first : first + count - 1] for first, count in spans]
    lengths = np.array([len(prompt_ids), *(len(ids) for ids in inputs)])
    starts = np.cumsum(lengths) - lengths
    # A completion goes on where the prompt ended, wherever in the row it stands.
    rewind = np.maximum(starts - len(prompt_ids), 0)
    # The end of the prompt predicts the first token of a completion, each token of it the next one.
    predictors = [
        np.append(len(prompt_ids) - 1, np.arange(start, start + length))
        for start, length in zip(starts[1:], lengths[1:], strict=True)
    ]
    return PackedRow(
        input_ids=np.concatenate([prompt_ids, *inputs]),
        position_ids=np.arange(block.num_tokens) - np.repeat(rewind, lengths),
        segment=first_segment + np.repeat(np.arange(len(lengths)), lengths),
        prompt_segment=np.full(block.num_tokens, first_segment),
        predictor=offset + np.concatenate(predictors),
        token=np.concatenate([np.arange(first, first + count) for first, count in spans]),
    )
