"""Define the records that pass between rooms.

A field is described below it, with its unit and shape. Letters for sizes: N drafts and G refinements per problem,
T tokens of one completion, P tokens of a prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

RolloutStage = Literal["draft", "refine", "eval"]
FinishReason = Literal["stop", "length", "abort"]
Verdict = Literal["correct", "wrong", "no_answer", "ungraded"]
SelectionAction = Literal["condition", "bare", "drop"]
AnswerForm = Literal["auto", "plain", "solution"]
"""How a column holds the reference answer (see `problems.answers.reference_answer`)."""

ROLLOUT_STAGES: tuple[RolloutStage, ...] = ("draft", "refine", "eval")
FINISH_REASONS: tuple[FinishReason, ...] = ("stop", "length", "abort")
VERDICTS: tuple[Verdict, ...] = ("correct", "wrong", "no_answer", "ungraded")
SELECTION_ACTIONS: tuple[SelectionAction, ...] = ("condition", "bare", "drop")


@dataclass(frozen=True, slots=True)
class Problem:
    """Holds one problem and its reference answer."""

    problem_id: str
    """Unique within a problem set."""
    problem: str
    """Text of the problem, with its lettered choices if it has any."""
    answer: str
    """Reference answer. Never empty: an empty reference would reward empty answers."""
    source: str
    """File and row of origin, for example `gsm8k_train.jsonl:17`."""
    earlier_turns: str = ""
    """Turns before that of the problem, as a JSON list of texts: user, assistant, user, … Empty without any."""
    prefill: str = ""
    """Beginning of the assistant's turn, which every completion continues. Empty: completions begin the turn."""
    system_prompt: str = ""
    """System prompt of this problem, which follows `prompts.system_prompt`. Empty without one."""
    columns: str = "{}"
    """Other columns of its row, as a JSON object. All problems of a file have the same names; null without a value."""

    def column_values(self) -> dict[str, Any]:
        """Return the other columns of its row by name."""
        values: dict[str, Any] = json.loads(self.columns)
        return values


@dataclass(frozen=True, slots=True)
class PromptSegment:
    """Holds one part of a user turn."""

    text: str
    trusted: bool
    """True for template text. Control tokens are parsed only in trusted text, never in problems and drafts."""
    is_draft: bool = False
    """True for a draft or critique. Tags that are control tokens stay control tokens in it, as the model wrote them."""


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Holds a prompt before the chat template is applied: a system turn, earlier turns and the user turn."""

    system: str
    """System prompt of the settings. If it and `problem_system` are empty, the prompt has no system turn."""
    user: tuple[PromptSegment, ...]
    """Parts of the user turn, in order."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the chat template, for example {"enable_thinking": False}."""
    earlier: tuple[str, ...] = ()
    """Turns before the user turn: user, assistant, user, …, of even number. They are untrusted."""
    prefill: str = ""
    """Beginning of the turn of the assistant. It is untrusted, and part of what the model says."""
    problem_system: str = ""
    """System prompt of the problem. It stands after `system` and is untrusted."""


@dataclass(frozen=True, slots=True)
class SamplingGroup:
    """Requests the completions of one prompt: one completion per seed."""

    prompt_ids: Sequence[int]
    """P token ids, chat template applied."""
    seeds: Sequence[int]
    """Seed of each completion, in [0, 2**63), derived from the identity of its row (see `seeds`)."""
    sample_ids: Sequence[int] = ()
    """Position of each completion in its group, which decides its temperature where there are several. Empty: 0, 1, …
    """

    def sample_id(self, index: int) -> int:
        """Return the position in the group of the completion with seed number `index`."""
        return self.sample_ids[index] if self.sample_ids else index


@dataclass(frozen=True, slots=True)
class Completion:
    """Holds one completion as the engine sampled it."""

    completion_ids: Sequence[int]
    """T token ids, EOS included if it was sampled."""
    sampling_logprobs: Sequence[float]
    """T log-probs in nats under the distribution that was sampled from: temperature, min-p, top-k and top-p applied."""
    finish_reason: FinishReason
    """`stop`: EOS or another stop; `length`: truncated at the maximum; `abort`: ended by the engine."""
    seed: int
    """Seed that was requested. The caller compares it, so that completions cannot be exchanged."""
    num_proposed: int = 0
    """Tokens that speculative decoding proposed; 0 without it."""
    num_accepted: int = 0
    """Proposed tokens that the policy accepted. A few of them may lie beyond the end of the completion."""


