"""The parts of the reward that form and length decide, and the weighted sum that makes one scalar of all parts."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from igrpo_cli.errors import UsageError

_CONTENT = r"((?:(?!</?(?:think|answer)>).)+)"
_FORMAT = re.compile(rf"\s*<think>{_CONTENT}</think>\s*<answer>{_CONTENT}</answer>\s*", re.DOTALL)


def format_reward(completion: str) -> float:
    """1.0 iff `completion` is one `<think>…</think>` followed by one `<answer>…</answer>`, else 0.0.

    White space may stand around and between the two; nothing else may. Each must hold at least one
    visible character, and none of the four tags may occur a second time, inside or outside.
    """
    match = _FORMAT.fullmatch(completion)
    return float(match is not None and all(_is_visible(content) for content in match.groups()))


def soft_overlong_reward(length: int, max_length: int, cache: int) -> float:
    """DAPO's soft overlong punishment (arXiv 2503.14476, equation 13), of lengths in tokens.

    0 up to `max_length - cache` tokens, from there in a straight line to -1 at `max_length`. A cache larger than
    `max_length` counts as `max_length`.
    """
    cache = min(cache, max_length)
    return min(0.0, max(-1.0, (max_length - cache - length) / cache))


def _is_visible(text: str) -> bool:
    return any(character.isprintable() and not character.isspace() for character in text)


def weighted_reward(parts: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Sum of weights[name] * parts[name].

    Raises UsageError when the two do not name the same parts, or when a term is not finite.
    """
    if parts.keys() != weights.keys():
        raise UsageError(
            f"reward parts {sorted(parts)} and reward weights {sorted(weights)} differ",
            hint="give every part of the reward a weight (0 switches it off) and no other name",
        )
    total = math.fsum(weights[name] * parts[name] for name in parts)
    if not math.isfinite(total):
        raise UsageError(f"the reward is not finite: parts {dict(parts)}, weights {dict(weights)}")
    return total
