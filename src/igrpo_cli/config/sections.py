"""The sections of `run.toml`, with the default and the meaning of every key.

`data` holds [data], `rewards` holds [reward] and [judge], `update` holds [update], `engine` holds [engine].

Learning settings have TRL's names, engine settings vLLM's, eval settings lm-eval's. Each choice that the paper leaves
open is an option here.

Importing this module loads pydantic and nothing heavier.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from igrpo_cli.algo import BY_VERDICT, AllZero, Strategy, Ties
from igrpo_cli.http_client import WITHOUT_SECRETS, secret_in
from igrpo_cli.records import Verdict

PositiveInt = Annotated[int, Field(ge=1)]
Samples = Annotated[int, Field(ge=1, le=2**15 - 1)]
"""Number of completions of one problem. Shards store it in 16 bits."""
Natural = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Dtype = Literal["auto", "float32", "bfloat16"]
StopString = Annotated[str, Field(min_length=1)]
Temperature = Annotated[
    Annotated[NonNegative, Tag("(number)")] | Annotated[list[NonNegative], Field(min_length=1), Tag("(list)")],
    Discriminator(lambda value: "(list)" if isinstance(value, list | tuple) else "(number)"),
]
"""A temperature, or several that the completions of a group take in turn. The tags keep one error for one value."""


class Section(BaseModel):
    """A section of `run.toml`. It is frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset()
    """Keys that change where or how fast a result is computed, but not the result. A shard's identity excludes them."""

    def identity(self) -> dict[str, Any]:
        """Return the settings that results depend on, as JSON values; unset keys are None."""
        return self.model_dump(mode="json", exclude=set(self.WITHOUT_EFFECT))

    def with_recorded(self, values: Mapping[str, Any]) -> Self:
        """Return the section with the settings of an `identity` that a manifest records; other keys are left out."""
        known = {key: value for key, value in values.items() if key in type(self).model_fields}
        return type(self).model_validate({**self.model_dump(), **known})


class RunSection(Section):
    """Settings of the whole run."""

    seed: Natural = 0
    """Seed of every random choice. The seed of a completion is derived from it and the place of the completion."""
    method: Literal["igrpo", "grpo"] = "igrpo"
    """`grpo` is the baseline: the same loop without select and refine, trained on its drafts."""
    num_shards: PositiveInt = 1
    """Shards per stage. Does not change results."""
    cpu_threads: Natural = 0
    """CPU threads of sampling and training; 0 uses torch's default. Recorded, because rounding depends on it."""
    num_iterations: PositiveInt | None = None
    """Iterations of the run; unset means as many as `data.num_train_epochs` passes over the problems take."""
    staleness: Literal[0, 1] = 0
    """How many policies before the current one the drafts of an iteration come from. With 1 they can be sampled while
    the update before is still computed, and that update has `update.importance_sampling_correction` by default.
    Refinements come from the current policy."""
    eval_every: PositiveInt | None = None
    """Every how many iterations `igrpo run` evaluates a policy on `eval_bench`, without and with draft; the first and
    the last policy too. Unset means no evaluation."""
    eval_bench: str | None = None
    """Benchmark of these evaluations, as `igrpo eval --bench`."""


JudgedAs = Literal["correct", "wrong", "ungraded"]
VERDICT_TEXTS: dict[JudgedAs, str] = {"correct": "correct", "wrong": "wrong", "ungraded": "unknown"}


