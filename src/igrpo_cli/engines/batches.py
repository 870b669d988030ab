"""What the vLLM engines share: batches whose completions come back one by one, and vLLM's output read as ours."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from igrpo_cli.config.sections import SamplingSettings
from igrpo_cli.engines.base import logits_not_finite
from igrpo_cli.records import Completion, FinishReason, SamplingGroup

_FINISH_REASONS: dict[str | None, FinishReason] = {"stop": "stop", "length": "length"}
_NO_LOGPROB = -9999.0
"""What vLLM's server writes in place of minus infinity."""


class Batch:
    """A submitted batch and the completions that have come back of it."""

    def __init__(self, key: Hashable, groups: Sequence[SamplingGroup], settings: SamplingSettings) -> None:
        self.key = key
        self.groups = groups
        self.settings = settings
        self.rows = [(index, sample) for index, group in enumerate(groups) for sample in range(len(group.seeds))]
        """(group, position in the group) of every completion asked for."""
        self._completions: dict[tuple[int, int], Completion] = {}

    @property
    def num_missing(self) -> int:
        """Completions that have not come back."""
        return len(self.rows) - len(self._completions)

    def put(self, group: int, sample: int, completion: Completion) -> None:
        """A completion has come back."""
        self._completions[group, sample] = completion

    def given_back(self) -> tuple[Hashable, list[list[Completion]]]:
        """What `Engine.step` returns of a batch that is over: completions that never came are missing."""
        groups: list[list[Completion]] = [[] for _ in self.groups]
        for index, sample in self.rows:
            if (index, sample) in self._completions:
                groups[index].append(self._completions[index, sample])
        return self.key, groups


def to_completion(
    token_ids: Sequence[int],
    logprobs: Sequence[float],
    finish_reason: str | None,
    seed: int,
    settings: SamplingSettings,
    sampler: str,
) -> Completion:
    """The completion of a seed, from vLLM's fields.

    Raises IgrpoError, naming `sampler`, where a log-prob is not a number.
    """
    if not all(math.isfinite(logprob) and logprob > _NO_LOGPROB for logprob in logprobs):
        raise logits_not_finite(sampler)
    # vLLM reports a greedy token's log-prob before the maximum is taken.
    drawn = [float(logprob) for logprob in logprobs] if settings.temperature > 0 else [0.0] * len(logprobs)
    return Completion(list(token_ids), drawn, _FINISH_REASONS.get(finish_reason, "abort"), seed)
