"""The groups of one optimiser step as flat arrays, checked once so that nothing later has to doubt them.

Shapes: S completions in order of their groups, N their tokens in order of the completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from igrpo_cli.errors import IgrpoError
from igrpo_cli.records import TrainingGroup

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """The whole batch of one optimiser step."""

    groups: Sequence[TrainingGroup]
    group: IntArray
    """[S] position in `groups` of each completion."""
    sample: IntArray
    """[S] position of each completion in its group."""
    num_tokens: IntArray
    """[S] tokens of each completion, 0 for an empty one."""
    group_sizes: IntArray
    """[S] number of completions of each completion's group."""
    max_lengths: IntArray
    """[S] tokens at which sampling would have stopped."""
    advantages: FloatArray
    """[S]"""
    is_masked: BoolArray
    """[S] whether the completion adds nothing to the objective."""
    first_token: IntArray
    """[S] where the tokens of each completion start among the N."""
    sequence: IntArray
    """[N] completion that each token belongs to."""
    token_ids: IntArray
    """[N]"""
    temperatures: FloatArray
    """[N]"""
    sampling_logprobs: FloatArray
    """[N]"""

    def describe(self, sequence: int) -> str:
        """Name of one of the S completions for an error message."""
        group = self.groups[self.group[sequence]]
        return f"completion {self.sample[sequence]} of {describe_group(group)}"


def describe_group(group: TrainingGroup) -> str:
    """Name of a group for an error message."""
    return f"{group.stage} group {group.group_id} (problem {group.problem_id})"


def flatten_groups(groups: Sequence[TrainingGroup], vocab_size: int) -> TrainingBatch:
    """The batch made of `groups`, in their order.

    Raises IgrpoError naming the first group that cannot be trained on: no prompt, no completion,
    unequal lengths, a token outside the vocabulary, a temperature of 0 or less, a value that is not
    finite. A batch without a single completion token is refused as well.
    """
    for group in groups:
        _check_group(group, vocab_size)
    completions = [completion for group in groups for completion in group.completion_ids]
    num_tokens_S = np.array([len(completion) for completion in completions], dtype=np.int64)
    if not num_tokens_S.sum():
        raise IgrpoError(f"nothing to train on: {len(groups)} groups without a single completion token")
    sizes = np.array([len(group.completion_ids) for group in groups], dtype=np.int64)
    group_S = np.repeat(np.arange(len(groups)), sizes)
    temperatures = np.array([group.temperature for group in groups], dtype=np.float32)
    logprobs = [logprobs for group in groups for logprobs in group.sampling_logprobs]
    return TrainingBatch(
        groups=groups,
        group=group_S,
        sample=np.concatenate([np.arange(size) for size in sizes]),
        num_tokens=num_tokens_S,
        group_sizes=np.repeat(sizes, sizes),
        max_lengths=np.repeat([group.max_completion_length for group in groups], sizes),
        advantages=np.concatenate([np.asarray(group.advantages, dtype=np.float32) for group in groups]),
        is_masked=np.concatenate([np.asarray(group.is_masked, dtype=np.bool_) for group in groups]),
        first_token=np.cumsum(num_tokens_S) - num_tokens_S,
        sequence=np.repeat(np.arange(len(completions)), num_tokens_S),
        token_ids=np.concatenate([np.asarray(completion, dtype=np.int64) for completion in completions]),
        temperatures=np.repeat(temperatures[group_S], num_tokens_S),
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
        f"has temperature {group.temperature}, which is not above 0": not group.temperature > 0,
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
