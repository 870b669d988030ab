"""What a refinement changed of its draft, word by word."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Literal

Change = tuple[Literal["same", "removed", "added"], str]
"""A piece of text, and whether it is in both texts, in the first alone or in the second alone."""

MAX_WORDS = 10_000
"""Matching takes time that can grow with the square of the length; longer texts are not matched."""

_WORD = re.compile(r"\s*(?:</?\w+>|\\?\w+|[^\w\s])|\s+")


def word_changes(before: str, after: str) -> list[Change] | None:
    """How `before` became `after`; None where one of them has more than `MAX_WORDS` words.

    Words are runs of letters and digits, tags, LaTeX commands and other signs one by one, each with the white space
    before it. The pieces in both texts and in the first alone make `before`, those in both and in the second `after`.
    """
    first, second = _WORD.findall(before), _WORD.findall(after)
    if max(len(first), len(second)) > MAX_WORDS:
        return None
    return [piece for piece in _pieces(first, second) if piece[1]]


def _pieces(first: list[str], second: list[str]) -> Iterator[Change]:
    for operation, a, b, c, d in SequenceMatcher(None, first, second).get_opcodes():
        if operation == "equal":
            yield "same", "".join(first[a:b])
        else:
            yield "removed", "".join(first[a:b])
            yield "added", "".join(second[c:d])