class PromptsSection(Section):
    """How prompts are built from problems and drafts. Both stages have the same system prompt, as in the paper."""

    system_prompt: str = ""
    """System prompt of all problems. That of a problem follows it (`data.system_column`). Without either there is no
    system turn."""
    chat_template_kwargs: dict[str, bool | int | float | str] = Field(default={})
    """Further arguments of the model's chat template, for example `{enable_thinking = false}`."""
    draft_turn: Literal["user", "assistant"] = "user"
    """Where the draft stands: in the turn of the user, as `refine_template` says, or in a turn of the assistant after
    the problem, which the user then asks to improve (`refine_request`). There the draft is shown as it was written,
    thoughts included, also where the chat template removes thoughts from earlier turns. Only white space at its ends
    may be stripped."""
    refine_request: Annotated[str, Field(min_length=1)] = "Check your answer and improve it. Correct it if it is wrong."
    """Turn of the user after a draft in the turn of the assistant."""
    empty_draft: str | None = None
    """Text in the place of the draft in prompts without draft, in training and evaluation, so that prompts without and
    with draft have one form, for example `N/A`. Unset means the problem alone."""
    refine_template: str = "{problem}\n\n[draft]\n{draft}\n[/draft]"
    """User turn of a refinement. It contains `{problem}` and `{draft}` exactly once each.

    `{verdict}`, here or in `refine_request`, stands for the verdict of the grader on the draft, as in Critique-GRPO
    with indicative critiques (arXiv 2506.03106). It is not required. It needs the reference answer, so such a run has
    no evaluation with draft. `{critique}` stands for a critique in words, see `[critique]`."""
    verdict_texts: dict[JudgedAs, Annotated[str, Field(min_length=1)]] = Field(default=VERDICT_TEXTS)
    """Texts for the verdict on a draft: those that stand for `{verdict}`, and the answers that `reward.refinements =
    "verdict"` asks for. `wrong` also stands for `no_answer`. A text that is not set has its default."""
    draft_view: Literal["full", "answer_only", "no_think"] = "full"
    """Part of the draft that the prompt shows: all of it, its extracted answer, or the text after its thought."""
    max_draft_tokens: PositiveInt = 4096
    """Maximum tokens of a draft in a prompt. A longer draft is cut to its first tokens, and the cuts are counted."""
    max_prompt_length: PositiveInt = 1024
    """Maximum tokens of a prompt without draft. `igrpo init` refuses a longer problem, or skips and counts it."""

    @property
    def shows_verdict(self) -> bool:
        """Return True if a prompt with draft holds the verdict on it."""
        return "{verdict}" in self._asks

    @property
    def shows_critique(self) -> bool:
        """Return True if a prompt with draft holds a critique of it."""
        return "{critique}" in self._asks

    @property
    def _asks(self) -> str:
        return self.refine_template if self.draft_turn == "user" else self.refine_request

    def verdict_text(self, verdict: Verdict | None) -> str:
        """Return the text for a verdict on a draft; None is one that is not known."""
        texts = {**VERDICT_TEXTS, **self.verdict_texts}
        if verdict is None or verdict == "ungraded":
            return texts["ungraded"]
        return texts["correct" if verdict == "correct" else "wrong"]


class SamplingSettings(Section):
    """The distribution that completions are sampled from. Recorded log-probs are those of exactly this distribution."""

    temperature: Temperature = 1.0
    """Sampling temperature; 0 is greedy, with log-prob 0 for every token. With a list, for example `[0.7, 1.0]`,
    completion i of a group has temperature number i modulo its length."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Probability mass of the tokens to sample from; 1 keeps all tokens."""
    top_k: Natural = 0
    """Number of tokens to sample from; 0 keeps all tokens."""
    min_p: Share | None = None
    """Tokens with less than this fraction of the probability of the likeliest token are not sampled, before top-k and
    top-p count. Unset and 0 keep all tokens."""
    max_completion_length: PositiveInt = 240
    """Maximum tokens per completion, EOS included."""
    stop: list[StopString] = Field(default_factory=list)
    """Strings that end a completion. Its text is cut before the string, or after it if the string is a tag."""
    stop_token_ids: list[Natural] = Field(default_factory=list)
    """Token ids that end a completion, besides those of the model and of its chat template."""

    def of_sample(self, sample_id: int) -> Self:
        """Return the settings of one completion of a group, with its temperature as a number."""
        if not isinstance(self.temperature, list):
            return self
        return self.model_copy(update={"temperature": temperature_of(self.temperature, sample_id)})


def temperature_of(temperature: float | Sequence[float], sample_id: int) -> float:
    """Return the temperature of one completion of a group, where `temperature` is that of the settings."""
    if isinstance(temperature, Sequence):
        return temperature[sample_id % len(temperature)]
    return temperature


