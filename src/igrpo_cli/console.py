"""What the user sees: data on stdout, everything else on stderr; rich only where there is a terminal."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Protocol

from igrpo_cli.errors import IgrpoError
from igrpo_cli.torchrun import rank_and_size

QUIET, NORMAL, VERBOSE = 0, 1, 2
SECONDS_BETWEEN_LINES = 5.0
"""Without a terminal a progress line is written this often: enough for a log, not a flood."""
SPARKS = "▁▂▃▄▅▆▇█"


class Progress(Protocol):
    """What a long stage reports while it works."""

    def advance(self, amount: int = 1, **counts: float) -> None:
        """`amount` more units of work are done; `counts` are shown beside the bar."""


class Console:
    """Output of one command, at one level of detail."""

    def __init__(self, *, as_json: bool = False, verbosity: int = NORMAL) -> None:
        self.as_json = as_json
        self._is_first_rank = rank_and_size()[0] == 0
        """Of the processes that torchrun started one speaks; errors come from whichever has them."""
        self.verbosity = verbosity if self._is_first_rank else QUIET

    def data(self, payload: dict[str, Any], text: str) -> None:
        """The result on stdout: one JSON object with `--json`, `text` otherwise."""
        if not self._is_first_rank:
            return
        if self.as_json:
            print(json.dumps(_finite(payload), ensure_ascii=False))
        else:
            print(text)

    def note(self, message: str) -> None:
        """A line of log, left out by `-q`."""
        if self.verbosity >= NORMAL:
            print(message, file=sys.stderr, flush=True)

    def detail(self, message: str) -> None:
        """A line of log that only `-v` shows."""
        if self.verbosity >= VERBOSE:
            print(message, file=sys.stderr, flush=True)

    @contextmanager
    def progress(self, title: str, total: int, unit: str) -> Iterator[Progress]:
        """A bar on a terminal, a line every few seconds elsewhere, nothing with `-q`."""
        if self.verbosity == QUIET or total == 0:
            yield _NoProgress()
        elif sys.stderr.isatty():
            with _bar(title, total, unit) as progress:
                yield progress
        else:
            yield _Lines(self, title, total, unit)


def print_error(error: IgrpoError) -> None:
    """`error: …` and, where there is one, `hint: …` on stderr."""
    print(f"error: {printable(error.message)}", file=sys.stderr)
    if error.hint:
        print(f"hint: {printable(error.hint)}", file=sys.stderr)


def printable(text: str) -> str:
    """`text` without control characters that a terminal would obey; line feeds and tabs stay."""
    return "".join(c if c in "\n\t" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Aligned plain columns: numbers to the right, text to the left."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max([len(header), *(len(row[i]) for row in cells)]) for i, header in enumerate(headers)]
    numeric = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(headers))]

    def line(values: Sequence[str]) -> str:
        parts = [v.rjust(w) if right else v.ljust(w) for v, w, right in zip(values, widths, numeric, strict=True)]
        return "  ".join(parts).rstrip()

    return "\n".join([line(headers), line(["─" * w for w in widths]), *(line(row) for row in cells)])


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """`values` as one line of bars from their least to their greatest, averaged down to `width` columns."""
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return ""
    columns = min(width, len(finite))
    edges = [round(i * len(finite) / columns) for i in range(columns + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, span = min(means), (max(means) - min(means)) or 1.0
    return "".join(SPARKS[round((v - low) / span * (len(SPARKS) - 1))] for v in means)


def percent(value: float | None) -> str:
    """A share as `23.4 %`; a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else printable(str(value)).replace("\n", " ")


def _finite(value: Any) -> Any:
    """JSON has no NaN: it becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


class _NoProgress:
    def advance(self, amount: int = 1, **counts: float) -> None:
        pass


class _Lines:
    def __init__(self, console: Console, title: str, total: int, unit: str) -> None:
        self._console, self._title, self._total, self._unit = console, title, total, unit
        self._done = 0
        self._sums: dict[str, float] = {}
        self._started = self._last = time.monotonic()

    def advance(self, amount: int = 1, **counts: float) -> None:
        self._done += amount
        for name, value in counts.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last = now
        rates = "".join(f", {v / (now - self._started):,.0f} {n}/s" for n, v in self._sums.items())
        self._console.note(f"{self._title}: {self._done} of {self._total} {self._unit}{rates}")


@contextmanager
def _bar(title: str, total: int, unit: str) -> Iterator[Progress]:
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit + "{task.fields[rates]}"),
        TimeRemainingColumn(),
    )
    rich_console = RichConsole(stderr=True, no_color="NO_COLOR" in os.environ)
    with RichProgress(*columns, console=rich_console, transient=True) as progress:
        task = progress.add_task(title, total=total, rates="")
        started, sums = time.monotonic(), dict[str, float]()

        class _Bar:
            def advance(self, amount: int = 1, **counts: float) -> None:
                elapsed = max(time.monotonic() - started, 1e-9)
                for name, value in counts.items():
                    sums[name] = sums.get(name, 0.0) + value
                rates = "".join(f", {v / elapsed:,.0f} {n}/s" for n, v in sums.items())
                progress.update(task, advance=amount, rates=rates)

        yield _Bar()
