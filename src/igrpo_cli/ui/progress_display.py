"""Progress as it is seen: bars on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

from igrpo_cli.ui.progress import Progress, can_redraw

FIRST_LINE_AFTER = 5.0
"""Seconds. Work that takes less leaves no line in a log."""
MOST_BETWEEN_LINES = 60.0
LINES_PER_DURATION = 20
"""A log gets a line each time so much more of what has passed goes by: a night of work is some hundred lines."""


class Display:
    """The pieces of work that are under way, one within the other."""

    def __init__(self) -> None:
        self._under_way: list[Progress] = []

    @contextmanager
    def showing(self, progress: Progress) -> Iterator[None]:
        """Show `progress` while the block runs."""
        is_outermost = not self._under_way
        self._under_way.append(progress)
        try:
            with self._drawn() if is_outermost else nullcontext():
                yield
        finally:
            self._under_way.remove(progress)
            for outer in self._under_way:
                outer.leave_out_preparations()

    def _drawn(self) -> AbstractContextManager[None]:
        if can_redraw(sys.stderr.isatty()):
            from igrpo_cli.ui.terminal import bars

            return bars(self._under_way)
        return _lines(self._under_way)


@contextmanager
def _lines(under_way: Sequence[Progress]) -> Iterator[None]:
    """Lines on stderr from a thread of its own, so that they come even while nothing advances."""
    ended = threading.Event()
    outermost, told = under_way[0], False

    def write() -> None:
        nonlocal told
        while not ended.wait(min(max(FIRST_LINE_AFTER, outermost.elapsed / LINES_PER_DURATION), MOST_BETWEEN_LINES)):
            told = True
            _write_line(under_way)

    thread = threading.Thread(target=write, name="igrpo-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if told and outermost.total is not None:
        _write_line([outermost])


def _write_line(under_way: Sequence[Progress]) -> None:
    shown = list(under_way)
    text = ": ".join([*(each.title for each in shown), shown[-1].text()] if shown else [])
    with suppress(OSError):  # The work is worth more than what is told of it.
        print(text, file=sys.stderr, flush=True)