class GenerationSection(SamplingSettings):
    """Sampling of one stage."""

    num_generations: Samples = 4
    """Completions per problem, at most 32,767: N for drafts, G for refinements."""

    @model_validator(mode="after")
    def _every_temperature_is_used(self) -> Self:
        if isinstance(self.temperature, list) and len(self.temperature) > self.num_generations:
            raise ValueError(
                f"temperature has {len(self.temperature)} values, but a group has {self.num_generations} completions "
                "(num_generations)"
            )
        return self


class CritiqueSection(SamplingSettings):
    """Critiques in words of the selected drafts, which refinements see (Critique-GRPO, arXiv 2506.03106).

    `igrpo refine` has one critique written of each draft, before it samples the refinements of that draft. It stands in
    the place of `{critique}` in `prompts.refine_template`, or in `prompts.refine_request`. The sampling keys are for
    critiques by the policy."""

    by: Literal["none", "policy", "judge"] = "none"
    """Who writes them: the policy that is trained, or the model of `[judge]`, with its cache and within its budget."""
    template: str = (
        "{problem}\n\n[draft]\n{draft}\n[/draft]\n\n"
        "Check this draft step by step. Say where it goes wrong and why, or that it is right. Do not solve the problem "
        "again."
    )
    """User turn that asks for a critique. It contains `{problem}` and `{draft}` exactly once each. It shows the draft
    as refinements see it (`prompts.draft_view`). `{verdict}` stands for the verdict of the grader on the draft, and
    `{answer}` for the reference answer. Neither is required."""
    system_prompt: str = ""
    """System turn before it; empty means none."""
    max_completion_length: PositiveInt = 240
    """Maximum tokens per critique, its thought and EOS included. A critique by the judge, whose tokens are others
    (`judge.max_completion_tokens`), is cut to as many tokens of the policy."""

    @property
    def shows_verdict(self) -> bool:
        """Return True if a prompt for a critique holds the verdict on the draft."""
        return self.by != "none" and "{verdict}" in self.template

    def identity(self) -> dict[str, Any]:
        """Return the settings that critiques depend on; a judge has its own sampling settings."""
        own = ("by", "template", "system_prompt", "max_completion_length")
        return {key: value for key, value in super().identity().items() if self.by == "policy" or key in own}


ExternalPath = Annotated[str, Field(min_length=1), AfterValidator(os.path.abspath)]
"""A path that stays valid in another working directory."""


class SelectSection(Section):
    """The choice of the draft that the refinements of a problem see."""

    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset({"external"})

    strategy: Strategy = "best"
    """The draft that is shown. `best` has the highest reward, `worst` the lowest, `random` is any draft.

    `wrong` is a random one of the wrong drafts, which are those that are graded and have the accuracy 0, or no reward
    above 0 where accuracy has no weight. `balanced` draws for each problem whether to show a random wrong or a random
    right draft. `opposite` shows a wrong one where at least half of the drafts are right, else a right one. A problem
    without such a draft shows any of its drafts. `shuffled` shows another problem's best draft, `shuffled_wrong`
    another problem's wrong draft, `external` a draft from `select.external`, and `none` no draft."""
    external: ExternalPath | None = None
    """Drafts for the strategy `external`: a Parquet or JSONL file with the columns `problem_id` and `draft`, or the
    directory of another run, whose drafts of all iterations count. Of several drafts of a problem each iteration draws
    one. Manifests record the SHA-256 of the drafts and not their path."""
    ties: Ties = "first"
    """The choice among drafts of equal reward; `random` is seeded."""
    all_zero: AllZero = "keep"
    """What happens if no draft of a problem has a reward above 0 (with `allocation = "adaptive"`: if none is right):
    `keep` shows a draft all the same, as the algorithm of the paper does, `bare` refines without draft, `drop` does not
    refine the problem."""
    scores: str | None = None
    """Use the rewards of this set of scores (`igrpo grade`); unset means the rewards recorded with the drafts."""

    allocation: Literal["fixed", "adaptive"] = "fixed"
    """`fixed` refines each problem `refine.num_generations` times.

    `adaptive` spends the same budget, `refine.num_generations` times the problems of the iteration, where most groups
    with reward variance are expected from the solve rate of the drafts: no refinements where all drafts are right, and
    more where some are than where none is. `strategy` says which draft is shown, and `all_zero` what
    happens where no draft is right. Where all drafts of all problems are right, the allocation is `fixed`."""
    max_refinements: Annotated[int, Field(ge=2, le=2**15 - 1)] | None = None
    """Maximum refinements of a problem with `adaptive`; unset means twice `refine.num_generations`."""

    @property
    def external_in_use(self) -> Path | None:
        """Return the path of `external` if the strategy reads it, else None."""
        return Path(self.external) if self.strategy == "external" and self.external is not None else None

    @property
    def reads_all_drafts(self) -> bool:
        """Return True if a selection depends on the drafts of the whole iteration."""
        return self.strategy in ("shuffled", "shuffled_wrong") or self.allocation == "adaptive"

    @property
    def reads_verdicts(self) -> bool:
        """Return True if a selection depends on which drafts are wrong."""
        return self.strategy in BY_VERDICT or self.allocation == "adaptive"


