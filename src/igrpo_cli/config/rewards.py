"""The sections [reward] and [judge] of `run.toml`, which decide the reward of a completion."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from igrpo_cli.config.sections import Natural, NonNegative, Positive, PositiveInt, PublicUrl, Section, Share

REWARD_PARTS = ("accuracy", "format", "overlong", "length", "copy", "judge")
"""Names of the built-in parts of a reward."""
_PART_NAME = re.compile(r"[a-z][a-z0-9_]*")


class RewardSection(Section):
    """The scalar reward: a weighted sum of named parts, for selection and update alike."""

    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset({"num_workers", "max_ungraded_share", "ungraded"})

    weights: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = Field(
        default_factory=lambda: {"accuracy": 1.0, "format": 1.0}
    )
    """Weights of the parts `accuracy`, `format`, `overlong`, `length`, `copy`, `judge` and of `functions`; unset is 0.

    `copy` is minus the overlap of a refinement with its draft, from 0 to -1 for a copy, and 0 without draft. So a
    positive weight is a penalty."""
    refinements: Literal["answer", "verdict"] = "answer"
    """What refinements are rewarded for.

    `answer` is the answer to the problem. `verdict` is the right verdict on the draft in the prompt, as in
    Self-Verification (RISE, arXiv 2505.13445): the answer of the refinement is compared with the text of
    `prompts.verdict_texts` for the verdict of the grader on the draft, as with a reference answer. So `accuracy` and
    `verdict` of such a completion, a verification, say whether it judges the draft right. A draft that could not be
    graded makes its verifications `ungraded`, and a refinement without draft is rewarded for its answer."""
    functions: dict[str, str] = Field(default_factory=dict)
    """Additional parts: name = "module:function", or the name of an entry point of the group `igrpo.rewards`.

    A function without a weight is not called. A parameter of a function may be a column of the data."""
    refuse_copied_answers: bool = True
    """Refuse an answer that is copied from the text of the problem and is not the reference itself.

    `\\binom{8}{4}` is 70, but it earns nothing if the problem asks for it. Choices are not affected."""
    overlong_cache: PositiveInt | None = None
    """Number of tokens before `max_completion_length` over which the part `overlong` falls from 0 to -1."""
    cpu_seconds: Annotated[float, Field(gt=0.0, le=86_400.0)] = 5.0
    """CPU seconds of the grader per completion, at most a day. A completion that takes more is `ungraded`."""
    memory_mb: Annotated[int, Field(ge=1, le=2**24)] = 2048
    """Address space of a grading process in MiB, at most 16 TiB."""
    max_ungraded_share: Share = 0.02
    """A stage fails if a larger fraction of its completions is `ungraded`."""
    ungraded: Literal["mask", "wrong"] = "mask"
    """How completions that are `ungraded` count: `mask` leaves them out of selection, advantages and loss, and `wrong`
    uses the reward that was recorded, in which a part that could not be computed is 0."""
    num_workers: PositiveInt = 2
    """Grading processes."""

    @field_validator("functions")
    @classmethod
    def _check_names(cls, functions: dict[str, str]) -> dict[str, str]:
        for name in functions:
            if name in REWARD_PARTS:
                raise ValueError(f"{name} is a built-in part of the reward: rename the function")
            if not _PART_NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot name a part: it becomes the column reward_<name>, of a-z, 0-9 and _")
        return functions

    @model_validator(mode="after")
    def _check_parts(self) -> RewardSection:
        known = (*REWARD_PARTS, *self.functions)
        for name in sorted(self.weights.keys() - set(known)):
            function = f"--set reward.functions.{name}=MODULE:FUNCTION"
            raise ValueError(f"weights has no part {name!r}: there are {', '.join(known)}; {function} adds a function")
        if "overlong" in self.weights and self.overlong_cache is None:
            raise ValueError("weights has overlong: set reward.overlong_cache, for example to 512")
        return self

    @property
    def functions_in_use(self) -> dict[str, str]:
        """Return the functions that have a weight."""
        return {name: target for name, target in self.functions.items() if name in self.weights}

    @property
    def overlong_cache_in_use(self) -> int | None:
        """Return `overlong_cache` if the part `overlong` has a weight, else None."""
        return self.overlong_cache if "overlong" in self.weights else None


class JudgeSection(Section):
    """The judge model, which gives the part `judge` of the reward, at an OpenAI-compatible endpoint."""

    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset(
        {"endpoint", "api_key_variable", "max_concurrency", "max_retries", "timeout", "max_calls", "max_tokens"}
    )

    endpoint: PublicUrl = ""
    """Base URL of an OpenAI-compatible server, with or without `/v1`, for example `http://node7:8000`."""
    model: str = ""
    """Name of the model at the endpoint."""
    api_key_variable: str = "OPENAI_API_KEY"
    """Name of the environment variable with the API key. The key itself is never written to a file."""
    temperature: NonNegative = 0.0
    """Sampling temperature; 0 is greedy."""
    max_completion_tokens: PositiveInt = 512
    """Maximum tokens of a judgement, those of a thought included."""
    max_answer_characters: PositiveInt = 4096
    """A longer answer is not judged, because a cut one could be another answer."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of every request, for example vLLM's `structured_outputs`. They decide a judgement too."""
    max_concurrency: PositiveInt = 16
    """Maximum requests in progress at the same time."""
    max_retries: Natural = 5
    """Retries of a failed request."""
    timeout: Positive = 120.0
    """Seconds that one request may take."""
    max_calls: PositiveInt | None = None
    """Maximum calls of the whole run, all its tasks together; unset means no limit."""
    max_tokens: PositiveInt | None = None
    """Maximum tokens of these calls, prompts and judgements together, as the endpoint counts them."""

    @field_validator("extra_body")
    @classmethod
    def _check_fields(cls, fields: dict[str, Any]) -> dict[str, Any]:
        ours = {"model", "messages", "temperature", "max_completion_tokens", "max_tokens", "seed", "n", "stream"}
        if taken := sorted(ours & fields.keys()):
            raise ValueError(f"{taken[0]} is not for extra_body: the request has it already, or needs it as it is")
        return fields
