"""The arithmetic problems: reproducible, correct, with levels, and without leaks between the splits."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ARITHMETIC = Path(__file__).parents[2] / "data" / "arithmetic"
SPLITS = {"train": 3200, "test": 512}


def read_split(split: str) -> list[dict]:
    return [json.loads(line) for line in (ARITHMETIC / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def signed_terms(problem: str) -> list[int]:
    assert re.fullmatch(r"\d+([+-]\d+)+=\?", problem), problem
    return [int(term) for term in re.findall(r"[+-]?\d+", problem)]


def operands(problem: str) -> tuple[int, ...]:
    return tuple(sorted(abs(term) for term in signed_terms(problem)))


def test_the_script_writes_the_same_bytes_again(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ARITHMETIC / "make_problems.py", tmp_path], check=True)
    for split in (*SPLITS, "digits-train", "digits-test"):
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (ARITHMETIC / f"{split}.jsonl").read_bytes()


@pytest.mark.parametrize("split", SPLITS)
def test_rows_have_their_fields_and_ids_in_order(split: str) -> None:
    rows = read_split(split)
    assert len(rows) == SPLITS[split]
    for index, row in enumerate(rows):
        assert row["id"] == f"arithmetic-{split}-{index:05d}"
        assert set(row) == {"id", "problem", "answer", "source", "level"}


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_is_the_value_of_its_problem(split: str) -> None:
    for row in read_split(split):
        assert row["answer"] == str(sum(signed_terms(row["problem"])))
        assert int(row["answer"]) >= 0


@pytest.mark.parametrize("split", SPLITS)
def test_the_level_is_the_shape_of_the_problem(split: str) -> None:
    digits_of_level = {1: ["11"], 2: ["12", "21"], 3: ["22"], 4: ["211"]}
    for row in read_split(split):
        digits = "".join(str(len(str(abs(term)))) for term in signed_terms(row["problem"]))
        assert digits in digits_of_level[row["level"]], row


def test_both_splits_have_the_same_mixture_of_levels() -> None:
    shares = {
        split: {level: count / SPLITS[split] for level, count in Counter(r["level"] for r in read_split(split)).items()}
        for split in SPLITS
    }
    assert shares["train"].keys() == {1, 2, 3, 4}
    assert shares["train"] == pytest.approx(shares["test"], abs=0.01)


def test_no_problem_occurs_twice() -> None:
    problems = [row["problem"] for split in SPLITS for row in read_split(split)]
    assert len(set(problems)) == len(problems)


def test_no_operands_of_test_occur_in_train_in_any_order_or_sign() -> None:
    train = {operands(row["problem"]) for row in read_split("train")}
    test = {operands(row["problem"]) for row in read_split("test")}
    assert not train & test


def digits(split: str) -> dict[tuple[int, str, int], str]:
    """Return the answers of a split of one-digit questions by first operand, sign and second operand."""
    answers = {}
    for row in read_split(split):
        first, sign, second = re.fullmatch(r"What is (\d) ([-+*]) (\d)\?", row["problem"]).groups()
        answers[int(first), sign, int(second)] = row["answer"]
    return answers


def test_the_one_digit_questions_are_all_pairs_without_negative_answers() -> None:
    both = digits("digits-train") | digits("digits-test")
    value = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
    assert both == {
        (a, sign, b): str(compute(a, b))
        for a in range(1, 10)
        for b in range(1, 10)
        for sign, compute in value.items()
        if compute(a, b) >= 0
    }


def test_no_pair_of_digits_is_in_both_splits_in_any_order_or_with_any_sign() -> None:
    train, test = ({tuple(sorted((a, b))) for a, _, b in digits(f"digits-{split}")} for split in SPLITS)
    assert not train & test