def checked_endpoint(endpoint: str) -> str:
    """Return `endpoint`. Raises ValueError if it contains a secret, because settings are written to files."""
    if secret := secret_in(endpoint):
        raise ValueError(f"{secret}: {WITHOUT_SECRETS}; an API key is read from the environment")
    return endpoint


PublicUrl = Annotated[str, AfterValidator(checked_endpoint)]


class EvalSection(Section):
    """Evaluation: prompts without draft, `repeats` samples each, under lm-eval's names."""

    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset({"selection"})
    """`selection` only counts in an evaluation with draft, see `config.STAGE_READS`."""

    repeats: Samples | None = None
    """Samples per problem, at most 32,767; unset means the number of the benchmark (64 for AIME, else 8)."""
    temperature: NonNegative = 0.6
    """Sampling temperature; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Probability mass of the tokens to sample from; 1 keeps all tokens."""
    top_k: Natural = 0
    """Number of tokens to sample from; 0 keeps all tokens."""
    min_p: Share | None = None
    """Tokens with less than this fraction of the probability of the likeliest token are not sampled, before top-k and
    top-p count. Unset and 0 keep all tokens."""
    max_gen_toks: PositiveInt = 4096
    """Maximum tokens per completion, EOS included."""
    stop: list[StopString] = Field(default_factory=list)
    """Strings that end a completion. Its text is cut before the string, or after it if the string is a tag."""
    stop_token_ids: list[Natural] = Field(default_factory=list)
    """Token ids that end a completion, besides those of the model and of its chat template."""
    limit: PositiveInt | None = None
    """Evaluate only this number of problems, the first of the benchmark; unset means all."""
    seed: Natural = 1234
    """Seed of sampling, instead of `run.seed`, so that all policies are evaluated with the same random numbers."""
    selection: Literal["each", "majority", "best"] = "each"
    """The draft in an evaluation with draft. `each`: every sample without draft is the draft of one refinement.
    `majority`: all refinements of a problem see the first sample with the most frequent answer. `best`: they see the
    sample with the highest reward, which needs the reference answer and so is an oracle, as in training."""

    def sampling(self) -> SamplingSettings:
        """Return the sampling settings under their own names."""
        names = [name for name in SamplingSettings.model_fields if name in type(self).model_fields]
        shared = {name: getattr(self, name) for name in names}
        return SamplingSettings(max_completion_length=self.max_gen_toks, **shared)


class LogSection(Section):
    """Trackers that receive the metrics of updates and evaluations, besides the run's own files. No stage reads it."""

    report_to: list[Literal["trackio", "tensorboard", "wandb"]] = Field(default_factory=list)
    """Names of the trackers."""
    project: str = "igrpo"
    """Project of trackio and wandb, which groups runs."""
    run_name: str | None = None
    """Name of the run in the tracker; unset means the name of its directory."""
    logging_dir: str | None = None
    """Folder of event files, offline records and notes of what was sent; unset means `log` in the run directory."""
    timeout: Positive = 30.0
    """Seconds that a command waits at its end for trackers that are still sending."""

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value
