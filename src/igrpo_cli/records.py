"""The records that pass between the rooms: what each field means, its unit and its shape.

A room takes and returns these and knows no other room's files. N is the number of drafts of a
problem, G the number of its refinements, T the number of tokens of one completion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

RolloutStage = Literal["draft", "refine", "eval"]
FinishReason = Literal["stop", "length", "abort"]
Verdict = Literal["correct", "wrong", "no_answer", "ungraded"]
SelectionAction = Literal["condition", "bare", "drop"]

ROLLOUT_STAGES: tuple[RolloutStage, ...] = ("draft", "refine", "eval")
FINISH_REASONS: tuple[FinishReason, ...] = ("stop", "length", "abort")
VERDICTS: tuple[Verdict, ...] = ("correct", "wrong", "no_answer", "ungraded")
SELECTION_ACTIONS: tuple[SelectionAction, ...] = ("condition", "bare", "drop")


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem with its reference answer."""

    problem_id: str
    problem: str
    answer: str
    """Never empty: an empty reference would reward empty answers."""
    source: str
    """Where the row came from, for example `gsm8k_train.jsonl:17`."""


@dataclass(frozen=True, slots=True)
class PromptSegment:
    """A piece of a user turn. Control tokens count only in trusted text; elsewhere they are plain characters."""

    text: str
    trusted: bool
    """True for our own template text, False for problems and drafts."""


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """One system turn (may be empty: then there is none) and one user turn, not yet rendered."""

    system: str
    user: tuple[PromptSegment, ...]


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How completions are drawn. The recorded log-probs are those of exactly this distribution."""

    temperature: float
    """1.0 leaves the model's distribution as it is; 0.0 is greedy (log-prob 0 for every token)."""
    top_p: float
    """Nucleus mass kept, in (0, 1]; 1.0 keeps everything."""
    top_k: int
    """Number of tokens kept; 0 keeps all."""
    max_completion_length: int
    """Most tokens of a completion, EOS included."""


@dataclass(frozen=True, slots=True)
class SamplingGroup:
    """One prompt and how many completions it gets: one for each seed."""

    prompt_ids: Sequence[int]
    seeds: Sequence[int]
    """One seed per completion, in [0, 2**63), derived from the row's identity (see `seeds`)."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What the sampler drew for one seed."""

    completion_ids: Sequence[int]
    """T token ids, the EOS token included when it was emitted."""
    sampling_logprobs: Sequence[float]
    """T log-probs (nats) under the distribution really sampled from: temperature, top-p and top-k included."""
    finish_reason: FinishReason
    seed: int
    """The one that it was drawn for, given back: so that one completion cannot pass for another."""


@dataclass(frozen=True, slots=True)
class Grade:
    """What the grader says of one completion."""

    verdict: Verdict
    extracted_answer: str | None
    """The text that was compared with the reference; None when nothing was found."""
    seconds: float
    """Wall time spent on this completion. Not stored in shards: it would make their bytes differ from run to run."""
    reason: str | None = None
    """Why it is `ungraded`; holds no text of the model."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """What a user's own reward functions say, by name; a function that failed is missing."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One row of a ROLLOUTS shard: a prompt, a completion of it and what was observed."""

    iteration: int
    """Outer pass, from 0; of an evaluation, the number of the policy."""
    stage: RolloutStage
    problem_id: str
    group_id: int
    """Position of the problem in its iteration (or benchmark), from 0; the same for drafts and refinements."""
    sample_id: int
    """Position of the completion in its group, from 0."""
    draft_sample_id: int | None
    """The draft that stands in the prompt; None where the prompt is bare."""
    prompt: str
    """As the sampler saw it, chat template applied."""
    prompt_ids: Sequence[int]
    completion: str
    completion_ids: Sequence[int]
    """EOS included when it was emitted."""
    sampling_logprobs: Sequence[float]
    """Nats, one for each of `completion_ids`, of the distribution really sampled from, temperature included."""
    finish_reason: FinishReason
    """`length`: cut off at the limit; `abort`: ended by the engine."""
    seed: int
    """Made of the row's place in the run (see `seeds`)."""
    reward: float
    """The parts, weighted with `reward.weights`."""
    reward_parts: dict[str, float]
    """Unweighted parts by name, each stored as column `reward_<name>`; always has `accuracy` and `format`."""
    verdict: Verdict
    """What the grader says; `ungraded` was not judged, and is never called wrong."""
    extracted_answer: str | None
    """The text that was compared with the reference; None when nothing was found."""


