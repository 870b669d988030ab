"""The server that the judge model runs on: one chat at a time for each thread, tried again where that may help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from igrpo_cli.errors import IgrpoError, Interrupted, UsageError
from igrpo_cli.http_client import HttpClient, PermanentError, TransientError

_REFUSED_ALONE = (400, 413, 422)
"""Statuses with which a server may refuse one request, for example one that is too long, and take the others."""


class RequestError(Exception):
    """A request failed in a way that may lie in it alone."""

    def __init__(self, reason: str, if_all_fail: IgrpoError, *, is_refusal: bool) -> None:
        super().__init__(reason)
        self.is_refusal = is_refusal
        """Whether trying again is useless."""
        self.reason = reason
        """What happened; holds no text of a model."""
        self.if_all_fail = if_all_fail
        """What is to be raised if others fail as well."""


@dataclass(frozen=True, slots=True)
class ChatReply:
    """What came back for one chat."""

    content: str
    """Empty where the server gives none, for example when all tokens went into a thought that it keeps apart."""
    is_cut_off: bool
    """Whether it ended before the model had ended it: what its last line says may not be all."""
    num_prompt_tokens: int | None
    """As the server counts them; None where it does not."""
    num_completion_tokens: int | None


class JudgeServer:
    """Any OpenAI-compatible server. May be used from any thread; its methods raise ClosedError once it is closed."""

    def __init__(self, client: HttpClient, max_retries: int, api_key_variable: str) -> None:
        self._client = client
        self.url = client.url
        self._max_retries = max_retries
        self._api_key_variable = api_key_variable

    def only_model(self) -> str:
        """The model that it serves. Raises UsageError where there are several, and as `chat` does."""
        try:
            reply = self._client.retrying(self._max_retries)(self._client.get, "/v1/models")
        except TransientError as error:
            raise self._interrupted(error) from error
        except PermanentError as error:
            raise self._misconfigured(error) from error
        try:
            models = [str(model["id"]) for model in reply["data"]]
        except (KeyError, TypeError):
            raise self._foreign("/v1/models") from None
        if len(models) != 1:
            raise UsageError(
                f"judge.model is not set, and {self.url} serves {', '.join(models) or 'no model'}",
                hint=f"--set judge.model={models[0] if models else 'NAME'}",
            )
        return models[0]

    def chat(self, body: dict[str, Any], max_retries: int | None = None) -> ChatReply:
        """The reply to one chat, tried again up to `max_retries` times; None: as often as the settings say.

        Raises Interrupted where the server does not answer, RequestError where it does not answer this request,
        IgrpoError where it cannot be asked so.
        """
        try:
            return self._client.retrying(self._max_retries if max_retries is None else max_retries)(self._chat, body)
        except TransientError as error:
            if error.status != 500:
                raise self._interrupted(error) from error
            reason = "the judge fails at the request (500)"
            raise RequestError(reason, self._interrupted(error), is_refusal=False) from error
        except PermanentError as error:
            if error.status not in _REFUSED_ALONE:
                raise self._misconfigured(error) from error
            reason = f"the judge refuses the request ({error.status})"
            raise RequestError(reason, self._misconfigured(error), is_refusal=True) from error

    def close(self) -> None:
        """Break off what is under way, pauses included."""
        self._client.close()

    def _chat(self, body: dict[str, Any]) -> ChatReply:
        reply = self._client.post("/v1/chat/completions", body)
        try:
            (choice,) = reply["choices"]
            content, finish_reason = choice["message"].get("content"), choice.get("finish_reason")
            usage = reply.get("usage") or {}
            tokens = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        except (KeyError, TypeError, ValueError, AttributeError):
            raise self._foreign("/v1/chat/completions") from None
        if finish_reason == "abort":  # how vLLM cuts off what is under way when it is stopped
            raise TransientError(f"{self.url} aborts its replies")
        num_prompt_tokens, num_completion_tokens = (n if type(n) is int and n >= 0 else None for n in tokens)
        return ChatReply(
            content if isinstance(content, str) else "",
            finish_reason in ("length", "content_filter"),
            num_prompt_tokens,
            num_completion_tokens,
        )

    def _foreign(self, path: str) -> IgrpoError:
        return IgrpoError(
            f"{self.url}{path} does not answer as an OpenAI-compatible server does",
            hint="judge.endpoint is the base URL of one, for example http://node7:8000",
        )

    def _interrupted(self, error: TransientError) -> Interrupted:
        return Interrupted(
            f"the judge does not answer, after {self._max_retries + 1} attempts: {error}; what was judged is kept",
            hint="start the judge again, then run the same command again: nothing is paid for twice",
        )

    def _misconfigured(self, error: PermanentError) -> IgrpoError:
        hint = "judge.endpoint is the base URL of an OpenAI-compatible server, for example http://node7:8000"
        if error.status in (401, 403):
            hint = f"set {self._api_key_variable} to a key that the server takes"
        elif error.status == 404:
            hint = "judge.endpoint is the base URL of the server, judge.model a model that it serves (GET /v1/models)"
        elif error.status in _REFUSED_ALONE:
            hint = "set what [judge] has to what the server takes"
        return IgrpoError(f"the judge cannot be asked: {error.message}", hint=hint)
