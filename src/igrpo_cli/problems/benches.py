"""The sets that have a name: where they lie on the Hugging Face Hub and how their columns are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

AnswerForm = Literal["auto", "plain", "solution"]
"""How the reference answer stands in its column (see `answers`)."""

AIME_REPEATS = 64
OTHER_REPEATS = 8


@dataclass(frozen=True, slots=True)
class ProblemSource:
    """Where problems lie and how to read them; None means: find out from the data."""

    location: Path | str
    """A local file or folder (`Path`), or a Hub id (`str`)."""
    split: str | None = None
    configs: tuple[str, ...] = ()
    """Hub configs, or subfolders of a local folder, read one after the other; empty means the default one."""
    problem_column: str | None = None
    answer_column: str | None = None
    id_column: str | None = None
    """Column of the identifiers; `none` numbers the rows instead."""
    answer_form: AnswerForm = "auto"
    revision: str | None = None
    choices_column: str | None = None
    """Column of the lists of choices, of which the answer names one; `none` leaves such a column unread."""
    wrong_columns: tuple[str, ...] = ()
    """Columns of the wrong choices, where the answer column, which must be named, holds the right one in full."""


@dataclass(frozen=True, slots=True)
class NamedSet:
    """A set of problems with a short name."""

    name: str
    source: ProblemSource
    repeats: int = OTHER_REPEATS
    """Samples per problem in the paper's evaluation; without meaning for a training set."""


def _table(*sets: NamedSet) -> dict[str, NamedSet]:
    return {named.name: named for named in sets}


BENCHES: dict[str, NamedSet] = _table(
    NamedSet(
        "aime24",
        ProblemSource("HuggingFaceH4/aime_2024", "train", problem_column="problem", answer_column="answer"),
        AIME_REPEATS,
    ),
    NamedSet(
        "aime25",
        ProblemSource("math-ai/aime25", "test", problem_column="problem", answer_column="answer"),
        AIME_REPEATS,
    ),
    NamedSet(
        "aime26",
        ProblemSource("MathArena/aime_2026", "train", problem_column="problem", answer_column="answer"),
        AIME_REPEATS,
    ),
    NamedSet("amc23", ProblemSource("math-ai/amc23", "test")),
    NamedSet(
        "math500",
        ProblemSource("HuggingFaceH4/MATH-500", "test", problem_column="problem", answer_column="answer"),
    ),
    NamedSet(
        "gsm8k",
        ProblemSource("openai/gsm8k", "test", ("main",), "question", "answer", answer_form="solution"),
    ),
    NamedSet("minerva", ProblemSource("math-ai/minervamath", "test")),
    NamedSet(
        "olympiadbench",
        ProblemSource("Hothan/OlympiadBench", "train", ("OE_TO_maths_en_COMP",), "question", "final_answer"),
    ),
    NamedSet(
        "gpqa",
        ProblemSource(
            "Idavidrein/gpqa",
            "train",
            ("gpqa_diamond",),
            "Question",
            "Correct Answer",
            wrong_columns=("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
        ),
    ),
    NamedSet(
        "mmlu_pro",
        ProblemSource(
            "TIGER-Lab/MMLU-Pro",
            "test",
            problem_column="question",
            answer_column="answer",
            choices_column="options",
        ),
    ),
)
"""Benchmarks of the paper and their successors. Some Hub sets keep their test problems under `train`."""

TRAINING_SETS: dict[str, NamedSet] = _table(
    NamedSet(
        "gsm8k",
        ProblemSource("openai/gsm8k", "train", ("main",), "question", "answer", answer_form="solution"),
    ),
    NamedSet(
        "math",
        ProblemSource(
            "DigitalLearningGmbH/MATH-lighteval",
            "train",
            problem_column="problem",
            answer_column="solution",
            answer_form="solution",
        ),
    ),
    NamedSet(
        "deepscaler",
        ProblemSource(
            "agentica-org/DeepScaleR-Preview-Dataset",
            "train",
            problem_column="problem",
            answer_column="answer",
        ),
    ),
    NamedSet(
        "dapo",
        ProblemSource(
            "open-r1/DAPO-Math-17k-Processed",
            "train",
            problem_column="prompt",
            answer_column="solution",
            answer_form="plain",
        ),
    ),
    NamedSet("acereason", ProblemSource("nvidia/AceReason-Math", "train")),
)
"""Training sets by name; `dapo` names its column `solution` though it holds the bare answer."""
