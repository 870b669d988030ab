"""Text of models and data sets, quoted so that it cannot control the terminal or look like our own output."""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Literal

from igrpo_cli.ui.console import printable
from igrpo_cli.ui.progress import can_redraw

Piece = tuple[Literal["same", "removed", "added"], str]
"""A piece of text and its kind. Text without comparison is `same`."""

GUTTER = "│ "
MARKS = {"same": "{}", "removed": "[-{}-]", "added": "{{+{}+}}"}
STYLES = {"same": "", "removed": "red strike", "added": "green bold"}

MAX_SHOWN = 1_200
"""Maximum characters of a text. Each piece of a comparison has a third of it."""
MAX_PIECES = 60
MAX_SHOWN_IN_LINE = 80


def quoted(pieces: Sequence[Piece]) -> str:
    """Return `pieces` with a bar before every line.

    On a terminal, lines are wrapped to its width. Removed and added text is coloured, or marked as
    `[-removed-]{+added+}` where there are no colours.
    """
    lines = _wrapped(pieces) if sys.stdout.isatty() else _marked(pieces).split("\n")
    return "\n".join(f"{GUTTER}{line}".rstrip() for line in lines)


def heading(line: str) -> str:
    """Return a line of our own, bold on a terminal."""
    from rich.style import Style

    return Style(bold=True).render(line) if can_redraw(sys.stdout.isatty()) else line


def fenced(pieces: Sequence[Piece]) -> str:
    """Return `pieces` as fenced code in Markdown. The fence is longer than any fence in the text."""
    text = _marked(pieces)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def in_line(text: str) -> str:
    """Return the beginning of `text` in one line."""
    line = printable(text.replace("\n", "\\n"))
    return line if len(line) <= MAX_SHOWN_IN_LINE else f"{line[:MAX_SHOWN_IN_LINE]}…"


def markdown_escaped(text: str) -> str:
    """Escape `text`, so that it has no effect in Markdown or HTML."""
    escaped = re.sub(r"([\\`*_\[\]~#!])", r"\\\1", html.escape(printable(text), quote=False))
    return escaped.replace("|", "&#124;")


def shortened(pieces: Sequence[Piece]) -> list[Piece]:
    """Replace the middle of long pieces by the number of characters left out."""
    limit = MAX_SHOWN if len(pieces) == 1 else MAX_SHOWN // 3
    kept = [(kind, _shortened(text, limit)) for kind, text in pieces]
    if len(kept) <= MAX_PIECES:
        return kept
    left_out = sum(len(text) for _, text in pieces[MAX_PIECES:])
    return [*kept[:MAX_PIECES], ("same", f" […{left_out:,} characters…]")]


def _shortened(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    head, tail = text[: limit * 2 // 3], text[-(limit // 3) :]
    return f"{head} […{len(text) - len(head) - len(tail):,} characters…] {tail}"


def _marked(pieces: Iterable[Piece]) -> str:
    return "".join(MARKS[kind].format(printable(text)) for kind, text in pieces)


def _wrapped(pieces: Sequence[Piece]) -> list[str]:
    from rich.console import Console as RichConsole
    from rich.text import Text

    console = RichConsole()
    if console.no_color or console.color_system is None:
        text = Text(_marked(pieces))
    else:
        text = Text.assemble(*((printable(text), STYLES[kind]) for kind, text in pieces))
    with console.capture() as capture:
        console.print(text, width=console.width - len(GUTTER), overflow="fold", highlight=False)
    return capture.get().removesuffix("\n").split("\n")
