"""The judge: a model that scores answers that no program can compare, in [0, 1].

The judge reads the problem, the reference and the marked answer, but not the reasoning. If it gives no verdict, the
answer is not judged, with a reason; no score is invented. See docs/judge.md.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igrpo_cli.config.rewards import JudgeSection
from igrpo_cli.errors import IgrpoError
from igrpo_cli.http_client import ClosedError, HttpClient
from igrpo_cli.records import ChatPrompt
from igrpo_cli.rewards.extraction import marked_answer
from igrpo_cli.rewards.judge_cache import CallBudget, JudgementCache
from igrpo_cli.rewards.judge_chat import (
    CUT_OFF,
    PARSER_VERSION,
    ChatReply,
    JudgeScore,
    JudgeServer,
    RequestError,
    chat_messages,
    judge_messages,
    read_verdict,
)
from igrpo_cli.rewards.notation import is_blank
from igrpo_cli.seeds import derive_seed

__all__ = ["Judge", "JudgeRequest", "JudgeScore"]

Reader = Callable[[ChatReply], JudgeScore]
_PROBE = [{"role": "user", "content": "Write one line and nothing else:\nScore: 0"}]


@dataclass(frozen=True, slots=True)
class JudgeRequest:
    """One completion to judge."""

    problem: str
    reference: str
    completion: str


class Judge:
    """Scores completions. Threads may share it; close it at the end."""

    def __init__(self, config: JudgeSection, cache_directory: Path) -> None:
        """Prepare a judge; makes no request and reads no file. Raises UsageError if the endpoint is not a base URL."""
        self._config = config
        client = HttpClient(config.endpoint, config.timeout, config.api_key_variable)
        self._server = JudgeServer(client, config.max_retries, config.api_key_variable)
        self._cache = JudgementCache(cache_directory)
        self._budget = CallBudget(self._cache, config.max_calls, config.max_tokens)
        self._model = config.model
        self._naming = threading.Lock()
        self._probing = threading.Lock()
        self._lock = threading.Lock()
        self._is_closed = False
        self._threads = ThreadPoolExecutor(config.max_concurrency, "igrpo-judge")
        self._in_progress: dict[str, Future[JudgeScore]] = {}
        self._num_submitted = 0
        self._failure: BaseException | None = None
        self._num_failed = 0
        """The last error of a question, and the number of questions submitted until then: all of them fail."""
        self._num_calls = self._num_tokens = self._num_cached = 0

    @property
    def num_calls(self) -> int:
        """Answered calls of this process."""
        return self._num_calls

    @property
    def num_tokens(self) -> int:
        """Prompt and completion tokens of these calls, counted by the server."""
        return self._num_tokens

    @property
    def num_cached(self) -> int:
        """Requests of this process that needed no call of their own: judged before, or in progress already."""
        return self._num_cached

    def score(self, requests: Sequence[JudgeRequest]) -> list[JudgeScore]:
        """Return the scores of `requests`, in order.

        Raises Interrupted if the judge does not answer, IgrpoError if the budget is spent or the settings do not fit
        the server, and ClosedError if the judge is closed meanwhile. Judgements made until then are kept.
        """
        return _results([self._find(request) for request in requests])

    def write(self, prompts: Sequence[ChatPrompt]) -> list[str]:
        """Return the replies to `prompts`, in order; empty where the judge refuses a prompt. Raises as `score`."""
        return [each.text or "" for each in _results([self._ask(chat_messages(each), _read_text) for each in prompts])]

    def close(self) -> None:
        """Break off all requests; `score` then raises ClosedError. Closing twice has no effect."""
        with self._lock:
            self._is_closed = True
        self._server.close()
        self._threads.shutdown(wait=False)  # Questions that wait begin, and fail with ClosedError.

    def _find(self, request: JudgeRequest) -> JudgeScore | Future[JudgeScore]:
        """Return the score of `request` if it needs no call, otherwise a future of the score."""
        answer = marked_answer(request.completion)
        if answer is None:
            return JudgeScore(0.0)
        limit = self._config.max_answer_characters
        if len(answer) > limit:
            return JudgeScore(None, f"answer longer than {limit} characters")
        if is_blank(answer):
            return JudgeScore(0.0)
        if is_blank(request.reference):
            return JudgeScore(None, "empty reference")
        return self._ask(judge_messages(request.problem, request.reference, answer), _read_score)

    def _ask(self, messages: list[dict[str, str]], read: Reader) -> JudgeScore | Future[JudgeScore]:
        key = self._key(messages, read)
        with self._lock:
            if self._is_closed:
                raise ClosedError
            known = self._cache.get(key) or self._in_progress.get(key)
            if known is not None:
                self._num_cached += 1
                return known
            self._num_submitted += 1
            future = self._threads.submit(self._judge_or_fail, self._num_submitted, key, messages, read)
            self._in_progress[key] = future
        return future

    def _key(self, messages: list[dict[str, str]], read: Reader) -> str:
        """Return the SHA-256 of everything that decides a judgement."""
        decisive = {
            "model": self._named_model(),
            "messages": messages,
            "temperature": float(self._config.temperature),
            "max_completion_tokens": self._config.max_completion_tokens,
            "extra_body": dict(self._config.extra_body),
            **({"parser_version": PARSER_VERSION} if read is _read_score else {"reply": "text"}),
        }
        return hashlib.sha256(json.dumps(decisive, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def _named_model(self) -> str:
        with self._naming:
            if not self._model:
                self._model = self._server.only_model()
            return self._model

    def _judge_or_fail(self, number: int, key: str, messages: list[dict[str, str]], read: Reader) -> JudgeScore:
        """Judge the question submitted as `number`; if an earlier one failed while it waited, fail with that error."""
        try:
            if self._failure is not None and number <= self._num_failed:
                raise self._failure
            return self._judge(key, messages, read)
        except BaseException as error:
            with self._lock:
                if error is not self._failure:
                    self._failure, self._num_failed = error, self._num_submitted
            raise
        finally:
            with self._lock:
                del self._in_progress[key]

    def _judge(self, key: str, messages: list[dict[str, str]], read: Reader) -> JudgeScore:
        self._budget.read_others()
        if (known := self._cache.get(key)) is not None:
            with self._lock:
                self._num_cached += 1
            return known
        with self._budget.one_call():
            request = self._request(key, messages)
            try:
                reply = self._server.chat(request)
            except RequestError as error:
                self._require_healthy(error, request)
                return JudgeScore(None, error.reason)
            score = read(reply)
            # Above temperature 0 another reply may have a verdict.
            is_final = score.reason is None or self._config.temperature == 0
            self._record(key if is_final else None, score, reply)
        return score

    def _request(self, key: str, messages: list[dict[str, str]]) -> dict[str, Any]:
        request = {
            **self._config.extra_body,
            "model": self._named_model(),
            "messages": messages,
            "temperature": self._config.temperature,
            "max_completion_tokens": self._config.max_completion_tokens,
        }
        return request if self._config.temperature == 0 else {**request, "seed": derive_seed(0, "judge", key)}

    def _record(self, key: str | None, score: JudgeScore, reply: ChatReply) -> None:
        num_prompt_tokens, num_completion_tokens = reply.num_prompt_tokens or 0, reply.num_completion_tokens or 0
        self._cache.add(key, score, num_prompt_tokens, num_completion_tokens)
        with self._lock:
            self._num_calls += 1
            self._num_tokens += num_prompt_tokens + num_completion_tokens
        if self._config.max_tokens is not None and reply.num_prompt_tokens is None:
            raise IgrpoError(
                f"{self._server.url} does not report how many tokens its replies take, so judge.max_tokens "
                "cannot be enforced",
                hint="unset judge.max_tokens, and set judge.max_calls",
            )

    def _require_healthy(self, error: RequestError, request: dict[str, Any]) -> None:
        """Raise unless the judge answers a harmless request with the same settings as `request`, which failed."""
        with self._probing:
            if error.is_refusal and self._num_calls > 0:
                return  # The server has accepted other requests: this one is too long, for example.
            try:
                reply = self._server.chat({**request, "messages": _PROBE}, max_retries=0)
            except RequestError as probe_error:
                raise probe_error.if_all_fail from probe_error
            self._record(None, JudgeScore(None, "probe of the judge"), reply)


def _read_score(reply: ChatReply) -> JudgeScore:
    return JudgeScore(None, CUT_OFF) if reply.is_cut_off else read_verdict(reply.content)


def _read_text(reply: ChatReply) -> JudgeScore:
    return JudgeScore(None, text=reply.content.encode("utf-8", "replace").decode("utf-8"))


def _results(found: Sequence[JudgeScore | Future[JudgeScore]]) -> list[JudgeScore]:
    wait([each for each in found if isinstance(each, Future)])
    return [each.result() if isinstance(each, Future) else each for each in found]
