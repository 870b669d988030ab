"""Columns are found by setting or by a known name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from problem_files import GOOD, OTHER, Row, pairs, write_lines

from igrpo_cli.errors import UsageError
from igrpo_cli.problems.loading import load_problems


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"question": "1+1?", "answer": "2"}, {}),
        ({"Problem": "1+1?", "Answer": 2, "Solution": "a \\boxed{3}"}, {}),
        ({"prompt": "1+1?", "expected_answer": "2"}, {}),
        ({"prompt": [{"content": "1+1?", "role": "user"}], "final_answer": ["2"]}, {}),
        ({"problem": "1+1?", "solution": "so \\boxed{1}, no \\boxed{2}"}, {}),
        ({"question": "1+1?", "answer": "so <<1+1=2>>2\n#### 2"}, {}),
        ({"problem": "no", "question": "1+1?", "answer": "2"}, {"problem_column": "question"}),
        ({"problem": "1+1?", "answer": "long", "key": {"gold": 2}}, {"answer_column": "key.gold"}),
        ({"problem": "1+1?", "solution": "2"}, {"answer_form": "plain"}),
    ],
)
def test_columns_are_found_or_named(tmp_path: Path, row: Row, names: dict[str, Any]) -> None:
    assert pairs(load_problems(str(write_lines(tmp_path / "a.jsonl", [row])), **names)) == [("1+1?", "2")]


@pytest.mark.parametrize(
    ("row", "names", "message", "hint"),
    [
        (
            {"text": "1+1?", "answer": "2"},
            {},
            "no column has a known name for the problem .*text, answer",
            "problem_column",
        ),
        (
            {"problem": "1+1?", "gold": "2"},
            {},
            "no column has a known name for the answer .*problem, gold",
            "answer_column",
        ),
        (
            {"problem": "a", "question": "b", "answer": "2"},
            {},
            "hold the problem: problem, question",
            "problem_column",
        ),
        (
            {"problem": "a", "answer": "1", "final_answer": "2"},
            {},
            "hold the answer: answer, final",
            "answer_column",
        ),
        ({"problem": "a", "answer": "1"}, {"problem_column": "q"}, "no column q .*problem, answer", None),
        ({"problem": "a", "answer": "1"}, {"id_column": "uid"}, "no column uid", None),
    ],
)
def test_ambiguous_columns_are_listed(
    tmp_path: Path, row: Row, names: dict[str, Any], message: str, hint: str | None
) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        load_problems(str(write_lines(tmp_path / "a.jsonl", [row])), **names)
    assert hint is None or hint in (refused.value.hint or "")


def test_ids_can_be_named_or_ignored(tmp_path: Path) -> None:
    rows: list[Row | str | bytes] = [{"id": 1, "key": "a", **GOOD}, {"id": 1, "key": "b", **OTHER}]
    path = str(write_lines(tmp_path / "a.jsonl", rows))
    assert [row.problem_id for row in load_problems(path, id_column="key").problems] == ["a", "b"]
    assert [row.problem_id for row in load_problems(path, id_column="none").problems] == ["a-1", "a-2"]
    path = str(write_lines(tmp_path / "a.jsonl", [{"id": 1, **GOOD}, {"id": None, **OTHER}]))
    assert load_problems(path, skip_bad_rows=True).counts["empty_id"] == 1


def test_whole_numbers_as_ids_are_digits(tmp_path: Path) -> None:
    path = str(write_lines(tmp_path / "a.jsonl", [{"id": 1.0, **GOOD}, {"id": 2, **OTHER}]))
    assert [row.problem_id for row in load_problems(path).problems] == ["1", "2"]
