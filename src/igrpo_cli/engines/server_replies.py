"""From the reply of `/v1/completions` to a completion: nothing is guessed, what does not fit is named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from igrpo_cli.errors import IgrpoError
from igrpo_cli.records import Completion, FinishReason, SamplingSettings

_FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
_NO_LOGPROB = -9999.0
"""What vLLM writes in place of minus infinity."""


def parse_completion(reply: Any, prompt_ids: Sequence[int], settings: SamplingSettings, url: str) -> Completion:
    """The only completion of `reply`. Raises IgrpoError for a reply that is not what was asked for."""
    choice = _only_choice(reply, url)
    if list(choice.get("prompt_token_ids") or prompt_ids) != list(prompt_ids):
        raise IgrpoError(
            f"{url} changes prompts: {len(prompt_ids)} token ids came back as {len(choice['prompt_token_ids'])} others",
            hint="start the server without options that truncate or rewrite prompts",
        )
    token_ids: Any = choice.get("token_ids")
    if not _is_list_of(token_ids, int):
        raise _malformed(url, "token_ids is missing", "vLLM 0.24 or newer is needed")
    logprobs: Any = choice.get("logprobs")
    logprobs = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    if not _is_list_of(logprobs, float | int):
        raise _malformed(url, "token_logprobs is missing")
    if len(logprobs) != len(token_ids):
        raise _malformed(url, f"{len(token_ids)} tokens with {len(logprobs)} log-probs")
    if not all(math.isfinite(logprob) and logprob > _NO_LOGPROB for logprob in logprobs):
        raise not_finite(url)
    finish_reason: FinishReason = _FINISH_REASONS.get(choice.get("finish_reason"), "abort")
    _check_length(len(token_ids), finish_reason, settings.max_completion_length, url)
    # vLLM reports a greedy token's log-prob before the maximum is taken.
    drawn = [float(logprob) if settings.temperature > 0 else 0.0 for logprob in logprobs]
    return Completion(token_ids, drawn, finish_reason)


def not_finite(url: str) -> IgrpoError:
    """What to raise for log-probs that are no numbers; vLLM cannot even write them down."""
    return IgrpoError(
        f"the policy that {url} serves gives logits that are not finite",
        hint="its weights are damaged or its training diverged: go back to an earlier policy",
    )


def _only_choice(reply: Any, url: str) -> Any:
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise _malformed(url, "choices does not hold one completion")
    return choices[0]


def _check_length(length: int, finish_reason: FinishReason, asked: int, url: str) -> None:
    if length > asked or (length == 0 and finish_reason != "abort"):
        raise _malformed(url, f"{length} tokens where at most {asked} and at least 1 were asked for")
    if finish_reason == "length" and length < asked:
        raise IgrpoError(
            f"{url} ends completions at {length} tokens where {asked} were asked for",
            hint="start it with --generation-config vllm, and a --max-model-len that has room",
        )


def _is_list_of(values: Any, kind: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _malformed(url: str, what: str, hint: str = "an endpoint is the base URL of a `vllm serve`") -> IgrpoError:
    return IgrpoError(f"the reply of {url} is not a completion as asked for: {what}", hint=hint)
