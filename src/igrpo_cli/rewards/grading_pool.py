"""A pool of grading processes that can be killed, so that no completion can hang, crash or influence the others.

Each worker is a process started from the interpreter, not forked: it inherits no torch, no thread, no signal handler
and no open file. The kernel ends a worker whose row uses too much CPU time, so a verdict does not depend on the load
of the machine. The pool starts another worker, and the other rows are graded as if nothing had happened.

A reward function of whole groups is called with the rows of one group, after they are graded.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from multiprocessing import Pipe
from operator import itemgetter
from queue import SimpleQueue
from typing import Any

from igrpo_cli.config.rewards import RewardSection
from igrpo_cli.errors import IgrpoError, UsageError
from igrpo_cli.records import Grade
from igrpo_cli.rewards.functions import FunctionSignature

Pair = tuple[str, str]
"""(completion, reference)"""

Row = tuple[str, str, Mapping[str, Any]]
"""(completion, reference, further arguments of the user's reward functions)"""

ROWS_PER_CHUNK = 8
"""Rows that are sent to a worker at once; the worker replies to each row."""

START_ATTEMPTS = 3

START_SECONDS = 600.0
"""Maximum wall time for a worker to import sympy, also on a very busy machine."""

SECONDS_TO_EXIT = 30.0


WALL_SECONDS = 600.0
"""Wall time limit of a row, for a worker that hangs without using CPU time; so long that the load never decides."""


@dataclass(frozen=True, slots=True)
class PendingGrades:
    """The grades of one `GradingPool.submit`, some of which may still be in progress."""

    _chunks: Sequence[Future[list[Grade]]]

    def result(self) -> list[Grade]:
        """Wait for the grades and return them, in order.

        Raises IgrpoError if no worker can be started, and CancelledError if the pool is closed.
        """
        try:
            # One call wakes this thread once, not for every chunk, and it returns at the first error.
            for chunk in wait(self._chunks, return_when=FIRST_EXCEPTION).done:
                chunk.result()
            return [grade for chunk in self._chunks for grade in chunk.result()]
        except BaseException:
            for chunk in self._chunks:
                chunk.cancel()
            raise


class GradingPool:
    """Grades (completion, reference) pairs in `config.num_workers` processes. Close it, or use it in a `with`.

    The constructor returns at once; the workers import sympy in the background. Threads may share a pool. A grade
    depends on its pair alone, not on order, load or number of workers.
    """

    def __init__(
        self,
        config: RewardSection,
        functions: Mapping[str, str] | None = None,
        *,
        wall_seconds: float = WALL_SECONDS,
    ) -> None:
        """Start the workers. `functions` are the user's own, {name: module:function}, called with every row.

        Raises UsageError if a function cannot be called, and IgrpoError if a worker cannot start with them.
        """
        start = partial(WorkerProcess, config, functions, wall_seconds)
        self.signatures = _signatures(start, functions) if functions else {}
        """What the functions are called with, by name."""
        self._per_group = [name for name, signature in self.signatures.items() if signature.is_batched]
        self._reasons: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._is_closed = False
        self._supervisors = [WorkerSupervisor(start) for _ in range(config.num_workers)]
        self._idle: SimpleQueue[WorkerSupervisor] = SimpleQueue()
        # Threads of the pool start the workers: Linux ends a worker with the thread that started it.
        self._threads = ThreadPoolExecutor(config.num_workers, "igrpo-grading")
        for supervisor in self._supervisors:
            self._idle.put(supervisor)
            self._threads.submit(supervisor.start)  # an error is raised again by the first row

    @property
    def ungraded_reasons(self) -> Counter[str]:
        """How often each reason has made a row `ungraded`; holds no text of a model."""
        with self._lock:
            return self._reasons.copy()

    def submit(
        self,
        pairs: Sequence[Pair],
        contexts: Sequence[Mapping[str, Any]] | None = None,
        groups: Sequence[int] | None = None,
    ) -> PendingGrades:
        """Start grading `pairs`; the result has one grade per pair, in order.

        `contexts`, one per pair, hold further arguments of the user's functions, and the text of the problem as
        `problem`, of which an answer must be no copy. Functions of whole groups are called with each run of equal
        `groups`, or with each pair alone. Raises IgrpoError if the pool is closed.
        """
        contexts = contexts or [{}] * len(pairs)
        rows: list[Row] = [(*pair, context) for pair, context in zip(pairs, contexts, strict=True)]
        chunks = [rows[first : first + ROWS_PER_CHUNK] for first in range(0, len(rows), ROWS_PER_CHUNK)]
        if self._per_group:
            numbered = zip(range(len(rows)) if groups is None else groups, rows, strict=True)
            chunks = [[row for _, row in group] for _, group in groupby(numbered, key=itemgetter(0))]
        with self._lock:
            if self._is_closed:
                raise IgrpoError("the grading pool is closed")
            return PendingGrades([self._threads.submit(self._grade_chunk, chunk) for chunk in chunks])

    def grade(self, pairs: Sequence[Pair]) -> list[Grade]:
        """Grade `pairs` and wait for the result."""
        return self.submit(pairs).result()

    def close(self) -> None:
        """End the workers at once; rows in progress are cancelled. Closing twice has no effect."""
        with self._lock:
            self._is_closed = True
        for supervisor in self._supervisors:
            supervisor.stop()
        self._threads.shutdown()  # chunks that wait begin, and raise CancelledError
        for supervisor in self._supervisors:
            supervisor.drop_worker()

    def __enter__(self) -> GradingPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _grade_chunk(self, rows: Sequence[Row]) -> list[Grade]:
        supervisor = self._idle.get()
        try:
            grades = supervisor.grade(rows, self._per_group)
        except BaseException:
            supervisor.drop_worker()
            raise
        finally:
            self._idle.put(supervisor)
        with self._lock:
            self._reasons.update(grade.reason for grade in grades if grade.reason)
        return grades


class WorkerSupervisor:
    """Feeds one worker process at a time, and replaces it when it ends."""

    def __init__(self, start: Callable[[], WorkerProcess]) -> None:
        self._start = start
        self._worker: WorkerProcess | None = None
        self._is_stopped = False
        self._lock = threading.Lock()

    def start(self) -> WorkerProcess:
        """Return the worker, and start one if there is none. Raises CancelledError after `stop`."""
        with self._lock:
            if self._is_stopped:
                raise CancelledError
            if self._worker is None:
                self._worker = self._start()
            return self._worker

    def grade(self, rows: Sequence[Row], per_group: Sequence[str] = ()) -> list[Grade]:
        """Return one grade per row. A row whose worker ends without reaching a limit is graded once more.

        The rows are a group for the functions `per_group`, which are called after they are graded. Raises IgrpoError
        if no worker can be started, and CancelledError after `stop`.
        """
        grades: list[Grade] = []
        repeated = -1
        while len(grades) < len(rows):
            worker = self._ready_worker()
            start = time.perf_counter()
            try:
                worker.send(rows[len(grades) :])
                while len(grades) < len(rows):
                    start = time.perf_counter()
                    reply = worker.receive()
                    is_last = reply.pop("is_last")
                    grades.append(Grade(**reply))
                    if is_last:
                        self.drop_worker()
                        break
            except WorkerEndedError as end:
                self.drop_worker()
                if end.is_final or repeated == len(grades):
                    grades.append(Grade("ungraded", None, time.perf_counter() - start, end.reason))
                else:
                    repeated = len(grades)
        for name in per_group:
            grades = self._with_function(name, rows, grades)
        if self._is_stopped:
            raise CancelledError  # the last row may be ungraded because its worker was killed
        return grades

    def _with_function(self, name: str, rows: Sequence[Row], grades: Sequence[Grade]) -> list[Grade]:
        """Return the grades with the values of a function of whole groups; a row without one is `ungraded`."""
        graded = [(*row, grade.extracted_answer, grade.verdict) for row, grade in zip(rows, grades, strict=True)]
        reason = ""
        for _ in range(2):  # once more where the worker ends without reaching a limit
            worker = self._ready_worker()
            try:
                worker.send([{"function": name, "rows": graded}])
                reply = worker.receive(len(rows))
            except WorkerEndedError as end:
                self.drop_worker()
                reason = f"{end.reason} in the reward function {name}, called with a group of {len(rows)}"
                if end.is_final:
                    break
            else:
                if reply["is_last"]:
                    self.drop_worker()
                found = zip(grades, reply["values"], reply["reasons"], strict=True)
                return [_with_part(grade, name, value, reason) for grade, value, reason in found]
        return [_with_part(grade, name, None, reason) for grade in grades]

    def stop(self) -> None:
        """End the worker, and with it `grade` in another thread."""
        with self._lock:
            self._is_stopped = True
            if self._worker is not None:
                self._worker.kill()

    def drop_worker(self) -> None:
        """End the worker, if there is one, and forget it."""
        with self._lock:
            if self._worker is not None:
                self._worker.close()
            self._worker = None

    def _ready_worker(self) -> WorkerProcess:
        """Return a worker that has imported everything. Raises IgrpoError if none can be started."""
        for _ in range(START_ATTEMPTS):
            worker = self.start()
            try:
                worker.wait_until_ready()
            except WorkerEndedError as end:
                self.drop_worker()
                last = end
            else:
                return worker
        raise IgrpoError(f"no grading worker can be started: {last.reason}", hint="free memory, or use fewer workers")


class WorkerEndedError(Exception):
    """The worker ended while it had a row; `is_final` if the row is the cause."""

    def __init__(self, reason: str, *, is_final: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_final = is_final


class WorkerProcess:
    """One grading process and the pipe to it."""

    def __init__(self, config: RewardSection, functions: Mapping[str, str] | None, wall_seconds: float) -> None:
        """Start the process. `functions` are the user's own, {name: module:function}."""
        self._wall_seconds = wall_seconds
        self._pipe, theirs = Pipe()
        limits = {
            "cpu_seconds": config.cpu_seconds,
            "memory_mb": config.memory_mb,
            "refuse_copied_answers": config.refuse_copied_answers,
        }
        arguments = [str(theirs.fileno()), str(os.getpid()), json.dumps(limits), json.dumps(functions or {})]
        # The hash seed fixes the order of sympy's sets; -P keeps the current directory out of the path.
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
        self.signatures: dict[str, FunctionSignature] = {}
        """What the user's functions are called with, by name. The worker says so when it is ready."""

    def wait_until_ready(self) -> None:
        """Wait until the worker has imported everything.

        Raises UsageError for a user's function that cannot be called, IgrpoError for any other message of the worker,
        and WorkerEndedError if it ends without one.
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
        self.signatures = {name: FunctionSignature(**fields) for name, fields in message.get("functions", {}).items()}
        self._is_ready = True

    def send(self, rows: Sequence[Row] | Sequence[Mapping[str, Any]]) -> None:
        """Send rows to the worker, or a group and a function. Raises WorkerEndedError."""
        try:
            self._pipe.send_bytes(json.dumps(rows).encode("ascii"))
        except OSError:
            raise self._ended() from None

    def receive(self, num_rows: int = 1) -> dict[str, Any]:
        """Return the reply for the next row or group. Raises WorkerEndedError, at the latest after the wall time limit.

        The limit of a group is that of its `num_rows` rows.
        """
        return self._receive(self._wall_seconds * num_rows)

    def kill(self) -> None:
        """End the process; a thread that waits on its pipe sees the end."""
        self._process.kill()

    def close(self) -> None:
        """End the process and close the pipe."""
        self._process.kill()
        self._process.wait()
        self._pipe.close()

    def _receive(self, seconds: float) -> dict[str, Any]:
        try:
            if not self._pipe.poll(seconds):
                raise WorkerEndedError("wall time limit", is_final=True)
            message: dict[str, Any] = json.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            raise self._ended() from None
        return message

    def _ended(self) -> WorkerEndedError:
        try:
            number = -self._process.wait(SECONDS_TO_EXIT)
        except subprocess.TimeoutExpired:
            return WorkerEndedError("the worker closed its pipe", is_final=False)
        if number == signal.SIGPROF:
            return WorkerEndedError("CPU time limit", is_final=True)
        how = signal.Signals(number).name if number > 0 else f"exit code {-number}"
        return WorkerEndedError(f"the worker ended with {how}", is_final=False)


def _with_part(grade: Grade, name: str, value: float | None, reason: str | None) -> Grade:
    if reason is not None:
        return replace(grade, verdict="ungraded", reason=reason)
    return grade if value is None else replace(grade, parts={**grade.parts, name: value})


def _signatures(start: Callable[[], WorkerProcess], functions: Mapping[str, str]) -> dict[str, FunctionSignature]:
    """Start one worker to learn how the user's functions are called, and that they can be, before anything is sampled.

    Raises UsageError if a function cannot be called, and IgrpoError if the worker cannot start.
    """
    worker = start()
    try:
        worker.wait_until_ready()
        return worker.signatures
    except WorkerEndedError as end:
        raise IgrpoError(
            f"a grading worker with the functions {', '.join(functions)} ended as it started: {end.reason}",
            hint="raise reward.memory_mb, or import less in their modules",
        ) from end
    finally:
        worker.close()
