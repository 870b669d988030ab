"""Signals become exceptions, so that a stop at any moment takes the same path as any other failure.

Everything on disk was published atomically. An immediate exit loses at most the block in progress. A process with a
command passes through three states. Before the command starts, a signal ends the process. While the command runs, the
first signal is raised as an exception. When the command has ended and its exit code is known, signals are ignored.

Imports almost nothing: until `exit_on_signal` is called, a signal kills the process without a message.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from igrpo_cli.errors import EXIT_CTRL_C, IgrpoError, Interrupted

REQUEUE_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Slurm's warning before the time limit, and the usual request to end."""

CLEAN_UP_SECONDS = 8.0
"""The process ends when its clean-up takes longer, or when a library has swallowed the exception."""


class CtrlC(IgrpoError):
    """The error message of a KeyboardInterrupt (exit 130)."""

    exit_code = EXIT_CTRL_C

    def __init__(self) -> None:
        super().__init__("interrupted by Ctrl-C", hint="run the same command again to continue")


class Stopped(KeyboardInterrupt):
    """A Ctrl-C while a command runs.

    A bare KeyboardInterrupt can leave code that runs in `exec`, as dataclasses do at import. Python remembers that and
    kills the process with SIGINT at its end, even when the exception was handled. A subclass avoids it.
    """


def exit_on_signal() -> None:
    """From now on a signal ends the process with a message and its exit code, because no command has started."""
    for each in (*REQUEUE_SIGNALS, signal.SIGINT):
        # A shell starts background jobs with Ctrl-C ignored.
        if each != signal.SIGINT or signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, _end_at_once)


def ignore_signals() -> None:
    """From now on ignore signals until the process has ended. Python would remove its own handlers earlier."""
    for each in (*REQUEUE_SIGNALS, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)


@contextmanager
def clean_interrupts() -> Iterator[None]:
    """Raise the first signal inside this context: SIGTERM and SIGUSR1 as Interrupted, Ctrl-C as KeyboardInterrupt.

    Later signals are ignored, but a Ctrl-C ends the process at once with the exit code of the first signal. The
    interrupt leaves the context even when a library turned it into another exception. Afterwards the earlier handlers
    are restored. Where the earlier handler was that of `exit_on_signal`, signals are ignored instead.
    """
    stop = _Stop()
    before = {each: signal.getsignal(each) for each in (*REQUEUE_SIGNALS, signal.SIGINT)}
    if before[signal.SIGINT] not in (signal.default_int_handler, _end_at_once):
        del before[signal.SIGINT]
    unraisable, sys.unraisablehook = sys.unraisablehook, stop.not_raised
    try:
        for each in before:
            signal.signal(each, stop)
        yield
    except Exception as error:
        interrupt = stop.raised or _interrupt_behind(error)
        if interrupt is None:
            raise
        raise interrupt from None
    finally:
        stop.close()
        for each, handler in before.items():
            signal.signal(each, signal.SIG_IGN if handler is _end_at_once else handler)
        sys.unraisablehook = unraisable


class _Stop:
    """The handler of all signals inside the context. It raises at most once."""

    def __init__(self) -> None:
        self.raised: BaseException | None = None
        self._first = 0
        self._is_over = False
        self._show = sys.unraisablehook

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._is_over:
            return
        if not self._first:
            self._first = number
            signal.signal(signal.SIGALRM, self)
            signal.setitimer(signal.ITIMER_REAL, CLEAN_UP_SECONDS)
            self.raised = Stopped() if number == signal.SIGINT else _error_of(number)
            raise self.raised
        if number not in REQUEUE_SIGNALS:
            _end_at_once(self._first, frame)

    def not_raised(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Handle an interrupt in a finaliser, which has no caller: Python would print it and continue."""
        if self.raised is not None and unraisable.exc_value is self.raised and not self._is_over:
            _end_at_once(self._first, None)
        self._show(unraisable)

    def close(self) -> None:
        """Ignore signals from now on: the outcome of the context is known."""
        self._is_over = True
        if self._first:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _end_at_once(number: int, _frame: FrameType | None) -> None:
    """Print what ended the process, and end it without any clean-up, as SIGKILL would."""
    error = _error_of(number)
    with suppress(OSError):
        os.write(2, f"error: {error.message}\nhint: {error.hint}\n".encode())
    os._exit(error.exit_code)


def _error_of(number: int) -> IgrpoError:
    """Return the message and exit code of a stop by signal `number`."""
    if number == signal.SIGINT:
        return CtrlC()
    return Interrupted(
        f"stopped by {signal.Signals(number).name}; complete blocks and shards are kept",
        hint="run the same command again to continue",
    )


def _interrupt_behind(error: BaseException | None) -> BaseException | None:
    """Return the interrupt that caused `error`. An interrupt during a lock or a clean-up can become another error."""
    while error is not None and not isinstance(error, Interrupted | KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error
