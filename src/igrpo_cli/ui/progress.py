"""Progress of long work, with the time that is left: bars on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

SECONDS_TO_FIRST_LINE = 5.0
"""Shorter work leaves no line in a log."""
MAX_SECONDS_BETWEEN_LINES = 60.0
LINES_PER_DURATION = 20
"""The time between two lines grows with the time so far. A night of work writes some hundred lines."""


class Progress:
    """How much of some work is done, and how fast. `advance` and `skip` may be called from any thread."""

    def __init__(self, title: str, total: float | None, unit: str) -> None:
        """Start the clock. `total` is None when the amount of work is unknown."""
        self.title = title
        self.total = total
        self.done = 0.0
        self._unit = unit
        self.seconds_per_unit: float | None = None
        """Time that a unit took in earlier work. It counts until a unit is done here."""
        self._skipped = 0.0
        self._sampled = self._at_most = 0.0
        self._num_completions = 0
        self._sums: dict[str, float] = {}
        self._lock = threading.Lock()
        self.began = self._since = self._last = time.monotonic()

    def advance(self, amount: float = 1, **counts: float) -> None:
        """Add `amount` units of work. The rates of `counts` are shown too."""
        with self._lock:
            self.done += amount
            self._last = time.monotonic()
            self._add(counts)

    def sample(self, units: float, completions: int, tokens: int, at_most: float) -> None:
        """Count completions within units that are not done yet, so that the time left is known before one is.

        `units` is their amount of work, and `at_most` that of the tokens if each completion had the maximum length.
        """
        with self._lock:
            self._sampled += units
            self._at_most += at_most
            self._num_completions += completions
            self._add({"tokens": tokens})

    def skip(self, amount: float = 1) -> None:
        """Add `amount` units that were done before. They do not count for the speed."""
        with self._lock:
            self.done += amount
            self._skipped += amount

    def leave_out_preparations(self) -> None:
        """Restart the clock if nothing is done. Loading a model does not count for the speed of sampling."""
        with self._lock:
            if not self._done_here(at_most=True):
                self._since = time.monotonic()

    @property
    def reached(self) -> float:
        """Units that are done, with the completions of those that are not."""
        return self._skipped + self._done_here()

    @property
    def elapsed(self) -> float:
        """Seconds since the start, preparations included."""
        return time.monotonic() - self.began

    def text(self, inner: Progress | None = None) -> str:
        """Return the progress as `12 of 96 blocks, 210 completions, 1,234 tokens/s, 3 min 20 s left`.

        `inner` is a part of this work that is in progress.
        """
        with self._lock:
            seconds = max(time.monotonic() - self._since, 1e-9)
            amount = f"{self.done:,.0f}{'' if self.total is None else f' of {self.total:,.0f}'} {self._unit}"
            parts = [amount] if self._unit else []
            if self._num_completions:
                parts.append(f"{self._num_completions:,} completions")
            parts += [f"{value / seconds:,.0f} {name}/s" for name, value in self._sums.items()]
            if inner is not None and (around := self.left_around(inner)):
                parts.append(around)
            elif self.total is not None and self.done >= self.total:
                parts.append(f"in {duration(self.elapsed)}")
            elif (left := self._seconds_left()) is not None:
                parts.append(f"{duration(left)} left")
            elif (left := self._seconds_left(at_most=True)) is not None:
                parts.append(f"at most {duration(left)} left")
            else:
                parts.append(f"{duration(self.elapsed)} so far")
        return ", ".join(parts)

    def left_around(self, inner: Progress) -> str:
        """Return the time that is left of work of which `inner` is a part, as `2 h 5 min left`; empty if unknown.

        Until a unit is done, the part says how long all units take at least.
        """
        if self.total is None or self.done >= self.total:
            return ""
        units, now = self.total - self.done, time.monotonic()
        current, done_here = now - self._last, self.done - self._skipped
        per_unit = (self._last - self.began) / done_here if done_here else self.seconds_per_unit
        if per_unit is not None:
            return f"{duration(max(per_unit * units - current, 0.0))} left"
        left = inner._seconds_left()
        return "" if left is None else f"at least {duration((current + left) * units - current)} left"

    def _seconds_left(self, *, at_most: bool = False) -> float | None:
        """Return None as long as nothing is done, and where the amount of work is unknown."""
        done_here = self._done_here(at_most=at_most)
        if self.total is None or not done_here:
            return None
        seconds = max(time.monotonic() - self._since, 1e-9)
        return max(self.total - self._skipped - done_here, 0.0) * seconds / done_here

    def _done_here(self, *, at_most: bool = False) -> float:
        return max(self.done - self._skipped, self._sampled, self._at_most if at_most else 0.0)

    def _add(self, counts: Mapping[str, float]) -> None:
        for name, value in counts.items():
            self._sums[name] = self._sums.get(name, 0.0) + value


class Display:
    """Shows the work in progress. One piece of work may contain another."""

    def __init__(self) -> None:
        self._active: list[Progress] = []

    @contextmanager
    def showing(self, progress: Progress) -> Iterator[None]:
        """Show `progress` inside this context."""
        is_outermost = not self._active
        self._active.append(progress)
        try:
            with self._drawn() if is_outermost else nullcontext():
                yield
        finally:
            self._active.remove(progress)
            if progress.total is None:
                for outer in self._active:
                    outer.leave_out_preparations()

    def _drawn(self) -> AbstractContextManager[None]:
        if can_redraw(sys.stderr.isatty()):
            from igrpo_cli.ui.terminal import bars

            return bars(self._active)
        return _lines(self._active)


def can_redraw(is_terminal: bool) -> bool:
    """Return True for a terminal on which the cursor can be moved."""
    return is_terminal and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def duration(seconds: float) -> str:
    """Return a time as `4.2 s`, `59 s`, `3 min 20 s`, `2 h 5 min` or `3 d 4 h`."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, hours = round(seconds) // 60, round(seconds / 60) // 60
    if minutes < 60:
        return f"{minutes} min {round(seconds) % 60} s"
    return f"{hours} h {round(seconds / 60) % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


@contextmanager
def _lines(active: Sequence[Progress]) -> Iterator[None]:
    """Write lines to stderr from a thread, so that they appear even when nothing advances."""
    ended = threading.Event()
    outermost, has_written = active[0], False

    def write() -> None:
        nonlocal has_written
        while not ended.wait(_seconds_to_next_line(outermost)):
            has_written = True
            _write_line(active)

    thread = threading.Thread(target=write, name="igrpo-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if has_written and outermost.total is not None:
        _write_line([outermost])


def _seconds_to_next_line(outermost: Progress) -> float:
    return min(max(SECONDS_TO_FIRST_LINE, outermost.elapsed / LINES_PER_DURATION), MAX_SECONDS_BETWEEN_LINES)


def _write_line(active: Sequence[Progress]) -> None:
    shown = list(active)
    text = ": ".join([*(each.title for each in shown), shown[-1].text()] if shown else [])
    around = [f"{outer.title}: {left}" for outer in shown[:-1] if (left := outer.left_around(shown[-1]))]
    text = "; ".join([text, *around])
    with suppress(OSError):  # A closed stderr must not stop the work.
        print(text, file=sys.stderr, flush=True)