@dataclass(frozen=True, slots=True)
class Score:
    """One row of a SCORES shard: what a named set of scores says of a completion that is on disk."""

    iteration: int
    stage: RolloutStage
    """Of the completion; with `group_id` and `sample_id` it says which one is meant."""
    problem_id: str
    group_id: int
    sample_id: int
    reward: float
    reward_parts: dict[str, float]
    verdict: Verdict
    extracted_answer: str | None


@dataclass(frozen=True, slots=True)
class Selection:
    """One row of a SELECTIONS shard: which draft of a group conditions its refinements."""

    iteration: int
    group_id: int
    problem_id: str
    action: SelectionAction
    """`condition`: refine with the draft in the prompt; `bare`: refine without; `drop`: do not refine."""
    draft_group_id: int
    """Group that the draft comes from: `group_id` itself, or another one under the strategy `shuffled`."""
    draft_sample_id: int
    """Of the draft in its group."""
    draft: str
    """Completion text of that draft, whole; what of it is shown is decided when the prompt is made."""
    draft_answer: str
    """Answer extracted from that draft; empty where none was found."""
    draft_reward: float
    num_tied: int
    """Number of drafts of the group that share the reward of the chosen one (1 = no tie)."""
    group_reward_mean: float
    """Over the N drafts of the group."""
    group_reward_std: float
    """Sample standard deviation (ddof 1) over the N drafts; 0 for a single draft."""


@dataclass(frozen=True, slots=True)
class TrainingGroup:
    """One group as the gradient step sees it: a shared prompt and its completions with their advantages."""

    stage: RolloutStage
    group_id: int
    problem_id: str
    prompt_ids: Sequence[int]
    temperature: float
    """Temperature of sampling: log-probs of the policy are taken of logits / temperature (1.0 when greedy)."""
    completion_ids: Sequence[Sequence[int]]
    sampling_logprobs: Sequence[Sequence[float]]
    rewards: Sequence[float]
    advantages: Sequence[float]
    is_masked: Sequence[bool]
    """Whether the completion adds nothing to the objective; its reward is still one of the group's."""
    max_completion_length: int
    """Tokens at which sampling would have stopped."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of a METRICS file."""

    iteration: int
    step: int
    """Optimiser step, counted from 0 over the whole run; -1 for metrics of the whole iteration."""
    name: str
    value: float


@dataclass(slots=True)
class StageReport:
    """What a stage says of itself on stdout; these keys are always in its `--json` object."""

    stage: str
    iteration: int
    shards: int = 0
    """Shards that the command was asked for."""
    rows: int = 0
    groups: int = 0
    tokens: int = 0
    """Tokens of completions (draft, refine, eval) or tokens trained on (update)."""
    seconds: float = 0.0
    skipped: int = 0
    """Shards of `shards` that were finished before."""
    details: dict[str, Any] = field(default_factory=dict)
    """Further counts by name, merged into the `--json` object."""

    def payload(self) -> dict[str, Any]:
        """The `--json` object."""
        keys = ("stage", "iteration", "shards", "rows", "groups", "tokens", "seconds", "skipped")
        return {**{key: getattr(self, key) for key in keys}, **self.details}


JUDGEMENT_HASH = "sha256"
"""The key of a line of the judge's cache that holds the hash of the others."""
