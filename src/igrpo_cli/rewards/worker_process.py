"""One grading process as its parent sees it: started clean, fed over a pipe, replaced when it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import Pipe
from typing import Any

from igrpo_cli.errors import IgrpoError, UsageError
from igrpo_cli.rewards.extraction import MAX_CHARACTERS

Row = tuple[str, str, Mapping[str, Any]]
"""(completion, reference, what else a user's own functions may ask for)"""

START_SECONDS = 600.0
"""Most wall time that a worker may take to import sympy, on however crowded a machine."""

SECONDS_TO_EXIT = 30.0


@dataclass(frozen=True, slots=True)
class GradingLimits:
    """What one completion may cost. Whoever costs more is `ungraded`."""

    cpu_seconds: float = 5.0
    """CPU time, enforced by the kernel. Ordinary answers take milliseconds, the slowest honest ones two seconds."""
    memory_mb: int = 2048
    """Address space of a worker in MiB (about 70 are Python and sympy)."""
    wall_seconds: float = 600.0
    """Backstop for a worker that hangs without using CPU time: far above `cpu_seconds`, so that load never decides."""
    max_characters: int = MAX_CHARACTERS
    """Longest answer that is compared; unmarked prose is read from its end up to this length."""


class WorkerEnded(Exception):
    """The worker died or was ended while it held a row; `is_final` when the row itself is the cause."""

    def __init__(self, reason: str, *, is_final: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_final = is_final


class WorkerProcess:
    """One grading process and the pipe to it."""

    def __init__(self, limits: GradingLimits, functions: Mapping[str, str] | None = None) -> None:
        """`functions`: the user's own, {name: module:function}."""
        self._limits = limits
        self._pipe, theirs = Pipe()
        arguments = [str(theirs.fileno()), str(os.getpid()), json.dumps(asdict(limits)), json.dumps(functions or {})]
        # The hash seed orders sympy's sets alike in every run; -P keeps the current directory out of the path.
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "igrpo_cli.rewards.worker_main", *arguments],
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
        return self._receive(self._limits.wall_seconds)

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
