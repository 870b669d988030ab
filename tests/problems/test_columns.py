"""Columns are found by setting or by a known name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from problem_files import GOOD, OTHER, Row, pairs, write_lines

from igrpo_cli.errors import IgrpoError, UsageError
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
        ({"prompt": "1+1?", "solution": 2}, {}),
        ({"prompt": [{"content": "1+1?", "role": "user"}], "solution": "2"}, {}),
        ({"prompt": "1+1?", "ground_truth": "2", "solution": "so \\boxed{3}"}, {}),
        ({"prompt": "1+1?", "answer": "2", "ground_truth": "3"}, {}),
        ({"question": {"text": "1+1?", "id": 7}, "answer": {"Value": 2, "unit": None}}, {}),
        ({"prompt": "1+1?", "reward_model": '{"style": "rule", "ground_truth": "2"}'}, {}),
        ({"prompt": "1+1?", "reward_model": "{'style': 'rule', 'ground_truth': '2'}"}, {}),
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


NESTED: Row = {
    "task": {"input": {"text": "1+1?"}, "a.b": {"c": "2"}, "numbers": [{"n": 1}, {"n": 2}]},
    "written": '{"deep": {"gold": ["1", "2"]}}',
    "conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}],
}


@pytest.mark.parametrize(
    ("problem", "answer"),
    [
        ("task.input.text", "task.a.b.c"),
        ("task.input.text", "task.numbers.1.n"),
        ("task.input.text", "task.numbers.-1.n"),
        ("task.input.text", "written.deep.gold.1"),
        ("conversations.0.value", "conversations.1.value"),
    ],
)
def test_columns_are_named_at_any_depth(tmp_path: Path, problem: str, answer: str) -> None:
    path = str(write_lines(tmp_path / "a.jsonl", [NESTED]))
    assert pairs(load_problems(path, problem_column=problem, answer_column=answer)) == [("1+1?", "2")]


def test_a_cell_of_csv_may_hold_json(tmp_path: Path) -> None:
    cell = '"{""style"": ""rule"", ""ground_truth"": ""2""}"'
    chat = '"[{""role"": ""user"", ""content"": ""1+1?""}]"'
    (tmp_path / "a.csv").write_text(f"prompt,reward_model\n{chat},{cell}\n")
    assert pairs(load_problems(str(tmp_path / "a.csv"))) == [("1+1?", "2")]


def test_a_place_that_does_not_exist_is_an_error_that_lists_those_that_do(tmp_path: Path) -> None:
    path = str(write_lines(tmp_path / "a.jsonl", [NESTED]))
    for wrong in ("task.input.words", "conversations.2.value", "written.deep.gold.x", "task.numbers.n"):
        with pytest.raises(UsageError, match=f"no column {wrong} .*task.input.text.*written.deep.gold"):
            load_problems(path, problem_column=wrong, answer_column="task.a.b.c")


def test_an_object_without_a_key_for_its_text_is_named(tmp_path: Path) -> None:
    path = str(write_lines(tmp_path / "a.jsonl", [{"question": {"en": "1+1?", "de": "1+1?"}, "answer": "2"}]))
    message = r"a\.jsonl: the problem in column question is an object \(question.en, question.de\)"
    with pytest.raises(UsageError, match=message) as refused:
        load_problems(path)
    assert (refused.value.hint or "").startswith("name one of its keys: --set data.problem_column=question.KEY;")
    assert pairs(load_problems(path, problem_column="question.de")) == [("1+1?", "2")]


def test_a_solution_without_a_mark_is_an_answer_or_an_error(tmp_path: Path) -> None:
    rows: list[Row | str | bytes] = [
        {"problem": "1+1?", "solution": "so \\boxed{2}"},
        {"problem": "2?", "solution": 2.0},
    ]
    assert pairs(load_problems(str(write_lines(tmp_path / "a.jsonl", rows)))) == [("1+1?", "2"), ("2?", "2")]
    worked: Row = {"problem": "3+4?", "solution": "3 and 4 make 7"}
    path = str(write_lines(tmp_path / "b.jsonl", [worked]))
    with pytest.raises(IgrpoError, match=r"b\.jsonl row 1: the solution marks no answer") as refused:
        load_problems(path)
    assert "--set data.answer_form=plain" in (refused.value.hint or "")
    assert pairs(load_problems(path, answer_form="plain")) == [("3+4?", "3 and 4 make 7")]
