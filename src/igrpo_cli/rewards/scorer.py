"""The reward of a completion: named parts, and their weighted sum.

| part | value | computed by |
|---|---|---|
| `accuracy` | 1 if the verdict is `correct`, else 0 | the grading workers |
| `format` | 1 for one `<think>` and one `<answer>` element | `format_reward` |
| `overlong` | 0, falling to -1 over the last tokens | `soft_overlong_reward` |
| `length` | unused share of the allowed length, in [0, 1] | `length_reward` |
| `copy` | minus the overlap with the draft in the prompt, in [-1, 0]; 0 without draft | `copy_reward` |
| `judge` | in [0, 1] | a judge model |
| any other | the value of a function of the user | the grading workers |

If a part cannot be computed, the row is `ungraded`: it earns nothing for that part, nor for accuracy.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from igrpo_cli.errors import UsageError
from igrpo_cli.records import FinishReason, Grade, Problem
from igrpo_cli.rewards.functions import COMPLETION_IDS, FunctionSignature
from igrpo_cli.rewards.grading_pool import GradingPool

if TYPE_CHECKING:
    from igrpo_cli.rewards.judge import Judge, JudgeScore


_WORD = re.compile(r"\w+|[^\w\s]")
_CONTENT = r"((?:(?!</?(?:think|answer)>).)+)"
_FORMAT = re.compile(rf"\s*<think>{_CONTENT}</think>\s*<answer>{_CONTENT}</answer>\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ScoringInput:
    """One completion, with everything that its reward may depend on."""

    problem: Problem
    prompt: str
    completion: str
    num_tokens: int
    max_completion_length: int
    finish_reason: FinishReason
    draft: str | None = None
    """The whole draft of a refinement; None without draft."""
    group_id: int = 0
    """The group of the completion, which functions of whole groups are called with."""
    completion_ids: Sequence[int] = ()

    def context(self, signatures: Collection[FunctionSignature]) -> dict[str, Any]:
        """Return the problem, and what functions want besides completion, reference and verdict.

        A column of the data does not replace a parameter of the same name.
        """

        def is_wanted(name: str) -> bool:
            return any(signature.wants(name) for signature in signatures)

        values = {
            **(self.problem.column_values() if signatures else {}),
            "prompt": self.prompt,
            "num_tokens": self.num_tokens,
            "max_completion_length": self.max_completion_length,
            "finish_reason": self.finish_reason,
            COMPLETION_IDS: [int(token_id) for token_id in self.completion_ids] if is_wanted(COMPLETION_IDS) else [],
        }
        return {**{name: value for name, value in values.items() if is_wanted(name)}, "problem": self.problem.problem}


@dataclass(frozen=True, slots=True)
class ScoringResult:
    """The grade, the parts and the reward of one completion."""

    grade: Grade
    parts: dict[str, float]
    """`accuracy`, `format`, and every other part that has a weight."""
    reward: float


class Scorer:
    """Computes the rewards of completions. Threads may share it."""

    def __init__(
        self,
        pool: GradingPool,
        weights: Mapping[str, float],
        *,
        overlong_cache: int | None = None,
        judge: Judge | None = None,
    ) -> None:
        """Combine the sources of the parts: `overlong_cache` (in tokens) for `overlong`, `judge` for `judge`."""
        self._pool = pool
        self._weights = weights
        self._overlong_cache = overlong_cache
        self._judge = judge

    def score(self, rows: Sequence[ScoringInput]) -> list[ScoringResult]:
        """Return the rewards of `rows`, in order. Raises the errors of the pool and of the judge."""
        pairs = [(row.completion, row.problem.answer) for row in rows]
        contexts = [row.context(self._pool.signatures.values()) for row in rows]
        grading = self._pool.submit(pairs, contexts, [row.group_id for row in rows])
        judged: list[JudgeScore] | list[None] = [None] * len(rows)
        if self._judge is not None:
            from igrpo_cli.rewards.judge import JudgeRequest

            requests = [JudgeRequest(row.problem.problem, row.problem.answer, row.completion) for row in rows]
            judged = self._judge.score(requests)
        return [self._result(*each) for each in zip(rows, grading.result(), judged, strict=True)]

    def _result(self, row: ScoringInput, grade: Grade, judged: JudgeScore | None) -> ScoringResult:
        values: dict[str, float | None] = {
            "format": format_reward(row.completion),
            "length": length_reward(row.num_tokens, row.max_completion_length),
            "judge": None if judged is None else judged.score,
            **grade.parts,
        }
        if "copy" in self._weights:
            values["copy"] = copy_reward(row.completion, row.draft)
        if self._overlong_cache is not None:
            values["overlong"] = soft_overlong_reward(row.num_tokens, row.max_completion_length, self._overlong_cache)
        if judged is not None and judged.score is None:
            grade = replace(grade, verdict="ungraded", reason=judged.reason)
        if not row.problem.answer:
            grade = replace(grade, reason="its draft could not be graded")
        parts = {"accuracy": float(grade.verdict == "correct"), "format": values["format"] or 0.0}
        parts |= {name: values.get(name) or 0.0 for name in self._weights if name not in parts}
        return ScoringResult(grade, parts, weighted_reward(parts, self._weights))


def format_reward(completion: str) -> float:
    """Return 1.0 if `completion` is one `<think>…</think>` followed by one `<answer>…</answer>`, else 0.0.

    Only white space may be around and between the two. Each must have a visible character, and each of the four tags
    must occur exactly once.
    """
    match = _FORMAT.fullmatch(completion)
    return float(match is not None and all(_is_visible(content) for content in match.groups()))


def soft_overlong_reward(length: int, max_length: int, cache: int) -> float:
    """Return the soft overlong punishment of DAPO (arXiv 2503.14476, equation 13); lengths are in tokens.

    It is 0 up to `max_length - cache` tokens, then falls linearly to -1 at `max_length`. A cache larger than
    `max_length` counts as `max_length`.
    """
    cache = min(cache, max_length)
    return min(0.0, max(-1.0, (max_length - cache - length) / cache))


def length_reward(length: int, max_length: int) -> float:
    """Return the unused share of the allowed length in tokens: 1 for an empty completion, 0 from `max_length` on."""
    return max(0.0, 1 - length / max_length)


def copy_reward(completion: str, draft: str | None) -> float:
    """Return minus the overlap of a completion with the draft in its prompt, from 0 to -1; 0 without draft.

    Both texts are split into words and single signs. The overlap is 2 c / (a + b), where a and b are the numbers of
    runs of three in the two texts, and c is the number of runs that they share, a run that occurs twice counted twice.
    Two marks before and after each text are part of the runs, so a text of one word has three. The overlap is 1 for
    equal words; it takes a time linear in the length.
    """
    if draft is None:
        return 0.0
    ours, theirs = _runs(completion), _runs(draft)
    shared = (ours & theirs).total()
    return -2 * shared / (ours.total() + theirs.total()) if shared else 0.0


def _runs(text: str) -> Counter[tuple[str, ...]]:
    words = ["", "", *_WORD.findall(text), "", ""]
    return Counter(zip(words, words[1:], words[2:], strict=False))


def _is_visible(text: str) -> bool:
    return any(character.isprintable() and not character.isspace() for character in text)


def weighted_reward(parts: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Return the sum of weights[name] * parts[name]; a part without a weight does not count.

    Raises UsageError for a weight without a part, and if the sum is not finite.
    """
    missing = sorted(weights.keys() - parts.keys())
    if missing:
        raise UsageError(f"reward.weights has {missing[0]}, but the reward has only the parts {', '.join(parts)}")
    total = math.fsum(weights[name] * parts[name] for name in weights)
    if not math.isfinite(total):
        raise UsageError(f"the reward is not finite: parts {dict(parts)}, weights {dict(weights)}")
    return total
