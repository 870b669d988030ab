"""cons@k: majority voting in which answers with the same meaning, such as 1/2 and 0.5, are one vote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from igrpo_cli.evaluation.summary import by_problem, correct_matrix, graded, majorities
from igrpo_cli.pipeline.session import Session
from igrpo_cli.records import Grade, Rollout, Verdict
from igrpo_cli.rewards.extraction import extract_answer

if TYPE_CHECKING:
    from igrpo_cli.rewards.grading_pool import GradingPool

Pair = tuple[str, str]
"""(completion, reference)."""
GradePairs = Callable[[Sequence[Pair]], Sequence[Grade]]
"""A function such as `GradingPool.grade`."""
PAIRS_AT_ONCE = 512
"""Pairs that are compared between two updates of the progress bar."""
CORRECT = 0
"""The class of all completions with the verdict `correct`, because each of them equals the reference."""


def consensus(session: Session, rollouts: Sequence[Rollout], title: str) -> dict[str, float]:
    """Return cons@k of an evaluation by k. Grading processes start only when there are answers to compare."""
    all_samples = by_problem(rollouts)
    groups = [graded(group) for group in all_samples]
    answers = [[row.extracted_answer for row in group] for group in groups]
    verdicts = [[row.verdict for row in group] for group in groups]
    with _comparing(session, title) as grade:
        classes = answer_classes(answers, verdicts, grade)
    return majorities(classes, correct_matrix(rollouts), len(all_samples[0]))


def answer_classes(
    answers_Pk: Sequence[Sequence[str | None]], verdicts_Pk: Sequence[Sequence[Verdict]], grade: GradePairs
) -> list[list[int | None]]:
    """Return a class number for each sample, [problems, samples]. Samples of a problem in one class agree.

    A sample without answer has no class (None) and no vote. Answers that are not correct are compared by the grader.
    Two answers agree when it accepts either as an answer to the other. For a grader this relation is not transitive,
    so each class has a representative, the first text without a class, and holds the texts that agree with it. One
    class is found for all problems at once, with two calls of `grade`.
    """
    classes = [_correct_texts(*each) for each in zip(answers_Pk, verdicts_Pk, strict=True)]
    unclassified = [_texts_without_class(*each) for each in zip(answers_Pk, classes, strict=True)]
    number = CORRECT
    while any(unclassified):
        number += 1
        compared = [(problem, text) for problem, texts in enumerate(unclassified) for text in texts[1:]]
        equal = _agree([(text, unclassified[problem][0]) for problem, text in compared], grade)
        for problem, texts in enumerate(unclassified):
            classes[problem].update(dict.fromkeys(texts[:1], number))
        for (problem, text), is_equal in zip(compared, equal, strict=True):
            if is_equal:
                classes[problem][text] = number
        unclassified = [_texts_without_class(*each) for each in zip(unclassified, classes, strict=True)]
    return [
        [None if answer is None else of_text[answer] for answer in answers]
        for answers, of_text in zip(answers_Pk, classes, strict=True)
    ]


def _correct_texts(answers: Sequence[str | None], verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Return {text: CORRECT} of the correct answers."""
    pairs = zip(answers, verdicts, strict=True)
    return {answer: CORRECT for answer, verdict in pairs if answer is not None and verdict == "correct"}


def _texts_without_class(answers: Sequence[str | None], classes: Mapping[str, int]) -> list[str]:
    """Return the distinct answers without a class, in order of their first sample."""
    return list(dict.fromkeys(answer for answer in answers if answer is not None and answer not in classes))


def _agree(pairs: Sequence[tuple[str, str]], grade: GradePairs) -> list[bool]:
    """Return for each pair if the grader accepts one text for the other. It is not symmetric: both orders are tried."""
    agree = list(_accepted(pairs, grade))
    rejected = [index for index, is_equal in enumerate(agree) if not is_equal]
    turned = _accepted([(pairs[index][1], pairs[index][0]) for index in rejected], grade)
    for index, is_equal in zip(rejected, turned, strict=True):
        agree[index] = is_equal
    return agree


def _accepted(pairs: Sequence[tuple[str, str]], grade: GradePairs) -> Iterator[bool]:
    stated = [(_as_completion(answer), _as_completion(reference)) for answer, reference in pairs]
    comparable = [(answer, reference) for answer, reference in stated if answer and reference]
    grades = iter(grade(comparable) if comparable else ())
    return (bool(answer and reference) and next(grades).verdict == "correct" for answer, reference in stated)


def _as_completion(answer: str) -> str | None:
    """Return a completion, or a reference, that states only `answer`.

    Only a boxed answer is taken word for word: without the box, the grader reads "5 apples" as 5. None for a text that
    cannot be boxed, for example with an unbalanced brace. It agrees only with the same text.
    """
    boxed = f"\\boxed{{{answer}}}"
    return boxed if extract_answer(boxed) == answer.strip() else None


@contextmanager
def _comparing(session: Session, title: str) -> Iterator[Callable[[Sequence[Pair]], list[Grade]]]:
    with ExitStack() as own:
        pools: list[GradingPool] = []

        def grade(pairs: Sequence[Pair]) -> list[Grade]:
            if not pools:
                pools.append(_grading_pool(session, own))
            grades: list[Grade] = []
            with session.console.progress(title, len(pairs), "pairs") as progress:
                for first in range(0, len(pairs), PAIRS_AT_ONCE):
                    graded = pools[0].grade(pairs[first : first + PAIRS_AT_ONCE])
                    progress.advance(len(graded))
                    grades += graded
            return grades

        yield grade


def _grading_pool(session: Session, own: ExitStack) -> GradingPool:
    """Return the pool of the session, or one without the user's reward functions, which must not be called here."""
    from igrpo_cli.rewards.grading_pool import GradingPool

    section = session.config.reward
    if not section.functions_in_use:
        return session.grader()
    return own.enter_context(GradingPool(section))
