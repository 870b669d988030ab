"""Which answers of a problem say the same: votes for a majority in which 1/2 and 0.5 are one answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from igrpo_cli.records import Grade, Verdict
from igrpo_cli.rewards.extraction import extract_answer

Pair = tuple[str, str]
"""(completion, reference)."""
GradePairs = Callable[[Sequence[Pair]], Sequence[Grade]]
"""`GradingPool.grade`, or what stands for it."""

CORRECT = 0
"""The class of all completions whose verdict is `correct`: each of them equals the reference."""


def answer_classes(
    answers_Pk: Sequence[Sequence[str | None]], verdicts_Pk: Sequence[Sequence[Verdict]], grade: GradePairs
) -> list[list[int | None]]:
    """[problems, samples] of class numbers: samples of a problem with the same number gave the same answer.

    None (no vote) where no answer was found. Answers that are not correct are compared by the grader: two are equal
    if it accepts either for the other. The first text of a problem that has no class yet stands for the next one, and
    all others are compared with it, of all problems at once: as many calls of `grade` as a problem has classes, two
    for each. Equality is not transitive to a grader; what counts is equality with the text that came first.
    """
    classes = [_right_texts(*each) for each in zip(answers_Pk, verdicts_Pk, strict=True)]
    unclassed = [_texts_beyond(*each) for each in zip(answers_Pk, classes, strict=True)]
    number = CORRECT
    while any(unclassed):
        number += 1
        asked = [(problem, text) for problem, texts in enumerate(unclassed) for text in texts[1:]]
        equal = _equal([(text, unclassed[problem][0]) for problem, text in asked], grade)
        for problem, texts in enumerate(unclassed):
            classes[problem].update(dict.fromkeys(texts[:1], number))
        for (problem, text), is_equal in zip(asked, equal, strict=True):
            if is_equal:
                classes[problem][text] = number
        unclassed = [_texts_beyond(*each) for each in zip(unclassed, classes, strict=True)]
    return [
        [None if answer is None else of_text[answer] for answer in answers]
        for answers, of_text in zip(answers_Pk, classes, strict=True)
    ]


def _right_texts(answers: Sequence[str | None], verdicts: Sequence[Verdict]) -> dict[str, int]:
    """{text: CORRECT} of the answers that are correct."""
    pairs = zip(answers, verdicts, strict=True)
    return {answer: CORRECT for answer, verdict in pairs if answer is not None and verdict == "correct"}


def _texts_beyond(answers: Sequence[str | None], classes: Mapping[str, int]) -> list[str]:
    """The different answers without a class, in order of their first sample."""
    return list(dict.fromkeys(answer for answer in answers if answer is not None and answer not in classes))


def _equal(pairs: Sequence[tuple[str, str]], grade: GradePairs) -> list[bool]:
    """Whether the grader accepts the first for the second or, since it is not symmetric, the second for the first."""
    equal = list(_accepted(pairs, grade))
    open_ = [index for index, is_equal in enumerate(equal) if not is_equal]
    turned = _accepted([(pairs[index][1], pairs[index][0]) for index in open_], grade)
    for index, is_equal in zip(open_, turned, strict=True):
        equal[index] = is_equal
    return equal


def _accepted(pairs: Sequence[tuple[str, str]], grade: GradePairs) -> Iterator[bool]:
    stated = [(_as_statement(answer), _as_statement(reference)) for answer, reference in pairs]
    comparable = [(answer, reference) for answer, reference in stated if answer and reference]
    grades = iter(grade(comparable) if comparable else ())
    return (bool(answer and reference) and next(grades).verdict == "correct" for answer, reference in stated)


def _as_statement(answer: str) -> str | None:
    """A completion, or a reference, that states `answer` and nothing else.

    In a box, since only what stands in a box is taken word for word: of "5 apples" without one, the grader reads 5.
    None for an answer that cannot stand in one, such as one with a brace too many: it equals only the same text.
    """
    boxed = f"\\boxed{{{answer}}}"
    return boxed if extract_answer(boxed) == answer.strip() else None
