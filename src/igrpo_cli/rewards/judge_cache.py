"""Judgements on disk: what was paid for once is read by every task of a run, and by the run when it is resumed.

A directory of append-only JSONL files, one for each process that judges, so that no two ever write the same one. A
line is `{"key", "score", "prompt_tokens", "completion_tokens", "sha256"}`, and `reason` where the score is null. A null
key marks a call that was paid for, but whose outcome another call may change: it counts, and is never looked up. The
hash is that of the other fields: one bit makes 0.5 of 0.7.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

from igrpo_cli.records import JUDGEMENT_HASH
from igrpo_cli.rewards.judge_prompt import JudgeScore
from igrpo_cli.store.checksummed_json import checksummed_line, read_checksummed_line

_KEY = re.compile(r"[0-9a-f]{64}")


class _Line(NamedTuple):
    key: str | None
    score: JudgeScore
    num_tokens: int


class JudgementCache:
    """The judgements of all processes that share `directory`. May be used from any thread.

    Reads and writes raise OSError where the file system does. A line of a writer that was killed while it wrote is
    waited for; other lines that are no judgements are passed over and counted.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())
        self._own = directory / f"{host}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        self._lock = threading.Lock()
        self._is_read = False
        self._read_up_to: dict[str, int] = {}
        self._scores: dict[str, JudgeScore] = {}
        self.num_calls = 0
        """Calls that were answered, of all processes, as far as they have been read."""
        self.num_tokens = 0
        """Their tokens, prompts and completions."""
        self.num_damaged = 0

    def get(self, key: str) -> JudgeScore | None:
        """What was judged under `key`; the first one where several processes did."""
        with self._lock:
            if not self._is_read:
                self._read_others()
            return self._scores.get(key)

    def add(self, key: str | None, score: JudgeScore, num_prompt_tokens: int, num_completion_tokens: int) -> None:
        """Keep one judgement: it is in the file when this returns. Key None: for the count alone."""
        record: dict[str, Any] = {
            "key": key,
            "score": score.score,
            **({} if score.reason is None else {"reason": score.reason}),
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": num_completion_tokens,
        }
        line = checksummed_line(record, JUDGEMENT_HASH) + b"\n"
        with self._lock:
            self._directory.mkdir(exist_ok=True)
            # Opened for every line: on a network file system others see what was written only after it is closed.
            try:
                with self._own.open("ab") as file:
                    file.write(line)
            except OSError:
                # On a full disk half a line may stand there now, which would swallow the next one.
                self._read_up_to[self._own.name] = sys.maxsize
                self._own = self._own.with_stem(f"{self._own.stem}-{secrets.token_hex(4)}")
                raise
            self._take(_Line(key, score, num_prompt_tokens + num_completion_tokens))

    def read_others(self) -> None:
        """Read what other processes have added meanwhile."""
        with self._lock:
            self._read_others()

    def _read_others(self) -> None:
        self._is_read = True
        for path in sorted(self._directory.glob("*.jsonl")):
            if path != self._own:
                self._read_on(path)

    def _read_on(self, path: Path) -> None:
        start = self._read_up_to.get(path.name, 0)
        if path.stat().st_size <= start:
            return
        with path.open("rb") as file:
            file.seek(start)
            whole = file.read().rpartition(b"\n")[0]
        if not whole:
            return
        self._read_up_to[path.name] = start + len(whole) + 1
        for line in whole.split(b"\n"):
            parsed = _parsed(line)
            if parsed is None:
                self.num_damaged += 1
            else:
                self._take(parsed)

    def _take(self, line: _Line) -> None:
        self.num_calls += 1
        self.num_tokens += line.num_tokens
        if line.key is not None:
            self._scores.setdefault(line.key, line.score)


def _parsed(line: bytes) -> _Line | None:
    """None where `line` is not exactly what `add` writes."""
    try:
        value = read_checksummed_line(line, JUDGEMENT_HASH)
        key, score, reason = value["key"], value["score"], value.get("reason")
        tokens = [value["prompt_tokens"], value["completion_tokens"]]
    except (ValueError, KeyError):
        return None
    is_key = key is None or (type(key) is str and _KEY.fullmatch(key) is not None)
    is_score = type(reason) is str if score is None else type(score) in (int, float) and 0 <= score <= 1
    if not (is_key and is_score and all(type(number) is int and number >= 0 for number in tokens)):
        return None
    return _Line(key, JudgeScore(None, reason) if score is None else JudgeScore(float(score)), sum(tokens))
