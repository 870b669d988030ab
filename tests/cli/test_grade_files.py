"""Files for `igrpo grade` that are not what it expects."""

from __future__ import annotations

import json

from command_line import igrpo

ROW = '"gold": "42", "answer": "42"'


def grade(tmp_path, text):
    (tmp_path / "rows.jsonl").write_text(text)
    return igrpo("grade", tmp_path / "rows.jsonl", "--set", "reward.num_workers=1")


def test_brackets_without_end_are_no_row(tmp_path):
    result = grade(tmp_path, "[" * 200_000)
    assert result.code == 1
    assert "row 1 is not a JSON object" in result.stderr


def test_what_is_printed_is_json_whatever_the_id(tmp_path):
    result = grade(tmp_path, f'{{"id": NaN, {ROW}}}\n{{"id": [1e999, 7], {ROW}}}\n')
    lines = [json.loads(line, parse_constant=lambda name: name) for line in result.stdout.splitlines()]
    assert [line["id"] for line in lines] == [None, [None, 7]]


def test_a_file_without_rows_is_no_success(tmp_path):
    result = grade(tmp_path, "\n")
    assert (result.code, result.stdout) == (3, "")
    assert "has no rows" in result.stderr


def test_references_that_have_lost_a_backslash_are_counted(tmp_path):
    result = grade(tmp_path, '{"gold": "\\frac12", "answer": "x"}\n{"gold": "1\\n", "answer": "1"}\n')
    assert result.code == 0
    assert len(result.stdout.splitlines()) == 2
    assert "1 references have lost a backslash: " in result.stderr
    assert "row 1 contains the control character U+000C, which is \\frac with one backslash" in result.stderr


def test_a_copy_of_the_problem_earns_nothing_in_a_row_that_has_the_problem(tmp_path):
    row = {"gold": "70", "answer": "\\boxed{\\binom{8}{4}}"}
    known = {**row, "problem": "Compute $\\binom{8}{4}$."}
    result = grade(tmp_path, f"{json.dumps(row)}\n{json.dumps(known)}\n")
    assert [json.loads(line)["verdict"] for line in result.stdout.splitlines()] == ["correct", "wrong"]
    assert grade(tmp_path, json.dumps({**row, "problem": 7})).code == 1
