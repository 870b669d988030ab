"""An end for a call that never returns, such as a kernel or a collective that hangs.

Python runs the handler of a signal between two of its own instructions, so a process that is stuck in native code
hears neither SIGTERM nor Slurm's notice. A thread does: native code that waits gives the interpreter up.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from igrpo_cli.errors import IgrpoError
from igrpo_cli.ui.console import print_error

LOOKS = 10
MOST_BETWEEN_LOOKS = 5.0
"""Seconds."""


class Watchdog:
    """Ends the process with `error` and its exit code once a watched block of code has taken `seconds`.

    Nothing is cleaned up then, as after SIGKILL: whatever is on disk was published in one piece. None: no end.
    """

    def __init__(self, seconds: float | None, error: IgrpoError) -> None:
        self._error = error
        self._watched: object | None = None
        """The block of code that is running now."""
        self._closed = threading.Event()
        if seconds is not None:
            threading.Thread(target=self._watch, args=(seconds,), name="igrpo-watchdog", daemon=True).start()

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the block."""
        self._watched = object()
        try:
            yield
        finally:
            self._watched = None

    def _watch(self, seconds: float) -> None:
        # The pauses are counted, not the clock read: a job that was suspended for a night has not hung.
        pause = min(seconds / LOOKS, MOST_BETWEEN_LOOKS)
        watched, passed = None, 0.0
        while not self._closed.wait(pause):
            passed = passed + pause if watched is not None and watched is self._watched else 0.0
            watched = self._watched
            if passed >= seconds:
                print_error(self._error)
                sys.stderr.flush()
                os._exit(self._error.exit_code)
