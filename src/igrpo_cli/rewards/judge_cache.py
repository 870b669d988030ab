"""Judgements on disk, and the budget of calls and tokens that is counted from them.

The cache is a directory of append-only JSONL files, one per process. Every task of a run reads all of them, and so
does a resumed run: no judgement is paid for twice. A line is `{"key", "score", "prompt_tokens", "completion_tokens",
"sha256"}`, with `reason` if the score is null, or `text` for a critique. A null key marks a call that counts in the
budget, but whose result another call may change; it is never looked up. `sha256` is the checksum of the other fields.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from igrpo_cli.errors import IgrpoError
from igrpo_cli.rewards.judge_chat import JudgeScore
from igrpo_cli.store.checksummed_json import checksummed_line, read_checksummed_line

CALLS_BETWEEN_READS = 64
"""Calls between two reads of the other processes' files; when fewer calls are left, each call reads them."""

_KEY = re.compile(r"[0-9a-f]{64}")


class _Line(NamedTuple):
    key: str | None
    score: JudgeScore
    num_tokens: int


class JudgementCache:
    """The judgements of all processes that share `directory`. Threads may share it.

    Raises OSError if the file system does. An incomplete last line, of a process that is writing or was killed, is read
    once it is complete. Other lines that are not judgements are counted and skipped.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())
        self._own = directory / f"{host}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        self._lock = threading.Lock()
        self._is_read = False
        self._num_bytes_read: dict[str, int] = {}
        self._scores: dict[str, JudgeScore] = {}
        self.num_calls = 0
        """Answered calls of all processes, as far as their files have been read."""
        self.num_tokens = 0
        """Prompt and completion tokens of these calls."""
        self.num_damaged = 0

    def get(self, key: str) -> JudgeScore | None:
        """Return the judgement under `key`; the first one if there are several."""
        with self._lock:
            if not self._is_read:
                self._read_others()
            return self._scores.get(key)

    def add(self, key: str | None, score: JudgeScore, num_prompt_tokens: int, num_completion_tokens: int) -> None:
        """Write one judgement to the file of this process. With key None it only counts in the budget."""
        record: dict[str, Any] = {
            "key": key,
            "score": score.score,
            **({} if score.reason is None else {"reason": score.reason}),
            **({} if score.text is None else {"text": score.text}),
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": num_completion_tokens,
        }
        line = checksummed_line(record) + b"\n"
        with self._lock:
            self._directory.mkdir(exist_ok=True)
            # The file is opened for every line: on a network file system others see only what was closed.
            try:
                with self._own.open("ab") as file:
                    file.write(line)
            except OSError:
                # A full disk may have left half a line, which would spoil the next one: go on in another file.
                self._num_bytes_read[self._own.name] = sys.maxsize
                self._own = self._own.with_stem(f"{self._own.stem}-{secrets.token_hex(4)}")
                raise
            self._count(_Line(key, score, num_prompt_tokens + num_completion_tokens))

    def read_others(self) -> None:
        """Read what other processes have added since the last call."""
        with self._lock:
            self._read_others()

    def _read_others(self) -> None:
        self._is_read = True
        for path in sorted(self._directory.glob("*.jsonl")):
            if path != self._own:
                self._read_new_lines(path)

    def _read_new_lines(self, path: Path) -> None:
        start = self._num_bytes_read.get(path.name, 0)
        if path.stat().st_size <= start:
            return
        with path.open("rb") as file:
            file.seek(start)
            lines = file.read().rpartition(b"\n")[0]
        if not lines:
            return
        self._num_bytes_read[path.name] = start + len(lines) + 1
        for line in lines.split(b"\n"):
            parsed = _parsed(line)
            if parsed is None:
                self.num_damaged += 1
            else:
                self._count(parsed)

    def _count(self, line: _Line) -> None:
        self.num_calls += 1
        self.num_tokens += line.num_tokens
        if line.key is not None:
            self._scores.setdefault(line.key, line.score)


class CallBudget:
    """The calls and tokens that a run may still use, over all its processes. Threads may share it.

    This process never exceeds `max_calls`. Concurrent processes see a call when it has been written, so together they
    may exceed `max_calls` by the calls in progress. The tokens of a call are known at its end, so `max_tokens` may be
    exceeded by those of the calls in progress.
    """

    def __init__(self, cache: JudgementCache, max_calls: int | None, max_tokens: int | None) -> None:
        self._cache = cache
        self._max_calls = max_calls
        self._max_tokens = max_tokens
        self._changed = threading.Condition()
        self._num_in_progress = 0
        self._num_until_read = 0

    def read_others(self) -> None:
        """Read the judgements of other processes if `CALLS_BETWEEN_READS` calls were made, or few are left."""
        with self._changed:
            self._num_until_read -= 1
            if self._num_until_read >= 0 and self._num_calls_left() > CALLS_BETWEEN_READS:
                return
            self._num_until_read = CALLS_BETWEEN_READS
        self._cache.read_others()

    @contextmanager
    def one_call(self) -> Iterator[None]:
        """Reserve one call for the block. Raises IgrpoError if the budget is spent.

        Waits if the calls in progress may use up the budget: one that fails does not count.
        """
        with self._changed:
            self._changed.wait_for(self._is_decided)
            self._require_not_spent()
            self._num_in_progress += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_in_progress -= 1
                self._changed.notify_all()

    def _is_decided(self) -> bool:
        """Return True if it is known whether a call is left, whatever becomes of the calls in progress."""
        if self._max_calls is None or self._spent() is not None:
            return True
        return self._cache.num_calls + self._num_in_progress < self._max_calls

    def _spent(self) -> tuple[str, int, int] | None:
        """Return name, use and limit of a budget that is spent."""
        calls = ("calls", self._cache.num_calls, self._max_calls)
        tokens = ("tokens", self._cache.num_tokens, self._max_tokens)
        for name, used, limit in (calls, tokens):
            if limit is not None and used >= limit:
                return name, used, limit
        return None

    def _require_not_spent(self) -> None:
        if spent := self._spent():
            name, used, limit = spent
            raise IgrpoError(
                f"the judge's budget of this run is spent: {used} {name} were used, and judge.max_{name} is {limit}",
                hint=f"raise judge.max_{name} and run the same command again: judgements are kept",
            )

    def _num_calls_left(self) -> float:
        """Estimate the calls left, from the mean number of tokens per call."""
        calls, tokens = self._cache.num_calls, self._cache.num_tokens
        left = float("inf")
        if self._max_calls is not None:
            left = self._max_calls - calls - self._num_in_progress
        if self._max_tokens is not None and tokens:
            left = min(left, (self._max_tokens - tokens) * calls / tokens - self._num_in_progress)
        return left


def _parsed(line: bytes) -> _Line | None:
    """Return the judgement in `line`; None if it is not exactly what `add` writes."""
    try:
        value = read_checksummed_line(line)
        key, score, reason, text = value["key"], value["score"], value.get("reason"), value.get("text")
        tokens = [value["prompt_tokens"], value["completion_tokens"]]
    except (ValueError, KeyError):
        return None
    is_key = key is None or (type(key) is str and _KEY.fullmatch(key) is not None)
    is_score = str in (type(reason), type(text)) if score is None else type(score) in (int, float) and 0 <= score <= 1
    if not (is_key and is_score and all(type(number) is int and number >= 0 for number in tokens)):
        return None
    return _Line(key, JudgeScore(None, reason, text) if score is None else JudgeScore(float(score)), sum(tokens))
