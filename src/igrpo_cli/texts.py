"""Detection of control characters, which are what remains of LaTeX written with single backslashes.

In JSON, TOML and Python, `\\f`, `\\b`, `\\t`, `\\n` and `\\r` are escapes. So `"\\frac"` with one backslash is a form
feed and `rac`, and `"\\boxed"` a backspace and `oxed`. No parser reports this.
"""

from __future__ import annotations

import re

CURE = r"write two backslashes in JSON and in quoted TOML ('\\frac'), or quote TOML with ''', where one is enough"
INVALID_ESCAPE_CURE = r"a backslash is written twice there ('\\sqrt'): one alone begins an escape such as \n"

_ALWAYS_LOST = {"\b": "b", "\f": "f", "\a": "a", "\v": "v"}
"""Control characters that no text needs, with the letter of their escape."""
_FORBIDDEN = re.compile(r"[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
"""Control characters other than tab, line feed, carriage return and the Unicode line break U+0085."""

_TAILS = {
    "\t": "imes heta ext extbf extit extrm extsf exttt extnormal anh au herefore ilde riangle riangleq frac binom",
    "\n": "abla eq leq geq mid otin exists earrow warrow parallel subseteq ewline ewcommand orm",
    "\r": "ight ightarrow ho angle floor ceil brace brack vert Vert",
}
"""What follows the first letter of LaTeX commands and is no word of its own."""
_SHORT_TAILS = {"\t": "o op an ag", "\n": "e u i ot eg", "\r": "m e"}
"""The same for commands whose rest is a word or a variable. They count only within mathematics."""


def _pattern(tails: dict[str, str]) -> re.Pattern[str]:
    choices = (f"{character}(?:{'|'.join(words.split())})" for character, words in tails.items())
    return re.compile(f"(?:{'|'.join(choices)})(?![A-Za-z])")


_LOST, _LOST_IN_MATHEMATICS = _pattern(_TAILS), _pattern(_SHORT_TAILS)
_COMMAND = re.compile(r"\\[A-Za-z]")
_CLEAN = re.compile(r"[^\0-\x1f\x7f-\x9f]*")
_WORD = re.compile(r"[A-Za-z]*")


def control_fault(text: str) -> tuple[int, str] | None:
    """Return the position in `text` of a control character that must not be there, and what it is; None for clean text.

    Tabs and line ends are faults only before the rest of a LaTeX command. A text with a complete command, such as
    `\\frac`, was written with the right number of backslashes, and there they are not faults.
    """
    if _CLEAN.fullmatch(text):
        return None
    if found := _FORBIDDEN.search(text):
        return found.start(), _described(text, found.start())
    if _COMMAND.search(text):
        return None
    matches = [*_LOST.finditer(text), *(m for m in _LOST_IN_MATHEMATICS.finditer(text) if _is_mathematics(text, m))]
    if not matches:
        return None
    first = min(match.start() for match in matches)
    return first, _described(text, first)


def _is_mathematics(text: str, match: re.Match[str]) -> bool:
    """Return True at the beginning of a text, and between dollar signs."""
    return match.start() == 0 or text.count("$", 0, match.start()) % 2 == 1


def _described(text: str, position: int) -> str:
    character = text[position]
    letter = _ALWAYS_LOST.get(character) or {"\t": "t", "\n": "n", "\r": "r"}.get(character)
    rest = _WORD.match(text, position + 1)
    if letter is None or rest is None or not rest[0]:
        return f"the control character U+{ord(character):04X}"
    return f"U+{ord(character):04X} before {rest[0]!r}: \\{letter}{rest[0]} with one backslash"