@dataclass(frozen=True, slots=True)
class Proposals:
    """Holds what speculative decoding did for several completions; zeros without it."""

    num_proposed: int = 0
    """Tokens that were proposed."""
    num_accepted: int = 0
    """Tokens of these that the policy accepted."""

    @classmethod
    def of(cls, groups: Sequence[Sequence[Completion]]) -> Proposals:
        """Return the sums over all completions of some groups."""
        completions = [completion for group in groups for completion in group]
        return cls(sum(each.num_proposed for each in completions), sum(each.num_accepted for each in completions))


@dataclass(frozen=True, slots=True)
class Grade:
    """Holds the result of grading one completion."""

    verdict: Verdict
    extracted_answer: str | None
    """Answer that was compared with the reference; None if the completion contains none."""
    seconds: float
    """Wall time of grading. It is not stored in shards, because their bytes would differ between runs."""
    reason: str | None = None
    """Reason of the verdict `ungraded`; contains no text of the model."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Results of the user's reward functions by name. A function that failed is missing."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """Represents one row of a ROLLOUTS shard: a prompt, one completion of it, and its reward."""

    iteration: int
    """Iteration, from 0. In an evaluation: the number of the policy."""
    stage: RolloutStage
    """Stage that sampled the completion."""
    problem_id: str
    """Identifier of the problem in its problem set."""
    group_id: int
    """Position of the problem in its iteration or benchmark, from 0; drafts and refinements of a problem share it."""
    sample_id: int
    """Position of the completion in its group, from 0."""
    draft_sample_id: int | None
    """`sample_id` of the draft in the prompt; None for a prompt without draft."""
    prompt: str
    """Text of the prompt, chat template applied."""
    prompt_ids: Sequence[int]
    """P token ids of the prompt."""
    completion: str
    """Decoded text of the completion. If the prompt ends within a thought, its opening tag comes first."""
    completion_ids: Sequence[int]
    """T token ids, EOS included if it was sampled."""
    sampling_logprobs: Sequence[float]
    """T log-probs in nats under the distribution that was sampled from: temperature, min-p, top-k and top-p applied."""
    finish_reason: FinishReason
    """`stop`: EOS or another stop; `length`: truncated at the maximum; `abort`: ended by the engine."""
    seed: int
    """Seed of the completion, derived from the identity of the row (see `seeds`)."""
    reward: float
    """Sum of the reward parts, weighted with `reward.weights`."""
    reward_parts: dict[str, float]
    """Unweighted parts by name, each stored in column `reward_<name>`. `accuracy` and `format` always exist."""
    verdict: Verdict
    """Result of grading. `ungraded` means that grading failed; it is not the same as `wrong`."""
    extracted_answer: str | None
    """Answer that was compared with the reference; None if the completion contains none."""
    critique: str | None = None
    """Critique of the draft in the prompt, as the prompt shows it; empty for a refinement without draft. None: the run
    has no critiques (`critique.by`)."""
    critique_ids: Sequence[int] | None = None
    """Token ids of the critique as the policy wrote it, thoughts included; none for one by the judge."""

    @property
    def sampled(self) -> Completion:
        """The completion as the engine sampled it."""
        return Completion(self.completion_ids, self.sampling_logprobs, self.finish_reason, self.seed)


@dataclass(frozen=True, slots=True)
class Score:
    """Represents one row of a SCORES shard: another reward for a completion that is already on disk."""

    iteration: int
    """Iteration of the completion, from 0."""
    stage: RolloutStage
    """Stage of the completion. `stage`, `group_id` and `sample_id` identify the completion in its iteration."""
    problem_id: str
    group_id: int
    """Position of the problem in its iteration, from 0."""
    sample_id: int
    """Position of the completion in its group, from 0."""
    reward: float
    """Sum of the reward parts, weighted with the weights of this set of scores."""
    reward_parts: dict[str, float]
    """Unweighted parts by name, each stored in column `reward_<name>`."""
    verdict: Verdict
    extracted_answer: str | None
    """Answer that was compared with the reference; None if the completion contains none."""


EXTERNAL_GROUP = -1
"""`draft_group_id` of a selection whose draft comes from `select.external`."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Represents one row of a SELECTIONS shard: the draft that the refinements of a group get in their prompt."""

    iteration: int
    """Iteration, from 0."""
    group_id: int
    """Position of the problem in its iteration, from 0."""
    problem_id: str
    action: SelectionAction
    """`condition`: refine with the draft in the prompt; `bare`: refine without draft; `drop`: do not refine."""
    draft_group_id: int
    """Group of the draft: `group_id`; another group for the strategies `shuffled` and `shuffled_wrong`; for `external`
    -1."""
    draft_sample_id: int
    """`sample_id` of the draft in its group; for `external` its position among the external drafts of its problem."""
    draft: str
    """Complete text of the draft. The prompt may contain a shortened version of it."""
    draft_answer: str
    """Answer extracted from the draft; empty if it contains none, and for an external draft."""
    draft_reward: float
    """Reward of the draft; 0 for an external draft, whose reward is not known."""
    num_tied: int
    """Number of drafts in the group whose reward equals that of the selected one; 1 means no tie."""
    group_reward_mean: float
    """Mean reward of the N drafts of the group."""
    group_reward_std: float
    """Sample standard deviation (ddof 1) of the rewards of the N drafts; 0 for a single draft."""
    num_refinements: int | None = None
    """Number of refinements that `select.allocation` gave the problem; None means `refine.num_generations`."""
    draft_verdict: Verdict | None = None
    """Verdict of the grader on the draft; None for an external draft."""

    def num_samples(self, num_generations: int) -> int:
        """Return the number of refinements, where `num_generations` is that of the stage."""
        if self.action == "drop":
            return 0
        return num_generations if self.num_refinements is None else self.num_refinements


