"""The accuracy part of the reward: which answer a completion gives, and whether it equals the reference."""

from __future__ import annotations

import time

from igrpo_cli.records import Grade, Verdict
from igrpo_cli.rewards.choices import named_choice, reference_choice
from igrpo_cli.rewards.copying import is_copied
from igrpo_cli.rewards.equivalence import are_equal
from igrpo_cli.rewards.extraction import (
    MAX_CHARACTERS,
    answer_scope,
    extract_answer,
    extract_choice,
    extract_reference,
)
from igrpo_cli.rewards.form_reader import num_parts
from igrpo_cli.rewards.notation import is_blank, tidy


def grade_answer(
    completion: str, reference: str, max_characters: int = MAX_CHARACTERS, problem: str | None = None
) -> Grade:
    """Grade one completion (or an answer alone) against `reference`, in this process and without limits.

    An answer that is copied from the text of `problem` and is not the reference itself is wrong.

    Never raises an Exception. The grade is `ungraded`, with a reason, if the reference is empty, the answer is longer
    than `max_characters`, or the comparison fails. Use a `GradingPool` for text of a model: some of it takes hours or
    gigabytes to compare.
    """
    start = time.perf_counter()
    verdict, extracted, reason = _verdict(completion, reference, max_characters)
    if verdict == "correct" and problem and extracted and is_copied(extracted, problem, extract_reference(reference)):
        verdict = "wrong"
    return Grade(verdict, extracted, time.perf_counter() - start, reason)


def _verdict(completion: str, reference: str, max_characters: int) -> tuple[Verdict, str | None, str | None]:
    """Return verdict, extracted answer and, for `ungraded`, the reason, which holds no text of the model."""
    extracted: str | None = None
    try:
        expected = extract_reference(reference)
        if is_blank(expected):
            return "ungraded", None, "empty reference"
        choice = reference_choice(expected)
        whole = answer_scope(completion)[0]
        if choice is None and whole == reference.strip():  # equal as text, whatever it may look like ("10:30 am")
            return "correct", _storable(whole), None
        if choice is None:
            answer = extract_answer(completion, max_characters, num_parts(tidy(expected)))
        else:
            answer = extract_choice(completion, max_characters)
        if answer is not None and len(answer) > max_characters:
            return "ungraded", None, f"answer longer than {max_characters} characters"
        if answer is None or is_blank(answer):
            return "no_answer", None, None
        extracted = _storable(answer)
        if choice is not None and (named := named_choice(answer)):
            extracted = f"({named})"
        return "correct" if are_equal(answer, expected) else "wrong", extracted, None
    except Exception as error:
        return "ungraded", extracted, type(error).__name__


def _storable(text: str) -> str:
    """Return `text` as valid Unicode, which Parquet can store."""
    return text.encode("utf-8", "replace").decode("utf-8")
