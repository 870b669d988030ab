"""The accuracy part of the reward: what a completion answers, and whether that is the reference."""

from __future__ import annotations

import time
from dataclasses import dataclass

from igrpo_cli.records import Grade, Verdict
from igrpo_cli.rewards.equivalence import are_equal, is_blank, named_choice, reference_choice
from igrpo_cli.rewards.extraction import (
    MAX_CHARACTERS,
    answer_scope,
    extract_answer,
    extract_choice,
    extract_reference,
)

__all__ = ["Judgement", "extract_answer", "grade_answer", "judge"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict with what it rests on."""

    verdict: Verdict
    extracted_answer: str | None
    """The text that was compared, `(B)` for a choice; valid Unicode, so that it can be stored."""
    reason: str | None = None
    """Why nothing was judged, for `ungraded`; holds no text of the model."""


def grade_answer(completion: str, reference: str, max_characters: int = MAX_CHARACTERS) -> Grade:
    """Grades one completion (or a bare answer) against `reference`, in this process and without limits.

    Text of a model belongs into a `GradingPool`: some of it takes hours or gigabytes to compare.
    """
    start = time.perf_counter()
    judgement = judge(completion, reference, max_characters)
    return Grade(judgement.verdict, judgement.extracted_answer, time.perf_counter() - start)


def judge(completion: str, reference: str, max_characters: int = MAX_CHARACTERS) -> Judgement:
    """The same with the reason of an `ungraded`; never raises an Exception.

    `ungraded` means that the answer was not judged: the reference is empty, the answer is longer than
    `max_characters`, or the comparison failed. It earns no reward, but it is not called wrong.
    """
    extracted: str | None = None
    try:
        expected = extract_reference(reference)
        if is_blank(expected):
            return Judgement("ungraded", None, "empty reference")
        choice = reference_choice(expected)
        whole = answer_scope(completion)[0]
        if choice is None and whole == reference.strip():  # word for word, whatever it may look like ("10:30 am")
            return Judgement("correct", _storable(whole))
        extract = extract_answer if choice is None else extract_choice
        answer = extract(completion, max_characters)
        if answer is not None and len(answer) > max_characters:
            return Judgement("ungraded", None, f"answer longer than {max_characters} characters")
        if answer is None or is_blank(answer):
            return Judgement("no_answer", None)
        extracted = _storable(answer)
        if choice is not None and (named := named_choice(answer)):
            extracted = f"({named})"
        return Judgement("correct" if are_equal(answer, expected) else "wrong", extracted)
    except Exception as error:
        return Judgement("ungraded", extracted, type(error).__name__)


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
