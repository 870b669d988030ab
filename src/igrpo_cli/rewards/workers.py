"""A pool of grading processes that can be killed, so that no completion can hang, crash or sway the others.

A process of its own per worker, started from the interpreter and not forked: it inherits no torch, no
thread, no signal handler and no open file. The kernel ends a worker whose row uses too much CPU time
(a verdict that does not depend on how busy the machine is), the pool starts another one, and the other
rows do not notice.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from queue import SimpleQueue
from typing import Any

from igrpo_cli.errors import IgrpoError, UsageError
from igrpo_cli.records import Grade
from igrpo_cli.rewards.worker_process import GradingLimits, Row, WorkerEnded, WorkerProcess

__all__ = ["GradingLimits", "GradingPool"]

Pair = tuple[str, str]
"""(completion, reference)"""

ROWS_PER_CHUNK = 8
"""Rows that are sent to a worker at once; each is answered by itself."""

START_ATTEMPTS = 3


class GradingPool:
    """Grades (completion, reference) pairs in `num_workers` processes. Close it, or use it in a `with`.

    The constructor returns at once; the workers import sympy while the caller goes on. May be used
    from any thread. Results depend on the pairs alone, not on order, load or number of workers.
    """

    def __init__(
        self,
        num_workers: int = 2,
        limits: GradingLimits | None = None,
        functions: Mapping[str, str] | None = None,
    ) -> None:
        """`functions` are the user's own, {name: module:function}: asked of every row, beside the verdict."""
        if num_workers < 1:
            raise UsageError(f"a grading pool needs at least one worker, not {num_workers}")
        self._reasons: list[str] = []
        self._chunks: _Chunks = SimpleQueue()
        self._batches: set[_Batch] = set()
        self._lock = threading.Lock()
        self._closed = False
        limits = limits or GradingLimits()
        if functions:
            _require_functions(limits, functions)
        self._keepers = [_Keeper(self._chunks, self._reasons, limits, functions) for _ in range(num_workers)]
        for keeper in self._keepers:
            keeper.start()

    @property
    def ungraded_reasons(self) -> Counter[str]:
        """How often each reason made a row `ungraded` so far, for the log; no text of a model is in it."""
        return Counter(self._reasons)

    def submit(self, pairs: Sequence[Pair], contexts: Sequence[Mapping[str, Any]] | None = None) -> Future[list[Grade]]:
        """Starts grading `pairs`; the future's result is one grade per pair, in order.

        `contexts`, one per pair, hold what the user's own functions may ask for beyond the pair itself.
        The future raises IgrpoError when workers cannot be started, and is cancelled when the pool closes.
        """
        contexts = contexts or [{}] * len(pairs)
        batch = _Batch([(*pair, context) for pair, context in zip(pairs, contexts, strict=True)])
        with self._lock:
            if self._closed:
                raise IgrpoError("the grading pool is closed")
            self._batches.add(batch)
            batch.future.add_done_callback(lambda _: self._batches.discard(batch))
            for first in range(0, len(pairs), ROWS_PER_CHUNK):
                self._chunks.put((batch, list(range(first, min(first + ROWS_PER_CHUNK, len(pairs))))))
        if not pairs:
            batch.future.set_result([])
        return batch.future

    def grade(self, pairs: Sequence[Pair]) -> list[Grade]:
        """Grades `pairs` and waits for the result."""
        return self.submit(pairs).result()

    def close(self) -> None:
        """Ends the workers at once; what is still being graded is cancelled. Closing twice is fine."""
        with self._lock:
            self._closed = True
            unfinished = list(self._batches)
        for batch in unfinished:
            batch.future.cancel()
        for keeper in self._keepers:
            self._chunks.put(None)
            keeper.stop()
        for keeper in self._keepers:
            keeper.join()

    def __enter__(self) -> GradingPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _require_functions(limits: GradingLimits, functions: Mapping[str, str]) -> None:
    """Start one worker to see that the user's functions can be called, before anything is sampled for them."""
    worker = WorkerProcess(limits, functions)
    try:
        worker.wait_until_ready()
    except WorkerEnded as end:
        raise IgrpoError(
            f"a grading worker with the functions {', '.join(functions)} ended as it started: {end.reason}",
            hint="raise reward.memory_mb, or import less in their modules",
        ) from end
    finally:
        worker.close()


