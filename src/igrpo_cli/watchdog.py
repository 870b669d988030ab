"""A time limit for calls that may never return, such as a kernel or a collective that hangs.

Python runs a signal handler between two of its own instructions, so a process that is stuck in native code reacts to
neither SIGTERM nor Slurm's notice. Another thread still runs, because native code that waits releases the interpreter.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from igrpo_cli.errors import IgrpoError
from igrpo_cli.ui.console import print_error

NUM_CHECKS = 10
MAX_SECONDS_BETWEEN_CHECKS = 5.0


class Watchdog:
    """Ends the process with `error` and its exit code if a watched block of code takes longer than `seconds`.

    The stack of every thread is printed first. Nothing is cleaned up, as after SIGKILL: files on disk were published
    atomically. With `seconds` None there is no limit.
    """

    def __init__(self, seconds: float | None, error: IgrpoError) -> None:
        self._error = error
        self._watched: object | None = None
        """Identifies the block of code that is running."""
        self._closed = threading.Event()
        if seconds is not None:
            threading.Thread(target=self._watch, args=(seconds,), name="igrpo-watchdog", daemon=True).start()

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the code in the `with` statement."""
        self._watched = object()
        try:
            yield
        finally:
            self._watched = None

    def _watch(self, seconds: float) -> None:
        # Pauses are added up instead of reading the clock: a job that was suspended for a night does not hang.
        pause = min(seconds / NUM_CHECKS, MAX_SECONDS_BETWEEN_CHECKS)
        watched, passed = None, 0.0
        while not self._closed.wait(pause):
            passed = passed + pause if watched is not None and watched is self._watched else 0.0
            watched = self._watched
            if passed >= seconds:
                self._end()

    def _end(self) -> None:
        # stderr may be closed, or an object without a file descriptor.
        with suppress(AttributeError, OSError, RuntimeError, ValueError):
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
        print_error(self._error)
        sys.stderr.flush()
        os._exit(self._error.exit_code)
