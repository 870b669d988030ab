"""The reward of a completion: all of its parts, from whoever says them, and their weighted sum.

| part | value | said by |
|---|---|---|
| `accuracy` | 1 if the verdict is `correct`, else 0 | the grading workers |
| `format` | 1 for one thought and one answer in their tags | `formatting` |
| `overlong` | 0, falling to -1 over the last tokens | `formatting` |
| `length` | share of the allowed length that was left, in [0, 1] | `formatting` |
| `judge` | in [0, 1] | a judge model |
| any other | what a user's own function returns | the grading workers |

A part that somebody failed to say makes the row `ungraded`: it earns nothing for that part, nor for accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from igrpo_cli.records import FinishReason, Grade, Problem
from igrpo_cli.rewards.formatting import format_reward, length_reward, soft_overlong_reward, weighted_reward
from igrpo_cli.rewards.workers import GradingPool

if TYPE_CHECKING:
    from igrpo_cli.rewards.judge import Judge, JudgeScore


@dataclass(frozen=True, slots=True)
class ScoringInput:
    """One completion, with all that its reward may depend on."""

    problem: Problem
    prompt: str
    completion: str
    num_tokens: int
    max_completion_length: int
    finish_reason: FinishReason

    def context(self) -> dict[str, Any]:
        """What a user's own function may ask for beyond completion, reference and verdict."""
        return {
            "problem": self.problem.problem,
            "prompt": self.prompt,
            "num_tokens": self.num_tokens,
            "max_completion_length": self.max_completion_length,
            "finish_reason": self.finish_reason,
        }


@dataclass(frozen=True, slots=True)
class ScoringResult:
    """What became of it."""

    grade: Grade
    parts: dict[str, float]
    """`accuracy` and `format`, and whatever else has a weight."""
    reward: float


class Scorer:
    """Scores completions. May be used from any thread; keeps nothing but what it was given."""

    def __init__(
        self,
        pool: GradingPool,
        weights: Mapping[str, float],
        *,
        overlong_cache: int | None = None,
        judge: Judge | None = None,
        has_functions: bool = False,
    ) -> None:
        """`overlong_cache` in tokens, for the part `overlong`; `judge` for the part `judge`."""
        self._pool = pool
        self._weights = weights
        self._overlong_cache = overlong_cache
        self._judge = judge
        self._has_functions = has_functions

    def score(self, rows: Sequence[ScoringInput]) -> list[ScoringResult]:
        """The rewards of `rows`, in order. Raises what the pool and the judge raise: then no row is scored."""
        pairs = [(row.completion, row.problem.answer) for row in rows]
        contexts = [row.context() for row in rows] if self._has_functions else None
        grading = self._pool.submit(pairs, contexts)
        judged: list[JudgeScore] | list[None] = [None] * len(rows)
        if self._judge is not None:
            from igrpo_cli.rewards.judge import JudgeRequest

            requests = [JudgeRequest(row.problem.problem, row.problem.answer, row.completion) for row in rows]
            judged = self._judge.score(requests)
        return [self._scored(*each) for each in zip(rows, grading.result(), judged, strict=True)]

    def _scored(self, row: ScoringInput, grade: Grade, judged: JudgeScore | None) -> ScoringResult:
        said: dict[str, float | None] = {
            "format": format_reward(row.completion),
            "length": length_reward(row.num_tokens, row.max_completion_length),
            "judge": None if judged is None else judged.score,
            **grade.parts,
        }
        if self._overlong_cache is not None:
            said["overlong"] = soft_overlong_reward(row.num_tokens, row.max_completion_length, self._overlong_cache)
        if judged is not None and judged.score is None:
            grade = replace(grade, verdict="ungraded", reason=judged.reason)
        parts = {"accuracy": float(grade.verdict == "correct"), "format": said["format"] or 0.0}
        parts |= {name: said.get(name) or 0.0 for name in self._weights if name not in parts}
        return ScoringResult(grade, parts, weighted_reward(parts, self._weights))
