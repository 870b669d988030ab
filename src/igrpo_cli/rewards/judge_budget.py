"""What the judge may still be asked: the calls and tokens of a whole run, of all its processes together."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from igrpo_cli.errors import IgrpoError
from igrpo_cli.rewards.judge_cache import JudgementCache

CALLS_BETWEEN_READS = 64
"""What other processes have judged is read so often, and before every call when so few are left."""


class CallBudget:
    """Counts what the cache has recorded and what is under way. May be used from any thread.

    The calls of this process never exceed `max_calls`. Other processes at work at the same time are seen when they
    have recorded a call: they may exceed it by what they have under way. Tokens are known when a call is over, so
    `max_tokens` may be exceeded by those of the calls under way.
    """

    def __init__(self, cache: JudgementCache, max_calls: int | None, max_tokens: int | None) -> None:
        self._cache = cache
        self._max_calls = max_calls
        self._max_tokens = max_tokens
        self._changed = threading.Condition()
        self._num_under_way = 0
        self._num_until_read = 0

    def read_others(self) -> None:
        """Take note of what other processes have judged, if it is time to."""
        with self._changed:
            self._num_until_read -= 1
            if self._num_until_read >= 0 and self._num_calls_left() > CALLS_BETWEEN_READS:
                return
            self._num_until_read = CALLS_BETWEEN_READS
        self._cache.read_others()

    @contextmanager
    def one_call(self) -> Iterator[None]:
        """Within this block one call may be made. Raises IgrpoError where there is none left.

        Waits while the last ones are under way: one that fails is given back.
        """
        with self._changed:
            self._changed.wait_for(self._is_decided)
            self._require_some()
            self._num_under_way += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_under_way -= 1
                self._changed.notify_all()

    def _is_decided(self) -> bool:
        """Whether it is known if there is a call left."""
        if self._max_calls is None or self._is_spent():
            return True
        return self._cache.num_calls + self._num_under_way < self._max_calls

    def _is_spent(self) -> bool:
        calls, tokens = self._cache.num_calls, self._cache.num_tokens
        return (self._max_calls is not None and calls >= self._max_calls) or (
            self._max_tokens is not None and tokens >= self._max_tokens
        )

    def _num_calls_left(self) -> float:
        """An estimate, from the mean tokens of a call so far."""
        calls, tokens = self._cache.num_calls, self._cache.num_tokens
        left = float("inf")
        if self._max_calls is not None:
            left = self._max_calls - calls - self._num_under_way
        if self._max_tokens is not None and tokens:
            left = min(left, (self._max_tokens - tokens) * calls / tokens - self._num_under_way)
        return left

    def _require_some(self) -> None:
        for name, used, most in (
            ("calls", self._cache.num_calls, self._max_calls),
            ("tokens", self._cache.num_tokens, self._max_tokens),
        ):
            if most is not None and used >= most:
                raise IgrpoError(
                    f"the judge's budget of this run is spent: {used} {name} were used, and judge.max_{name} is {most}",
                    hint=f"raise judge.max_{name} and run the same command again: what was judged is kept",
                )
