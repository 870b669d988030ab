"""Sums of 16 digits without carries: reproducible problems, with right answers, in disjoint splits."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

COLUMNS = Path(__file__).parents[2] / "data" / "columns"
SPLITS = {"train": 2000, "test": 400}


def read_split(split: str) -> list[dict]:
    return [json.loads(line) for line in (COLUMNS / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_script_writes_the_same_bytes_again(tmp_path: Path) -> None:
    subprocess.run([sys.executable, COLUMNS / "make_problems.py", tmp_path], check=True)
    for split in SPLITS:
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (COLUMNS / f"{split}.jsonl").read_bytes()


@pytest.mark.parametrize("split", SPLITS)
def test_rows_have_their_fields_and_ids_in_order(split: str) -> None:
    rows = read_split(split)
    assert len(rows) == SPLITS[split]
    for index, row in enumerate(rows):
        assert row["id"] == f"columns-{split}-{index:05d}"
        assert set(row) == {"id", "problem", "answer", "source", "level"}


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_is_the_sum_without_carries_and_no_number_begins_with_0(split: str) -> None:
    for row in read_split(split):
        match = re.fullmatch(r"no carry: ([1-9]\d{15})\+([1-9]\d{15})", row["problem"])
        assert match is not None, row["problem"]
        first, second, answer = int(match[1]), int(match[2]), int(row["answer"])
        assert str(answer) == row["answer"]
        assert answer >= 10**15
        for place in range(16):
            digits = [number // 10**place % 10 for number in (first, second, answer)]
            assert digits[2] == (digits[0] + digits[1]) % 10


def test_no_problem_occurs_twice_or_in_both_splits() -> None:
    problems = [row["problem"] for split in SPLITS for row in read_split(split)]
    assert len(set(problems)) == sum(SPLITS.values())
