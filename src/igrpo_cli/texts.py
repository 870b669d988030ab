"""Detection of control characters, which are what remains of LaTeX written with single backslashes.

In JSON, TOML and Python, `\\f`, `\\b`, `\\t`, `\\n` and `\\r` are escapes. So `"\\frac"` with one backslash is a form
feed and `rac`, and `"\\boxed"` a backspace and `oxed`. No parser reports this.
"""

from __future__ import annotations

import re
from typing import NamedTuple

JSON_CURE = r"write each backslash twice in JSON: '\\frac'"
TOML_CURE = r"write each backslash twice in double quotes: '\\boxed'; in single quotes once is enough"
INVALID_ESCAPE_CURE = r"a backslash is written twice there ('\\sqrt'): one alone begins an escape such as \n"

_ESCAPES = {"\b": "b", "\f": "f", "\a": "a", "\v": "v", "\t": "t", "\n": "n", "\r": "r"}
"""Control characters with the letter of their escape."""
_FORBIDDEN = re.compile(r"[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
"""Control characters other than tab, line feed, carriage return and the Unicode line break U+0085."""

_TAILS = {
    "\t": "imes heta ext extbf extit extrm extsf exttt extnormal anh au herefore ilde riangle riangleq frac binom",
    "\n": "abla leq geq otin earrow warrow subseteq ewline ewcommand",
    "\r": "ight ightarrow ho angle floor ceil brace brack vert Vert",
}
"""What follows the first letter of LaTeX commands and is no word of its own."""
_SHORT_TAILS = {"\t": "o op an ag", "\n": "e u i ot eg eq mid exists parallel orm", "\r": "m e"}
"""The same for commands whose rest is a word or a variable. They count only within mathematics."""


def _pattern(tails: dict[str, str]) -> re.Pattern[str]:
    choices = (f"{character}(?:{'|'.join(words.split())})" for character, words in tails.items())
    return re.compile(f"(?:{'|'.join(choices)})(?![A-Za-z])")


_LOST, _LOST_IN_MATHEMATICS = _pattern(_TAILS), _pattern(_SHORT_TAILS)
_COMMAND = re.compile(r"\\[A-Za-z]")
_CLEAN = re.compile(r"[^\0-\x1f\x7f-\x9f]*")
_WORD = re.compile(r"[A-Za-z]*")


class ControlFault(NamedTuple):
    """A control character that must not be in a text."""

    position: int
    """From 0."""
    character: str
    command: str
    """The LaTeX command that it is left of, such as `\\boxed`; empty if it is no rest of one."""

    def __str__(self) -> str:
        code = f"the control character U+{ord(self.character):04X}"
        return f"{code}, which is {self.command} with one backslash" if self.command else code


def control_fault(text: str, *, is_mathematics: bool = False) -> ControlFault | None:
    """Return the first control character that must not be in `text`; None for clean text.

    Tabs and line ends are faults only before the rest of a LaTeX command. Where that rest may also be a word or a
    variable, they are faults only in mathematics, and if no command of the text is complete, as in `\\frac`.
    `is_mathematics` says that all of the text is mathematics, as an answer is.
    """
    if _CLEAN.fullmatch(text):
        return None
    starts = [found.start() for pattern in (_FORBIDDEN, _LOST) if (found := pattern.search(text))]
    if not _COMMAND.search(text):
        short = _LOST_IN_MATHEMATICS.finditer(text)
        starts += [found.start() for found in short if is_mathematics or _in_mathematics(text, found.start())][:1]
    return _fault_at(text, min(starts)) if starts else None


def _in_mathematics(text: str, position: int) -> bool:
    """Return True at the beginning of a text, and between dollar signs."""
    return position == 0 or text[:position].replace("$$", "$").count("$") % 2 == 1


def _fault_at(text: str, position: int) -> ControlFault:
    letter = _ESCAPES.get(text[position])
    rest = _WORD.match(text, position + 1)
    is_command = letter is not None and rest is not None and rest[0] != ""
    return ControlFault(position, text[position], f"\\{letter}{rest[0]}" if is_command and rest else "")
