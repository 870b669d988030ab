"""Signals become exceptions, so that a stop at any moment takes the same path as any other failure.

Whatever is on disk was published atomically, so leaving at once loses at most the block in progress. In a process of
its own a command passes through three states: until it begins, a signal ends the process; while it works, the first
one is raised; once it has ended, and its exit code is decided, signals change nothing.

Imports next to nothing: whatever is imported before `exit_on_signal` is time in which a signal kills.
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
"""Slurm's notice before the time limit, and the usual request to end."""

SECONDS_TO_CLEAN_UP = 8.0
"""An interrupt that got lost in other people's code, or a clean-up that takes longer, ends with the process."""


class CtrlC(IgrpoError):
    """What is said of a KeyboardInterrupt (exit 130)."""

    exit_code = EXIT_CTRL_C

    def __init__(self) -> None:
        super().__init__("interrupted by Ctrl-C", hint="run the same command again, it goes on")


class Stopped(KeyboardInterrupt):
    """A Ctrl-C while a command works.

    Of a bare KeyboardInterrupt that leaves text being executed, as dataclasses do while they are imported, Python keeps
    a note, and for it kills the process at its end by SIGINT, though the interrupt was dealt with.
    """


def exit_on_signal() -> None:
    """From now on a signal ends the process with its exit code and what to type next: no command has begun."""
    for each in (*REQUEUE_SIGNALS, signal.SIGINT):
        # A shell's background jobs inherit that Ctrl-C is not for them.
        if each != signal.SIGINT or signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, _end_at_once)


def ignore_signals() -> None:
    """From now on signals change nothing, until the process is gone. Python would give its own handlers up earlier."""
    for each in (*REQUEUE_SIGNALS, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)


@contextmanager
def clean_interrupts() -> Iterator[None]:
    """Within this block the first signal is raised: SIGTERM and SIGUSR1 as Interrupted, Ctrl-C as KeyboardInterrupt.

    Later ones are ignored, but a Ctrl-C ends the process at once, with the code of the first. Whatever an interrupt
    became on its way, the interrupt is what leaves the block. Afterwards signals do what they did before, and in a
    process in which they ended it, nothing.
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
    """The handler of all signals within the block: it raises at most once."""

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
            signal.setitimer(signal.ITIMER_REAL, SECONDS_TO_CLEAN_UP)
            self.raised = Stopped() if number == signal.SIGINT else _error_of(number)
            raise self.raised
        if number not in REQUEUE_SIGNALS:
            _end_at_once(self._first, frame)

    def not_raised(self, unraisable: sys.UnraisableHookArgs) -> None:
        """In a finaliser there is nobody to raise an interrupt to: Python would print it and go on."""
        if self.raised is not None and unraisable.exc_value is self.raised and not self._is_over:
            _end_at_once(self._first, None)
        self._show(unraisable)

    def close(self) -> None:
        """How the block ends is decided."""
        self._is_over = True
        if self._first:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _end_at_once(number: int, _frame: FrameType | None) -> None:
    """Say what ended the process, and end it: nothing is cleaned up, as after SIGKILL."""
    error = _error_of(number)
    with suppress(OSError):
        os.write(2, f"error: {error.message}\nhint: {error.hint}\n".encode())
    os._exit(error.exit_code)


def _error_of(number: int) -> IgrpoError:
    """What is said of a stop by signal `number`, and its exit code."""
    if number == signal.SIGINT:
        return CtrlC()
    return Interrupted(
        f"stopped by {signal.Signals(number).name}; finished blocks and shards are kept",
        hint="run the same command again, it goes on where it stopped",
    )


def _interrupt_behind(error: BaseException | None) -> BaseException | None:
    """The interrupt that `error` came of, or is: in the middle of a lock or of a clean-up one becomes another error."""
    while error is not None and not isinstance(error, Interrupted | KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error
