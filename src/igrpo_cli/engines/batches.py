"""Code of both vLLM engines: batches whose completions arrive one by one, and the conversion of vLLM's output."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from igrpo_cli.config.sections import SamplingSettings
from igrpo_cli.engines.base import logits_not_finite
from igrpo_cli.records import Completion, FinishReason, SamplingGroup

_FINISH_REASONS: dict[str | None, FinishReason] = {"stop": "stop", "length": "length"}
_NO_LOGPROB = -9999.0
"""Log-prob that vLLM's server writes for minus infinity."""


class Batch:
    """A submitted batch and its completions so far."""

    def __init__(self, key: Hashable, groups: Sequence[SamplingGroup], settings: SamplingSettings) -> None:
        self.key = key
        self.groups = groups
        self.settings = settings
        self.rows = [(index, sample) for index, group in enumerate(groups) for sample in range(len(group.seeds))]
        """(group, index in the group) of every requested completion."""
        self._completions: dict[tuple[int, int], Completion] = {}

    def settings_of(self, group: int, sample: int) -> SamplingSettings:
        """Return the settings of one completion, with its temperature as a number."""
        return self.settings.of_sample(self.groups[group].sample_id(sample))

    @property
    def num_missing(self) -> int:
        """Number of completions that have not arrived."""
        return len(self.rows) - len(self._completions)

    def put(self, group: int, sample: int, completion: Completion) -> None:
        """Store a completion that has arrived."""
        self._completions[group, sample] = completion

    def result(self) -> tuple[Hashable, list[list[Completion]]]:
        """Return what `Engine.step` returns for this batch. Completions that did not arrive are missing."""
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
    """Convert the fields of a vLLM output to a completion. Raises IgrpoError if a log-prob is not finite.

    `settings` are those of this completion. `sampler` is the name of the policy or server in the error.
    """
    # Not math.isfinite: a server may send an integer that no float can hold.
    if not all(_NO_LOGPROB < logprob < -_NO_LOGPROB for logprob in logprobs):
        raise logits_not_finite(sampler)
    # For a greedy token vLLM reports the log-prob of the full distribution; that of the one sampled from is 0.
    drawn = [float(logprob) for logprob in logprobs] if settings.temperature != 0 else [0.0] * len(logprobs)
    return Completion(list(token_ids), drawn, _FINISH_REASONS.get(str(finish_reason), "abort"), seed)
