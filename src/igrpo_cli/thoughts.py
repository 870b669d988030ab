"""Find the thoughts of a reasoning model in its text.

A thought stands between `<think>` and `</think>` (or `<thinking>`, `[THINK]`). In the format of gpt-oss it is
everything outside the channel `final`.
"""

from __future__ import annotations

import re

_TAG = re.compile(r"<(?P<closes>/?)think(?:ing)?>|\[(?P<ends>/?)THINK\]")
CHANNEL_TOKENS = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|constrain|>")
"""Control tokens that separate the channels of gpt-oss."""
FINAL_CHANNEL = "<|channel|>final<|message|>"
"""Beginning of the answer in the format of gpt-oss."""
_ANSWER_TAGS = ("<answer>", "</answer>")


def is_tag(text: str) -> bool:
    """Return True if `text` is a tag around a thought or an answer. In some models these are control tokens."""
    return _TAG.fullmatch(text) is not None or text in _ANSWER_TAGS


def opened_thought(text: str) -> str:
    """Return the end of `text` from the last tag that opens a thought, if nothing closes it; otherwise ""."""
    tags = list(_TAG.finditer(text))
    return text[tags[-1].start() :] if tags and not _closes(tags[-1]) else ""


def last_thought(text: str) -> str:
    """Return the end of `text` from the tag that opens its last thought, if nothing but white space follows it."""
    if opened := opened_thought(text):
        return opened
    tags = list(_TAG.finditer(text))
    if len(tags) < 2 or text[tags[-1].end() :].strip() or _closes(tags[-2]):
        return ""
    return text[tags[-2].start() :]


def after_thought(text: str) -> str | None:
    """Return the part of `text` after its last thought: all of it if there is none, None if a thought does not end."""
    if CHANNEL_TOKENS[0] in text:
        _, final, rest = text.rpartition(FINAL_CHANNEL)
        return rest.partition("<|end|>")[0] if final and CHANNEL_TOKENS[0] not in rest else None
    tags = list(_TAG.finditer(text))
    closing = max((index for index, tag in enumerate(tags) if _closes(tag)), default=-1)
    if closing + 1 < len(tags):
        return None
    return text[tags[closing].end() :] if tags else text


def _closes(tag: re.Match[str]) -> bool:
    return bool(tag["closes"] or tag["ends"])
