"""Output of a command: data on stdout, everything else on stderr. Rich is imported only for a terminal."""

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
from igrpo_cli.ui.progress import Display, Progress, can_redraw

QUIET, NORMAL, VERBOSE = 0, 1, 2
SPARKS = "▁▂▃▄▅▆▇█"
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
"""Characters without width that Python calls printable. Unicode lists them as default ignorable."""


class Console:
    """The output of one command, at one level of detail."""

    def __init__(self, *, as_json: bool = False, verbosity: int = NORMAL) -> None:
        self.as_json = as_json
        self._is_first_rank = rank_and_size()[0] == 0
        """Only the first process of torchrun prints. Errors are printed by every process that has one."""
        self.verbosity = verbosity if self._is_first_rank else QUIET
        self._display = Display()

    def data(self, payload: dict[str, Any], text: str) -> None:
        """Print the result on stdout: `payload` as one JSON object with `--json`, else `text`."""
        if not self._is_first_rank:
            return
        if self.as_json:
            # A terminal would obey control characters, and an encoding may lack some characters. Escapes are the same
            # JSON.
            needs_escapes = sys.stdout.isatty() or (sys.stdout.encoding or "utf-8").lower() not in ("utf-8", "utf8")
            print(json.dumps(finite(payload), ensure_ascii=needs_escapes), flush=True)
        else:
            print(text, flush=True)

    def note(self, message: str) -> None:
        """Print a line on stderr, unless `-q` was given."""
        if self.verbosity >= NORMAL:
            _print_on_stderr(message)

    def detail(self, message: str) -> None:
        """Print a line on stderr with `-v`."""
        if self.verbosity >= VERBOSE:
            _print_on_stderr(message)

    @contextmanager
    def progress(self, title: str, total: float | None, unit: str) -> Iterator[Progress]:
        """Show progress: a bar on a terminal, lines elsewhere, nothing with `-q`. `total` None means unknown."""
        progress = Progress(title, total, unit)
        with nullcontext() if self.verbosity == QUIET or total == 0 else self._display.showing(progress):
            yield progress

    @contextmanager
    def activity(self, title: str) -> Iterator[None]:
        """Show that work of unknown length is in progress, for example loading a model."""
        with self.progress(title, None, ""):
            yield

    @contextmanager
    def redrawn(self) -> Iterator[Callable[[str], None] | None]:
        """Give a function that replaces the text on the screen; None with `--json` and without a terminal."""
        if self.as_json or not can_redraw(sys.stdout.isatty()):
            yield None
            return
        from igrpo_cli.ui.terminal import redrawn

        with redrawn() as draw:
            yield draw


def print_error(error: IgrpoError) -> None:
    """Print `error: …` and `hint: …`, if it has one, on stderr."""
    _print_on_stderr(f"error: {printable(error.message)}")
    if error.hint:
        _print_on_stderr(f"hint: {printable(error.hint)}")


def _print_on_stderr(line: str) -> None:
    """Print `line` on stderr. If that fails, only the exit code is left to report an error."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        # Python would try to write the buffer again at exit, and exit with another code.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def printable(text: str) -> str:
    """Replace each character that a terminal would obey or not show by its escape, such as `\\u202e`.

    These are control characters, marks that change the direction of writing, fillers and joiners without width, lone
    surrogates and unassigned code points. Line feeds, tabs and spaces of any width stay.
    """
    return "".join(c if _is_shown(c) else c.encode("unicode_escape").decode() for c in text)


def _is_shown(c: str) -> bool:
    return c in "\n\t" or (c.isprintable() and not _INVISIBLE.match(c)) or unicodedata.category(c) == "Zs"


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return aligned columns: numbers to the right, text to the left."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max([len(header), *(len(row[i]) for row in cells)]) for i, header in enumerate(headers)]
    numeric = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(headers))]

    def line(values: Sequence[str]) -> str:
        parts = [v.rjust(w) if right else v.ljust(w) for v, w, right in zip(values, widths, numeric, strict=True)]
        return "  ".join(parts).rstrip()

    return "\n".join([line(headers), line(["─" * w for w in widths]), *(line(row) for row in cells)])


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """Return `values` as one line of bars between their minimum and maximum, averaged to at most `width` columns."""
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return ""
    columns = min(width, len(finite))
    edges = [round(i * len(finite) / columns) for i in range(columns + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, span = min(means), (max(means) - min(means)) or 1.0
    return "".join(SPARKS[round((v - low) / span * (len(SPARKS) - 1))] for v in means)


def percent(value: float | None) -> str:
    """Return a share as `23.4 %`, or a dash for None and NaN."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else printable(str(value)).replace("\n", " ")


def finite(value: Any) -> Any:
    """Replace NaN and infinities by None, because JSON has no word for them."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