class _Batch:
    """The rows of one `submit` and their grades so far."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.future: Future[list[Grade]] = Future()
        self._grades: dict[int, Grade] = {}
        self._lock = threading.Lock()

    def record(self, index: int, grade: Grade) -> None:
        with self._lock:
            self._grades[index] = grade
            if len(self._grades) < len(self.rows):
                return
        with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
            self.future.set_result([self._grades[row] for row in range(len(self.rows))])

    def fail(self, error: Exception) -> None:
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)


_Chunks = SimpleQueue[tuple[_Batch, list[int]] | None]
"""Work for the keepers: rows of a batch, by index; None ends one keeper."""


class _Stopped(Exception):
    """The pool closes."""


class _Keeper(threading.Thread):
    """The thread that feeds one worker at a time and replaces it when it ends."""

    def __init__(
        self, chunks: _Chunks, reasons: list[str], limits: GradingLimits, functions: Mapping[str, str] | None
    ) -> None:
        super().__init__(name="igrpo-grading", daemon=True)
        self._chunks = chunks
        self._reasons = reasons
        self._limits = limits
        self._functions = functions
        self._worker: WorkerProcess | None = None
        self._stopped = False
        self._lock = threading.Lock()

    def stop(self) -> None:
        """Ends the worker, and with it the thread, from another thread."""
        with self._lock:
            self._stopped = True
            if self._worker is not None:
                self._worker.kill()

    def run(self) -> None:
        with contextlib.suppress(Exception):  # the first chunk tries again and says what is wrong
            self._start_worker()
        while (chunk := self._chunks.get()) is not None:
            batch, rows = chunk
            try:
                self._grade(batch, rows)
            except _Stopped:
                break
            except Exception as error:
                self._drop_worker()
                batch.fail(error)
        self._drop_worker()

    def _grade(self, batch: _Batch, rows: list[int]) -> None:
        """Grades `rows` of `batch`. A row whose worker dies without reaching a limit is tried once more."""
        tried_before = -1
        while rows and not batch.future.done():
            worker = self._ready_worker()
            start = time.perf_counter()
            try:
                worker.send([batch.rows[row] for row in rows])
                while rows:
                    start = time.perf_counter()
                    reply = worker.receive()
                    self._record(batch, rows.pop(0), reply)
                    if reply["leaving"]:
                        self._drop_worker()
                        break
            except WorkerEnded as end:
                self._drop_worker()
                if end.is_final or rows[0] == tried_before:
                    reply = {"verdict": "ungraded", "extracted_answer": None, "reason": end.reason, "parts": {}}
                    self._record(batch, rows.pop(0), {**reply, "seconds": time.perf_counter() - start})
                else:
                    tried_before = rows[0]

    def _record(self, batch: _Batch, row: int, reply: dict[str, Any]) -> None:
        if reply["reason"]:
            self._reasons.append(reply["reason"])
        keys = ("verdict", "extracted_answer", "seconds", "reason", "parts")
        batch.record(row, Grade(**{key: reply[key] for key in keys}))

    def _ready_worker(self) -> WorkerProcess:
        """A worker that has imported everything. Raises IgrpoError when none can be started."""
        for _ in range(START_ATTEMPTS):
            worker = self._start_worker()
            try:
                worker.wait_until_ready()
            except WorkerEnded as end:
                self._drop_worker()
                last = end
            else:
                return worker
        raise IgrpoError(f"no grading worker can be started: {last.reason}", hint="free memory, or use fewer workers")

    def _start_worker(self) -> WorkerProcess:
        with self._lock:
            if self._stopped:
                raise _Stopped
            if self._worker is None:
                self._worker = WorkerProcess(self._limits, self._functions)
            return self._worker

    def _drop_worker(self) -> None:
        with self._lock:
            if self._worker is not None:
                self._worker.close()
            self._worker = None
