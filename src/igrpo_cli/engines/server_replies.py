"""From the reply of `/v1/completions` to a completion: nothing is guessed, what does not fit is named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from igrpo_cli.engines.batches import to_completion
from igrpo_cli.errors import IgrpoError
from igrpo_cli.http_client import TransientError
from igrpo_cli.records import Completion, FinishReason, SamplingSettings


def parse_completion(
    reply: Any, prompt_ids: Sequence[int], seed: int, settings: SamplingSettings, url: str
) -> Completion:
    """The only completion of `reply`, which was asked for with `seed`.

    Raises TransientError for more or less than was requested, which another attempt may fix, and IgrpoError for a
    reply of a server that cannot do what it is asked for.
    """
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
        raise _miscounted(url, f"{len(token_ids)} tokens with {len(logprobs)} log-probs")
    completion = to_completion(token_ids, logprobs, choice.get("finish_reason"), seed, settings, served_policy(url))
    _check_length(len(token_ids), completion.finish_reason, settings.max_completion_length, url)
    return completion


def served_policy(url: str) -> str:
    """What errors call the policy of a server."""
    return f"the policy that {url} serves"


def _only_choice(reply: Any, url: str) -> Any:
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise _miscounted(url, "choices does not hold one completion")
    return choices[0]


def _check_length(length: int, finish_reason: FinishReason, asked: int, url: str) -> None:
    if length > asked or (length == 0 and finish_reason != "abort"):
        raise _miscounted(url, f"{length} tokens where at most {asked} and at least 1 were asked for")
    if finish_reason == "length" and length < asked:
        raise IgrpoError(
            f"{url} ends completions at {length} tokens where {asked} were asked for",
            hint="start it with --generation-config vllm, and a --max-model-len that has room",
        )


def _is_list_of(values: Any, kind: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _malformed(url: str, what: str, hint: str = "an endpoint is the base URL of a `vllm serve`") -> IgrpoError:
    return IgrpoError(_unlike_asked(url, what), hint=hint)


def _miscounted(url: str, what: str) -> TransientError:
    return TransientError(_unlike_asked(url, what))


def _unlike_asked(url: str, what: str) -> str:
    return f"the reply of {url} is not a completion as asked for: {what}"
