"""Multiple choice: the letter that an answer names, where the reference is a letter in parentheses, such as `(B)`.

An answer names its letter first: alone, or before the text of the choice. So no answer is read as two letters, and
naming several earns nothing: `A or B`, `(A)(B)` and `A. 3 B. 4` name none.
"""

from __future__ import annotations

import re
import unicodedata

_MARKUP = re.compile(
    r"\\(?:text\w*|mbox|math[a-z]+|operatorname|boxed|fbox|framebox|left|right|q?quad|bf|rm)(?![a-z])"
    r"|\\[()\[\],;:!]|\\(?= )|[{}$*~`\"“”]"
)
_REFERENCE = re.compile(r"\(([A-Z])\)")
_LEAD = r"(?:(?:the )?(?:(?:best|correct|final|right) )?(?:answer|choice|letter|option)(?: is|:)? ?){0,2}"
_ENCLOSED = re.compile(rf"{_LEAD}[(\[] ?([a-z]) ?[)\]](?=[ .,:;]|$)", re.IGNORECASE)
_BARE = re.compile(rf"{_LEAD}([a-z])(?=\)|[.:](?: |$)|[,;]?$)", re.IGNORECASE)

_ALSO_ENCLOSED = re.compile(r"(?<!\w)[(\[] ?([A-Z]) ?[)\]](?![-\w])")
_ALSO_BARE = re.compile(r"(?<![\w(\[])([A-Z])(?=\)|[.:] )")
_ALSO_LISTED = re.compile(r"(?:\b(?i:and|or|nor|answer|choice|letter|option)\b|[,;&|]| /)(?i: is)? ?([A-Z])(?![\w'’-])")
_ONLY_LETTERS = re.compile(r"(?:\W*\b[A-Z]\b)+\W*")


def reference_choice(reference: str) -> str | None:
    """The letter of a reference such as `(B)` or `\\text{(B)}`; None for anything else, a bare `B` included."""
    match = _REFERENCE.fullmatch(_plain(reference))
    return match[1] if match else None


def named_choice(answer: str) -> str | None:
    """The one letter, in upper case, that a bare answer names; None where it names none or several."""
    plain = _plain(answer)
    match = _ENCLOSED.match(plain)
    is_bare = match is None
    match = match or _BARE.match(plain)
    if match is None:
        return None
    text = plain[match.end() :].lstrip(").: ").rstrip(".,:; ")
    others = _letters_in(text.upper() if match[1].islower() else text, is_bare)
    return match[1].upper() if others <= {match[1].upper()} else None


def _letters_in(text: str, is_bare: bool) -> set[str]:
    """Choices that the text behind a letter names as well; a unit as in `5 J` or a symbol as in `f(A)` is none.

    Labels such as `C.` count only where the first letter was such a label too: `(A) E. coli` names one choice.
    """
    if _ONLY_LETTERS.fullmatch(text):
        return set(re.findall(r"[A-Z]", text))
    patterns = (_ALSO_ENCLOSED, _ALSO_LISTED, *([_ALSO_BARE] if is_bare else []))
    return {letter for pattern in patterns for letter in pattern.findall(text)}


def _plain(text: str) -> str:
    """`text` on one line without LaTeX's and Markdown's marks, and with plain letters for bold and full-width ones."""
    return " ".join(_MARKUP.sub(" ", unicodedata.normalize("NFKC", text).rstrip("\\. \n")).split())
