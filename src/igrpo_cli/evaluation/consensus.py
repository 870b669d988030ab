"""cons@k: the majority of a problem's samples where equal answers are one vote, however they are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from igrpo_cli.evaluation.answer_classes import Pair, answer_classes
from igrpo_cli.evaluation.summary import by_problem, correct_matrix, majorities
from igrpo_cli.pipeline.session import Session
from igrpo_cli.records import Grade, Rollout

if TYPE_CHECKING:
    from igrpo_cli.rewards.grading_pool import GradingPool

PAIRS_AT_ONCE = 512
"""Pairs that are compared between two reports of progress."""


def consensus(session: Session, rollouts: Sequence[Rollout], title: str) -> dict[str, float]:
    """cons@k by k of an evaluation. The graders start only if a problem has several answers that are not right."""
    groups = by_problem(rollouts)
    answers = [[row.extracted_answer for row in group] for group in groups]
    verdicts = [[row.verdict for row in group] for group in groups]
    with _comparing(session, title) as grade:
        classes = answer_classes(answers, verdicts, grade)
    return majorities(classes, correct_matrix(rollouts))


@contextmanager
def _comparing(session: Session, title: str) -> Iterator[Callable[[Sequence[Pair]], list[Grade]]]:
    with ExitStack() as own:
        pools: list[GradingPool] = []

        def grade(pairs: Sequence[Pair]) -> list[Grade]:
            if not pools:
                pools.append(_graders(session, own))
            grades: list[Grade] = []
            with session.console.progress(title, len(pairs), "pairs") as progress:
                for first in range(0, len(pairs), PAIRS_AT_ONCE):
                    graded = pools[0].grade(pairs[first : first + PAIRS_AT_ONCE])
                    progress.advance(len(graded))
                    grades += graded
            return grades

        yield grade


def _graders(session: Session, own: ExitStack) -> GradingPool:
    """The session's; where these call a user's own reward functions, others that do not: no completion is judged."""
    from igrpo_cli.rewards.grading_pool import GradingPool

    section = session.config.reward
    if not section.functions_in_use:
        return session.grader()
    return own.enter_context(GradingPool(section))
