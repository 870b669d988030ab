"""A model as the judge: how far an answer agrees with the reference, in [0, 1], for answers that no program compares.

The judge sees the problem, the reference and the marked answer, never the reasoning. Where it does not give a verdict
no score is made up: the answer is not judged, and says why. See docs/judge.md.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from igrpo_cli.errors import IgrpoError, UsageError
from igrpo_cli.http_client import ClosedError, HttpClient
from igrpo_cli.rewards.equivalence import is_blank
from igrpo_cli.rewards.extraction import marked_answer
from igrpo_cli.rewards.judge_budget import CallBudget
from igrpo_cli.rewards.judge_cache import JudgementCache
from igrpo_cli.rewards.judge_prompt import CUT_OFF, PARSER_VERSION, JudgeScore, judge_messages, read_verdict
from igrpo_cli.rewards.judge_server import ChatReply, JudgeServer, RequestError
from igrpo_cli.seeds import derive_seed

__all__ = ["Judge", "JudgeRequest", "JudgeScore", "JudgeSettings"]

_PROBE = [{"role": "user", "content": "Write one line and nothing else:\nScore: 0"}]


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """Which model judges, how it is asked, and what it may cost."""

    endpoint: str
    """Base URL of any OpenAI-compatible server, with or without `/v1`."""
    model: str
    """As the server calls it; empty: the only one that it serves."""
    api_key_variable: str = "OPENAI_API_KEY"
    temperature: float = 0.0
    max_completion_tokens: int = 512
    """Most tokens of a judgement, those of a thought included."""
    max_answer_characters: int = 4096
    """A longer answer is not judged: a cut one could be another answer."""
    max_concurrency: int = 16
    """Most requests under way at a time, over all threads."""
    max_retries: int = 5
    timeout: float = 120.0
    """Seconds that a request may take."""
    max_calls: int | None = None
    """Budget of the whole run, over all its processes."""
    max_tokens: int | None = None
    """The same for prompt and completion tokens together, as the server counts them."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of a request, as the server knows them; they decide a judgement too."""


@dataclass(frozen=True, slots=True)
class JudgeRequest:
    """One completion to be judged."""

    problem: str
    reference: str
    completion: str


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    """One question to the judge, and whoever waits for the answer."""

    key: str
    messages: list[dict[str, str]]
    score: Future[JudgeScore]


