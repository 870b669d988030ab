"""Packing of the groups of one optimiser step into rows, so that a prompt is computed once for all its completions.

A group becomes the sequence `[prompt | completion 1 | … | completion G]`. Positions restart after the prompt for each
completion, and each completion sees the prompt and itself only. So every token has exactly the inputs that it would
have in a row of its own: log-probs and gradients are the same, without padding and without computing the prompt G
times. A row holds one long group, or several short ones that do not see each other. The last token of a completion
predicts nothing, so no row contains it.

Shapes: S completions in the order of their groups, N their tokens in the order of the completions; T tokens of a row,
K completion tokens that the row predicts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from igrpo_cli.errors import IgrpoError
from igrpo_cli.records import TrainingGroup

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

PADDING_STEP = 128
"""Padded rows have a multiple of this many tokens, the block of FlexAttention."""
PADDING_STEPS_PER_DOUBLING = 8
"""Number of padded lengths between a length and its double, above the first multiples of `PADDING_STEP`."""


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """The groups of one optimiser step as flat arrays, checked."""

    groups: Sequence[TrainingGroup]
    group: IntArray
    """[S] index into `groups` of each completion."""
    sample: IntArray
    """[S] index of each completion in its group."""
    num_tokens: IntArray
    """[S] number of tokens of each completion; 0 for an empty one."""
    group_sizes: IntArray
    """[S] number of completions in the group of each completion."""
    max_lengths: IntArray
    """[S] `max_completion_length` of each completion."""
    advantages: FloatArray
    """[S]"""
    loss_weights: FloatArray
    """[S] factor of the loss of each completion."""
    shaping_gammas: FloatArray
    """[S] gamma of completions that were sampled from another prompt, else 0."""
    is_masked: BoolArray
    """[S] True for a completion that is excluded from the objective."""
    first_token: IntArray
    """[S] index among the N tokens at which each completion starts."""
    sequence: IntArray
    """[N] index of the completion that each token belongs to."""
    token_ids: IntArray
    """[N]"""
    temperatures: FloatArray
    """[N]"""
    sampling_logprobs: FloatArray
    """[N]"""

    def describe(self, sequence: int) -> str:
        """Return the name of one of the S completions for an error message."""
        group = self.groups[self.group[sequence]]
        return f"completion {self.sample[sequence]} of {describe_group(group)}"


def describe_group(group: TrainingGroup) -> str:
    """Return the name of a group for an error message."""
    return f"{group.stage} group {group.group_id} (problem {group.problem_id})"


def flatten_groups(groups: Sequence[TrainingGroup], vocab_size: int) -> TrainingBatch:
    """Return the batch of `groups`, in their order.

    Raises IgrpoError with the name of the first group that cannot be trained on: no prompt, no completion, unequal
    lengths, a token outside the vocabulary, a temperature of 0 or less, or a value that is not finite. Raises it also
    for a batch without a completion token.
    """
    for group in groups:
        _check_group(group, vocab_size)
    completions = [completion for group in groups for completion in group.completion_ids]
    num_tokens_S = np.array([len(completion) for completion in completions], dtype=np.int64)
    if not num_tokens_S.sum():
        raise IgrpoError(f"nothing to train on: {len(groups)} groups without a single completion token")
    sizes = np.array([len(group.completion_ids) for group in groups], dtype=np.int64)
    group_S = np.repeat(np.arange(len(groups)), sizes)
    temperatures_S = np.array([each for group in groups for each in group.temperatures], dtype=np.float32)
    logprobs = [logprobs for group in groups for logprobs in group.sampling_logprobs]
    return TrainingBatch(
        groups=groups,
        group=group_S,
        sample=np.concatenate([np.arange(size) for size in sizes]),
        num_tokens=num_tokens_S,
        group_sizes=np.repeat(sizes, sizes),
        max_lengths=np.repeat([group.max_completion_length for group in groups], sizes),
        advantages=np.concatenate([np.asarray(group.advantages, dtype=np.float32) for group in groups]),
        loss_weights=np.repeat(np.array([group.loss_weight for group in groups], dtype=np.float32), sizes),
        shaping_gammas=np.repeat(np.array([group.shaping_gamma for group in groups], dtype=np.float32), sizes),
        is_masked=np.concatenate([np.asarray(group.is_masked, dtype=np.bool_) for group in groups]),
        first_token=np.cumsum(num_tokens_S) - num_tokens_S,
        sequence=np.repeat(np.arange(len(completions)), num_tokens_S),
        token_ids=np.concatenate([np.asarray(completion, dtype=np.int64) for completion in completions]),
        temperatures=np.repeat(temperatures_S, num_tokens_S),
        sampling_logprobs=np.concatenate([np.asarray(values, dtype=np.float32) for values in logprobs]),
    )


def _check_group(group: TrainingGroup, vocab_size: int) -> None:
    lengths = [len(completion) for completion in group.completion_ids]
    token_ids = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in (group.prompt_ids, *group.completion_ids)])
    logprobs = np.concatenate([np.zeros(0), *(np.asarray(values) for values in group.sampling_logprobs)])
    problems = {
        "has an empty prompt": len(group.prompt_ids) == 0,
        "has no completions": not lengths,
        f"has {len(group.advantages)} advantages for {len(lengths)} completions": len(group.advantages) != len(lengths),
        f"has {len(group.is_masked)} masks for {len(lengths)} completions": len(group.is_masked) != len(lengths),
        f"has a completion longer than its {group.max_completion_length} tokens": max(lengths, default=0)
        > group.max_completion_length,
        "has sampling log-probs of other lengths than its completions": lengths
        != [len(values) for values in group.sampling_logprobs],
        "has an advantage that is not finite": not np.isfinite(np.asarray(group.advantages)).all(),
        "has a sampling log-prob that is not finite": not np.isfinite(logprobs).all(),
        f"has {len(group.temperatures)} temperatures for {len(lengths)} completions": len(group.temperatures)
        != len(lengths),
        f"has temperature {min(group.temperatures, default=0)}, which is not above 0": not all(
            temperature > 0 for temperature in group.temperatures
        ),
        f"has a token id outside the vocabulary of {vocab_size}": bool(
            ((token_ids < 0) | (token_ids >= vocab_size)).any()
        ),
    }
    for problem, found in problems.items():
        if found:
            raise IgrpoError(
                f"{describe_group(group)} {problem}",
                hint="igrpo verify checks the shards it came from; sample the stage again with --overwrite",
            )


@dataclass(frozen=True, slots=True)
class RowLimits:
    """Maximum sizes of rows, in tokens."""

    group_tokens: int
    """Maximum tokens of a group in one row, beyond which it is split; 0 gives each completion a prompt of its own."""
    joined_tokens: int
    """Maximum tokens of a row with several groups; 0 gives each group a row of its own."""


@dataclass(frozen=True, slots=True)
class PackedGroup:
    """A prompt and completions that follow it in one row: a whole group or a part of it."""

    group: int
    """Index into the groups of the batch."""
    completions: Sequence[int]
    """Indices among the S completions; none of them is empty."""
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
    """[T] segment of the prompt that each token sees."""
    predictor: IntArray
    """[K] index in the row of the token whose hidden state predicts the completion token."""
    token: IntArray
    """[K] index among the N of the completion token that is predicted."""

    @property
    def is_causal(self) -> bool:
        """True for one prompt with one completion, which needs no mask."""
        return bool(self.segment[-1] <= 1)

    @property
    def num_pairs(self) -> int:
        """Number of pairs of a token and a token that it sees: the cost of attention."""
        # A token sees itself and all tokens before it in its own sequence.
        return int(self.position_ids.sum()) + len(self.position_ids)


def pack_rows(batch: TrainingBatch, groups: Iterable[int], limits: RowLimits) -> list[PackedRow]:
    """Return the rows of `groups` (indices into those of the batch), in their order.

    A group longer than `limits.group_tokens` is split into several parts, each with the prompt. A single completion
    that is longer is not split.
    """
    rows: list[list[PackedGroup]] = []
    room = 0
    for group in groups:
        for part in _split_group(batch, group, limits.group_tokens):
            if part.num_tokens > room:
                rows.append([])
                room = limits.joined_tokens
            rows[-1].append(part)
            room -= part.num_tokens
    return [_lay_out(batch, row) for row in rows]


def padded_length(length: int) -> int:
    """Return the length that a row of `length` tokens is padded to: 128, 256, … up to 2048, then in steps of 1/8.

    So rows have few lengths, at most 1/8 longer than the row beyond 1024 tokens.
    """
    doubling = 1 << max(length - 1, 1).bit_length() - 1
    step = max(PADDING_STEP, doubling // PADDING_STEPS_PER_DOUBLING)
    return -(-length // step) * step


def pad_row(row: PackedRow) -> PackedRow:
    """Return the row with tokens added at its end up to `padded_length`.

    The added tokens are a segment of their own, which no other token sees and which sees no other, and they predict
    nothing. So all results are those of the row without them.
    """
    added = padded_length(len(row.input_ids)) - len(row.input_ids)
    segment = int(row.segment[-1]) + 1
    values = {"input_ids": 0, "position_ids": 0, "segment": segment, "prompt_segment": segment}
    return replace(
        row,
        **{
            name: np.concatenate([getattr(row, name), np.full(added, value, dtype=np.int64)])
            for name, value in values.items()
        },
    )


def attention_mask(row: PackedRow, device: torch.device) -> Tensor | None:
    """Return a bool mask [T, T], True at (query, key) where the query sees the key; None for a causal row."""
    if row.is_causal:
        return None
    segment_T = torch.from_numpy(row.segment).to(device)
    prompt_segment_T = torch.from_numpy(row.prompt_segment).to(device)
    own_TT = segment_T[:, None] == segment_T[None, :]
    prompt_TT = prompt_segment_T[:, None] == segment_T[None, :]
    return own_TT.logical_or_(prompt_TT).tril_()


def _split_group(batch: TrainingBatch, group: int, max_tokens: int) -> list[PackedGroup]:
    prompt_tokens = len(batch.groups[group].prompt_ids)
    parts: list[PackedGroup] = []
    completions: list[int] = []
    num_tokens = prompt_tokens
    for sequence in np.flatnonzero((batch.group == group) & (batch.num_tokens > 0)).tolist():
        inputs = int(batch.num_tokens[sequence]) - 1
        if completions and num_tokens + inputs > max_tokens:
            parts.append(PackedGroup(group, completions, num_tokens))
            completions, num_tokens = [], prompt_tokens
        completions.append(sequence)
        num_tokens += inputs
    return [*parts, PackedGroup(group, completions, num_tokens)] if completions else parts


def _lay_out(batch: TrainingBatch, groups: Sequence[PackedGroup]) -> PackedRow:
    parts: list[PackedRow] = []
    length = segment = 0
    for group in groups:
        parts.append(_lay_out_group(batch, group, length, segment))
        length += group.num_tokens
        segment += 1 + len(group.completions)
    names = [field.name for field in fields(PackedRow)]
    return PackedRow(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _lay_out_group(batch: TrainingBatch, group: PackedGroup, offset: int, first_segment: int) -> PackedRow:
    """Return the part of a row that holds `group`, starting at token `offset` and segment `first_segment`."""
    prompt_ids = np.asarray(batch.groups[group.group].prompt_ids, dtype=np.int64)
    spans = [(batch.first_token[index], batch.num_tokens[index]) for index in group.completions]
    inputs = [batch.token_ids[first : first + count - 1] for first, count in spans]
    lengths = np.array([len(prompt_ids), *(len(ids) for ids in inputs)])
    starts = np.cumsum(lengths) - lengths
    # Positions of every completion continue those of the prompt, wherever in the row it is.
    rewind = np.maximum(starts - len(prompt_ids), 0)
    # The last token of the prompt predicts the first of a completion, and each token of it predicts the next.
    predictors = [
        np.append(len(prompt_ids) - 1, np.arange(start, start + length))
        for start, length in zip(starts[1:], lengths[1:], strict=True)
    ]
    return PackedRow(
        input_ids=np.concatenate([prompt_ids, *inputs]),
        position_ids=np.arange(group.num_tokens) - np.repeat(rewind, lengths),
        segment=first_segment + np.repeat(np.arange(len(lengths)), lengths),
        prompt_segment=np.full(group.num_tokens, first_segment),
        predictor=offset + np.concatenate(predictors),
        token=np.concatenate([np.arange(first, first + count) for first, count in spans]),
    )
