"""A pool of grading processes that can be killed, so that no completion can hang, crash or sway the others.

A process of its own per worker, started from the interpreter and not forked: it inherits no torch, no
thread, no signal handler and no open file. The kernel ends a worker whose row uses too much CPU time
(a verdict that does not depend on how busy the machine is), the pool starts another one, and the other
rows do not notice.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from functools import partial
from multiprocessing import Pipe
from queue import SimpleQueue
from typing import Any

from igrpo_cli.config.rewards import RewardSection
from igrpo_cli.errors import IgrpoError, UsageError
from igrpo_cli.records import Grade

Pair = tuple[str, str]
"""(completion, reference)"""

ROWS_PER_CHUNK = 8
"""Rows that are sent to a worker at once; each is answered by itself."""

START_ATTEMPTS = 3


Row = tuple[str, str, Mapping[str, Any]]
"""(completion, reference, what else a user's own functions may ask for)"""

START_SECONDS = 600.0
"""Most wall time that a worker may take to import sympy, on however crowded a machine."""

SECONDS_TO_EXIT = 30.0


WALL_SECONDS = 600.0
"""Wall time limit of a row, for a worker that hangs without using CPU time. So far above `cpu_seconds` that load
never decides."""


class GradingPool:
    """Grades (completion, reference) pairs in `config.num_workers` processes. Close it, or use it in a `with`.

    The constructor returns at once; the workers import sympy while the caller goes on. May be used
    from any thread. Results depend on the pairs alone, not on order, load or number of workers.
    """

    def __init__(
        self,
        config: RewardSection,
        functions: Mapping[str, str] | None = None,
        *,
        wall_seconds: float = WALL_SECONDS,
    ) -> None:
        """`functions` are the user's own, {name: module:function}: asked of every row, beside the verdict."""
        self._reasons: list[str] = []
        self._chunks: _Chunks = SimpleQueue()
        self._batches: set[_Batch] = set()
        self._lock = threading.Lock()
        self._closed = False
        start = partial(WorkerProcess, config, functions, wall_seconds)
        if functions:
            _require_functions(start, functions)
        self._keepers = [_Keeper(self._chunks, self._reasons, start) for _ in range(config.num_workers)]
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


def _require_functions(start: Callable[[], WorkerProcess], functions: Mapping[str, str]) -> None:
    """Start one worker to see that the user's functions can be called, before anything is sampled for them."""
    worker = start()
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

    def __init__(self, chunks: _Chunks, reasons: list[str], start: Callable[[], WorkerProcess]) -> None:
        super().__init__(name="igrpo-grading", daemon=True)
        self._chunks = chunks
        self._reasons = reasons
        self._start = start
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
                self._worker = self._start()
            return self._worker

    def _drop_worker(self) -> None:
        with self._lock:
            if self._worker is not None:
                self._worker.close()
            self._worker = None


class WorkerEnded(Exception):
    """The worker died or was ended while it held a row; `is_final` when the row itself is the cause."""

    def __init__(self, reason: str, *, is_final: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_final = is_final


class WorkerProcess:
    """One grading process and the pipe to it."""

    def __init__(self, config: RewardSection, functions: Mapping[str, str] | None, wall_seconds: float) -> None:
        """`functions`: the user's own, {name: module:function}."""
        self._wall_seconds = wall_seconds
        self._pipe, theirs = Pipe()
        limits = {"cpu_seconds": config.cpu_seconds, "memory_mb": config.memory_mb}
        arguments = [str(theirs.fileno()), str(os.getpid()), json.dumps(limits), json.dumps(functions or {})]
        # The hash seed orders sympy's sets alike in every run; -P keeps the current directory out of the path.
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "igrpo_cli.rewards.grading_worker", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            env={**os.environ, **single, "PYTHONPATH": path, "PYTHONHASHSEED": "0"},
        )
        theirs.close()
        self._is_ready = False

    def wait_until_ready(self) -> None:
        """Raises UsageError for a function of the user's that is none, IgrpoError with whatever else the worker says.

        Raises WorkerEnded when it says nothing.
        """
        if self._is_ready:
            return
        message = self._receive(START_SECONDS)
        if "hint" in message:
            raise UsageError(message["failed"], hint=message["hint"])
        if "failed" in message:
            raise IgrpoError(
                f"a grading worker cannot start: {message['failed']}",
                hint=f"{sys.executable} -c 'import math_verify'",
            )
        self._is_ready = True

    def send(self, rows: Sequence[Row]) -> None:
        try:
            self._pipe.send_bytes(json.dumps(rows).encode("ascii"))
        except OSError:
            raise self._ended() from None

    def receive(self) -> dict[str, Any]:
        """The reply for the next row that was sent. Raises WorkerEnded instead of waiting for ever."""
        return self._receive(self._wall_seconds)

    def _receive(self, seconds: float) -> dict[str, Any]:
        try:
            if not self._pipe.poll(seconds):
                raise WorkerEnded("wall time limit", is_final=True)
            message: dict[str, Any] = json.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            raise self._ended() from None
        return message

    def _ended(self) -> WorkerEnded:
        try:
            number = -self._process.wait(SECONDS_TO_EXIT)
        except subprocess.TimeoutExpired:
            return WorkerEnded("the worker closed its pipe", is_final=False)
        if number == signal.SIGPROF:
            return WorkerEnded("CPU time limit", is_final=True)
        how = signal.Signals(number).name if number > 0 else f"exit code {-number}"
        return WorkerEnded(f"the worker ended with {how}", is_final=False)

    def kill(self) -> None:
        """Ends the process; whoever waits on its pipe sees the end."""
        self._process.kill()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._pipe.close()