@dataclass(frozen=True, slots=True)
class TrainingGroup:
    """Holds one group for the gradient step: a prompt and its G completions with their advantages."""

    stage: RolloutStage
    group_id: int
    """Position of the problem in its iteration, from 0."""
    problem_id: str
    prompt_ids: Sequence[int]
    """P token ids, shared by all completions."""
    temperatures: Sequence[float]
    """G sampling temperatures; log-probs of the policy are those of logits / temperature. 1.0 if sampling was greedy.
    """
    completion_ids: Sequence[Sequence[int]]
    """Token ids of the G completions, each with its own T."""
    sampling_logprobs: Sequence[Sequence[float]]
    """Log-probs in nats under the sampler's distribution, with the shape of `completion_ids`."""
    rewards: Sequence[float]
    """G rewards."""
    advantages: Sequence[float]
    """G advantages."""
    is_masked: Sequence[bool]
    """G flags; True excludes a completion from the loss. Its reward still counts in the statistics of the group."""
    max_completion_length: int
    """Maximum tokens per completion in sampling."""
    is_graded: Sequence[bool] = ()
    """G flags; False also excludes a completion from the statistics of the group. Empty: all are graded."""
    outcomes: Sequence[float] = ()
    """G values that dynamic sampling compares: the accuracy, or the reward where accuracy has no weight."""
    baseline: Sequence[float] = ()
    """Rewards that the advantages are measured against; empty: those of the group."""
    loss_weight: float = 1.0
    """Factor of the loss of each completion."""
    shaping_gamma: float = 0.0
    """Above 0, the completions were sampled from another prompt, and p / (p + gamma) replaces the clipped ratio."""


@dataclass(frozen=True, slots=True)
class Metric:
    """Represents one row of a METRICS file."""

    iteration: int
    """Iteration, from 0."""
    step: int
    """Optimiser step, counted from 0 over the whole run; -1 for a metric of the whole iteration."""
    name: str
    """Name of the metric, for example `draft/accuracy_mean`."""
    value: float


@dataclass(slots=True)
class StageReport:
    """Collects the counts that a stage prints on stdout."""

    stage: str
    iteration: int
    """Iteration, from 0."""
    shards: int = 0
    """Number of shards that the command was asked for."""
    rows: int = 0
    """Number of rows written."""
    groups: int = 0
    """Number of groups written."""
    tokens: int = 0
    """Completion tokens that were sampled (draft, refine, eval) or trained on (update)."""
    seconds: float = 0.0
    """Wall time."""
    skipped: int = 0
    """Number of shards that were already complete."""
    details: dict[str, Any] = field(default_factory=dict)
    """Further counts by name, added to the `--json` object."""

    def payload(self) -> dict[str, Any]:
        """Return the `--json` object."""
        keys = ("stage", "iteration", "shards", "rows", "groups", "tokens", "seconds", "skipped")
        return {**{key: getattr(self, key) for key in keys}, **self.details}
