"""Signals become exceptions, so that a stop at any moment takes the same path as any other failure.

Whatever is on disk was published atomically, so leaving at once loses at most the block in progress.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from igrpo_cli.errors import Interrupted

REQUEUE_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Slurm's notice before the time limit, and the usual request to end."""


@contextmanager
def clean_interrupts() -> Iterator[None]:
    """Within this block SIGTERM and SIGUSR1 raise Interrupted (exit 75) once; later ones are ignored.

    Whatever an interrupt became on its way, the interrupt is what leaves the block.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        for each in REQUEUE_SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(
            f"stopped by {signal.Signals(number).name}; finished blocks and shards are kept",
            hint="run the same command again, it goes on where it stopped",
        )

    previous = {each: signal.signal(each, stop) for each in REQUEUE_SIGNALS}
    try:
        yield
    except Exception as error:
        interrupt = _interrupt_behind(error)
        if interrupt is None:
            raise
        raise interrupt from None
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


def _interrupt_behind(error: BaseException | None) -> BaseException | None:
    """The interrupt that `error` came of, or is: in the middle of a lock or of a clean-up one becomes another error."""
    while error is not None and not isinstance(error, Interrupted | KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error
