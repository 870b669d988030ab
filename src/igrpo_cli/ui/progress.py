"""How far a long piece of work is, and how long it will take."""

from __future__ import annotations

import os
import threading
import time


class Progress:
    """What is done of a piece of work, and how fast. `advance` and `skip` may be called from any thread."""

    def __init__(self, title: str, total: float | None, unit: str) -> None:
        """`total` None: nobody can know how much there is."""
        self.title = title
        self.total = total
        self.done = 0.0
        self._unit = unit
        self._skipped = 0.0
        self._sums: dict[str, float] = {}
        self._lock = threading.Lock()
        self.began = self._since = time.monotonic()

    def advance(self, amount: float = 1, **counts: float) -> None:
        """`amount` more units are done; the rates of `counts` are shown, too."""
        with self._lock:
            self.done += amount
            for name, value in counts.items():
                self._sums[name] = self._sums.get(name, 0.0) + value

    def skip(self, amount: float = 1) -> None:
        """`amount` units were done before: they say nothing of how fast the work is."""
        with self._lock:
            self.done += amount
            self._skipped += amount

    def leave_out_preparations(self) -> None:
        """Unless something is done, the work begins now: loading a model says nothing of how fast it samples."""
        with self._lock:
            if self.done == self._skipped:
                self._since = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning, preparations included."""
        return time.monotonic() - self.began

    def text(self) -> str:
        """`12 of 96 blocks, 1,234 tokens/s, 3 min 20 s left`."""
        with self._lock:
            seconds = max(time.monotonic() - self._since, 1e-9)
            done_here = self.done - self._skipped
            amount = f"{self.done:,.0f}{'' if self.total is None else f' of {self.total:,.0f}'} {self._unit}"
            parts = [amount] if self._unit else []
            parts += [f"{value / seconds:,.0f} {name}/s" for name, value in self._sums.items()]
            if self.total is None or not done_here:
                parts.append(f"{duration(self.elapsed)} so far")
            elif self.done < self.total:
                parts.append(f"{duration((self.total - self.done) * seconds / done_here)} left")
            else:
                parts.append(f"in {duration(self.elapsed)}")
        return ", ".join(parts)


def can_redraw(is_terminal: bool) -> bool:
    """Whether a stream is a terminal on which the cursor can be moved."""
    return is_terminal and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def duration(seconds: float) -> str:
    """`4.2 s`, `59 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, hours = round(seconds) // 60, round(seconds / 60) // 60
    if minutes < 60:
        return f"{minutes} min {round(seconds) % 60} s"
    return f"{hours} h {round(seconds / 60) % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
