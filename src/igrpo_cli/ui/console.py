"""What the user sees: data on stdout, everything else on stderr; rich only where there is a terminal."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import pairwise
from typing import Any

from igrpo_cli.errors import IgrpoError
from igrpo_cli.torchrun import rank_and_size
from igrpo_cli.ui.progress import Progress, can_redraw
from igrpo_cli.ui.progress_display import Display

QUIET, NORMAL, VERBOSE = 0, 1, 2
SPARKS = "▁▂▃▄▅▆▇█"
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
"""Characters without width that Python calls printable: what Unicode lists as default ignorable."""


class Console:
    """Output of one command, at one level of detail."""

    def __init__(self, *, as_json: bool = False, verbosity: int = NORMAL) -> None:
        self.as_json = as_json
        self._is_first_rank = rank_and_size()[0] == 0
        """Of the processes that torchrun started one speaks; errors come from whichever has them."""
        self.verbosity = verbosity if self._is_first_rank else QUIET
        self._display = Display()

    def data(self, payload: dict[str, Any], text: str) -> None:
        """The result on stdout: one JSON object with `--json`, `text` otherwise."""
        if not self._is_first_rank:
            return
        if self.as_json:
            # A terminal would obey characters that change its direction or state, and another encoding lacks some:
            # escapes leave the object the same.
            needs_escapes = sys.stdout.isatty() or (sys.stdout.encoding or "utf-8").lower() not in ("utf-8", "utf8")
            print(json.dumps(finite(payload), ensure_ascii=needs_escapes), flush=True)
        else:
            print(text, flush=True)

    def note(self, message: str) -> None:
        """A line of log, left out by `-q`."""
        if self.verbosity >= NORMAL:
            _tell(message)

    def detail(self, message: str) -> None:
        """A line of log that only `-v` shows."""
        if self.verbosity >= VERBOSE:
            _tell(message)

    @contextmanager
    def progress(self, title: str, total: float | None, unit: str) -> Iterator[Progress]:
        """A bar on a terminal, a line every few seconds elsewhere, nothing with `-q`; None for an unknown total."""
        progress = Progress(title, total, unit)
        with nullcontext() if self.verbosity == QUIET or total == 0 else self._display.showing(progress):
            yield progress

    @contextmanager
    def activity(self, title: str) -> Iterator[None]:
        """The same of something of which nobody knows how long it takes, such as loading a model."""
        with self.progress(title, None, ""):
            yield

    @contextmanager
    def redrawn(self) -> Iterator[Callable[[str], None] | None]:
        """What shows a text in place of the one before; None for `--json` and where stdout is no terminal."""
        if self.as_json or not can_redraw(sys.stdout.isatty()):
            yield None
            return
        from igrpo_cli.ui.terminal import redrawn

        with redrawn() as draw:
            yield draw


def print_error(error: IgrpoError) -> None:
    """`error: …` and, where there is one, `hint: …` on stderr."""
    _tell(f"error: {printable(error.message)}")
    if error.hint:
        _tell(f"hint: {printable(error.hint)}")


def _tell(line: str) -> None:
    """`line` on stderr. Where it cannot be written nobody can be told, and the exit code alone has to say it."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        # What stays in the buffer would be tried again at the end, which then has an exit code of its own.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def printable(text: str) -> str:
    """`text` with its escape, such as `\\u202e`, for each character that a terminal would obey or show as nothing.

    These are controls, marks that turn the direction of writing, fillers and joiners without width, lone surrogates
    and unassigned code points. Line feeds, tabs and spaces of any width stay.
    """
    return "".join(c if _is_shown(c) else c.encode("unicode_escape").decode() for c in text)


def _is_shown(c: str) -> bool:
    return c in "\n\t" or (c.isprintable() and not _INVISIBLE.match(c)) or unicodedata.category(c) == "Zs"


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


def finite(value: Any) -> Any:
    """JSON has no NaN: it becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
