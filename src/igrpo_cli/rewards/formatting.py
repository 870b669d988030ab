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


def length_reward(length: int, max_length: int) -> float:
    """Share of the allowed length that is left, of lengths in tokens: 1 for nothing said, 0 from `max_length` on."""
    return max(0.0, 1 - length / max_length)


def _is_visible(text: str) -> bool:
    return any(character.isprintable() and not character.isspace() for character in text)


def weighted_reward(parts: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Sum of weights[name] * parts[name]; a part without a weight counts nothing.

    Raises UsageError for a weight of a part that is not there, or when the sum is not finite.
    """
    missing = sorted(weights.keys() - parts.keys())
    if missing:
        raise UsageError(f"reward.weights has {missing[0]}, but the reward has only the parts {', '.join(parts)}")
    total = math.fsum(weights[name] * parts[name] for name in weights)
    if not math.isfinite(total):
        raise UsageError(f"the reward is not finite: parts {dict(parts)}, weights {dict(weights)}")
    return total
