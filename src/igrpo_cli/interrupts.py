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
    """Within this block SIGTERM and SIGUSR1 raise Interrupted (exit 75) once; later ones are ignored."""

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
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