class Judge:
    """Scores completions. Starts with the first one that needs a call; close it at the end."""

    def __init__(self, settings: JudgeSettings, cache_directory: Path) -> None:
        """Makes no request and reads no file. Raises UsageError for an endpoint that is no base URL."""
        if settings.max_concurrency < 1:
            raise UsageError(f"judge.max_concurrency must be at least 1, not {settings.max_concurrency}")
        self._settings = settings
        client = HttpClient(settings.endpoint, settings.timeout, settings.api_key_variable)
        self._server = JudgeServer(client, settings.max_retries, settings.api_key_variable)
        self._cache = JudgementCache(cache_directory)
        self._budget = CallBudget(self._cache, settings.max_calls, settings.max_tokens)
        self._model = settings.model
        self._naming = threading.Lock()
        self._probing = threading.Lock()
        self._lock = threading.Lock()
        self._is_closed = False
        self._under_way: dict[str, _Task] = {}
        self._todo: SimpleQueue[_Task | None] = SimpleQueue()
        self._num_threads = 0
        self._num_calls = self._num_tokens = self._num_cached = 0

    @property
    def num_calls(self) -> int:
        """Calls of this process that were answered."""
        return self._num_calls

    @property
    def num_tokens(self) -> int:
        """Tokens of these calls, prompts and completions, as the server counts them."""
        return self._num_tokens

    @property
    def num_cached(self) -> int:
        """Requests of this process that took no call of their own: judged before, or asked for twice."""
        return self._num_cached

    def score(self, requests: Sequence[JudgeRequest]) -> list[JudgeScore]:
        """The scores of `requests`, in order. May be called from several threads at once.

        Raises Interrupted where the judge does not answer, IgrpoError where the budget is spent or the server is not
        what the settings say, ClosedError when the judge is closed meanwhile. What was judged until then is kept.
        """
        found = [self._find(request) for request in requests]
        wait([each for each in found if isinstance(each, Future)])
        return [each.result() if isinstance(each, Future) else each for each in found]

    def close(self) -> None:
        """Break off what is under way: `score` then raises ClosedError. Closing twice is fine."""
        with self._lock:
            self._is_closed = True
        self._server.close()  # Whatever is tried from now on fails with ClosedError, the tasks that wait included.
        for _ in range(self._num_threads):
            self._todo.put(None)

    def _find(self, request: JudgeRequest) -> JudgeScore | Future[JudgeScore]:
        """The score of `request` if it takes no call, else where it will be found."""
        answer = marked_answer(request.completion)
        if answer is None:
            return JudgeScore(0.0)
        longest = self._settings.max_answer_characters
        if len(answer) > longest:
            return JudgeScore(None, f"answer longer than {longest} characters")
        if is_blank(answer):
            return JudgeScore(0.0)
        if is_blank(request.reference):
            return JudgeScore(None, "empty reference")
        messages = judge_messages(request.problem, request.reference, answer)
        key = self._key(messages)
        with self._lock:
            if self._is_closed:
                raise ClosedError
            if (known := self._cache.get(key)) is not None:
                self._num_cached += 1
                return known
            if (same := self._under_way.get(key)) is not None:
                self._num_cached += 1
                return same.score
            task = self._under_way[key] = _Task(key, messages, Future())
            self._todo.put(task)
            if self._num_threads < min(len(self._under_way), self._settings.max_concurrency):
                self._num_threads += 1
                threading.Thread(target=self._work, name=f"igrpo-judge-{self._num_threads}", daemon=True).start()
        return task.score

    def _key(self, messages: list[dict[str, str]]) -> str:
        """SHA-256 of all that decides a judgement."""
        decisive = {
            "model": self._named_model(),
            "messages": messages,
            "temperature": float(self._settings.temperature),
            "max_completion_tokens": self._settings.max_completion_tokens,
            "extra_body": dict(self._settings.extra_body),
            "parser_version": PARSER_VERSION,
        }
        return hashlib.sha256(json.dumps(decisive, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def _named_model(self) -> str:
        with self._naming:
            if not self._model:
                self._model = self._server.only_model()
            return self._model

    def _work(self) -> None:
        """What each thread does: one task after the other. Threads are daemons: none holds up the end."""
        while (task := self._todo.get()) is not None:
            try:
                score = self._judge(task)
            except BaseException as error:
                self._forget(task)
                task.score.set_exception(error)
                self._abandon(error)
            else:
                self._forget(task)
                task.score.set_result(score)

    def _forget(self, task: _Task) -> None:
        with self._lock:
            del self._under_way[task.key]

    def _abandon(self, error: BaseException) -> None:
        """Have the tasks that nobody has begun fail for what will fail them all."""
        while True:
            try:
                task = self._todo.get_nowait()
            except Empty:
                return
            if task is None:
                self._todo.put(None)  # The end of a thread: nothing comes after it.
                return
            self._forget(task)
            task.score.set_exception(error)

    def _judge(self, task: _Task) -> JudgeScore:
        self._budget.read_others()
        if (known := self._cache.get(task.key)) is not None:
            with self._lock:
                self._num_cached += 1
            return known
        with self._budget.one_call():
            request = self._request(task)
            try:
                reply = self._server.chat(request)
            except RequestError as error:
                self._require_well(error, request)
                return JudgeScore(None, error.reason)
            score = JudgeScore(None, CUT_OFF) if reply.is_cut_off else read_verdict(reply.content)
            # Drawn again, a reply may have a verdict: only at temperature 0 it is the same.
            is_final = score.score is not None or self._settings.temperature == 0
            self._record(task.key if is_final else None, score, reply)
        return score

    def _request(self, task: _Task) -> dict[str, Any]:
        request = {
            **self._settings.extra_body,
            "model": self._named_model(),
            "messages": task.messages,
            "temperature": self._settings.temperature,
            "max_completion_tokens": self._settings.max_completion_tokens,
        }
        return request if self._settings.temperature == 0 else {**request, "seed": derive_seed(0, "judge", task.key)}

    def _record(self, key: str | None, score: JudgeScore, reply: ChatReply) -> None:
        num_prompt_tokens, num_completion_tokens = reply.num_prompt_tokens or 0, reply.num_completion_tokens or 0
        self._cache.add(key, score, num_prompt_tokens, num_completion_tokens)
        with self._lock:
            self._num_calls += 1
            self._num_tokens += num_prompt_tokens + num_completion_tokens
        if self._settings.max_tokens is not None and reply.num_prompt_tokens is None:
            raise IgrpoError(
                f"{self._server.url} does not say how many tokens its replies take, so that "
                "judge.max_tokens cannot be held",
                hint="unset judge.max_tokens, and set judge.max_calls",
            )

    def _require_well(self, error: RequestError, request: dict[str, Any]) -> None:
        """Raise unless the judge answers something harmless in place of `request`, which failed with `error`."""
        with self._probing:
            if error.is_refusal and self._num_calls > 0:
                return  # It takes such requests: this one must be too long, or the like.
            try:
                reply = self._server.chat({**request, "messages": _PROBE}, max_retries=0)
            except RequestError as another:
                raise another.if_all_fail from another
            self._record(None, JudgeScore(None, "asked to see whether the judge is well"), reply)
