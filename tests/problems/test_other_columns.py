"""The columns of a data file besides problem and answer, and system prompts."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problem_files import write_lines

from igrpo_cli.errors import IgrpoError, UsageError
from igrpo_cli.problems import loading
from igrpo_cli.problems.loading import load_mix, load_problems
from igrpo_cli.problems.rows import BinaryValueError, column_text

ROWS: list[Any] = [
    {"id": "a", "question": "1+1?", "solution": "2", "level": 3, "tests": [{"in": [1], "out": None}]},
    {"id": "b", "question": "2+2?", "solution": "4", "level": None, "note": "é\n"},
]


def columns_of(path: Path, **reading: Any) -> list[dict[str, Any]]:
    return [problem.column_values() for problem in load_problems(str(path), **reading).problems]


def test_all_columns_but_problem_and_id_are_kept_with_null_where_a_row_has_none(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", ROWS)
    assert columns_of(path) == [
        {"solution": "2", "level": 3, "tests": [{"in": [1], "out": None}], "note": None},
        {"solution": "4", "level": None, "tests": None, "note": "é\n"},
    ]


def test_a_column_that_is_the_answer_by_name_is_not_kept_twice(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"problem": "1+1?", "answer": "So #### 2", "ground_truth": "two"}])
    assert columns_of(path) == [{"ground_truth": "two"}]
    path = write_lines(tmp_path / "a.jsonl", [{"problem": "1+1?", "answer": "2"}])
    assert load_problems(str(path)).problems[0].columns == "{}"


def test_the_settings_may_name_the_columns(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", ROWS)
    assert columns_of(path, columns=["level", "question"]) == [
        {"level": 3, "question": "1+1?"},
        {"level": None, "question": "2+2?"},
    ]
    assert columns_of(path, columns=[]) == [{}, {}]
    with pytest.raises(UsageError) as refused:
        load_problems(str(path), columns=["levels"])
    assert "has no column levels (its columns: id, question, solution, level, tests, note)" in refused.value.message


def test_a_mix_has_the_columns_of_all_sources(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"problem": "1+1?", "answer": "2", "level": 3}])
    (tmp_path / "b.csv").write_text("problem,answer,level,source\n2+2?,4,hard,here\n")
    loaded = load_mix({"a": (str(tmp_path / "a.jsonl"), {}), "b": (str(tmp_path / "b.csv"), {})})
    assert [problem.column_values() for problem in loaded.problems] == [
        {"level": 3, "source": None},
        {"level": "hard", "source": "here"},
    ]
    without = load_mix({"a": (str(tmp_path / "a.jsonl"), {"columns": []}), "b": (str(tmp_path / "b.csv"), {})})
    assert without.problems[0].column_values() == {"level": None, "source": None}


def test_binary_columns_are_left_out_and_reported(tmp_path: Path) -> None:
    rows = [
        {"problem": f"{n}+1?", "answer": str(n + 1), "image": {"bytes": b"\x89PNG" if n else None}, "level": n}
        for n in range(2)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    loaded = load_problems(str(tmp_path / "a.parquet"))
    assert [problem.column_values() for problem in loaded.problems] == [{"level": 0}, {"level": 1}]
    assert loaded.left_out_columns == {"image": "it holds binary data"}
    with pytest.raises(UsageError, match="the column image holds binary data, which cannot be kept"):
        load_problems(str(tmp_path / "a.parquet"), columns=["image"])


def test_a_large_column_is_left_out_unless_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MAX_COLUMN_LENGTH", 1 << 20)
    rows = [{"problem": f"{n}+1?", "answer": str(n + 1), "trace": "x" * 400_000, "level": n} for n in range(3)]
    path = write_lines(tmp_path / "a.jsonl", rows)
    loaded = load_problems(str(path))
    assert [problem.column_values() for problem in loaded.problems] == [{"level": n} for n in range(3)]
    assert loaded.left_out_columns["trace"].startswith("it has more than 1 MiB; to keep it, name the columns to keep")
    assert [len(row["trace"]) for row in columns_of(path, columns=["trace"])] == [400_000] * 3


def test_a_duplicate_keeps_the_columns_of_the_first(tmp_path: Path) -> None:
    rows = [{"problem": "1+1?", "answer": "2", "level": level} for level in (1, 2)]
    path = write_lines(tmp_path / "a.jsonl", rows)
    loaded = load_problems(str(path), skip_bad_rows=True)
    assert [problem.column_values() for problem in loaded.problems] == [{"level": 1}]
    assert loaded.counts["duplicate_problem"] == 1


def test_kinds_that_json_lacks_become_text_or_null() -> None:
    assert column_text(datetime.date(2026, 2, 9)) == '"2026-02-09"'
    assert (
        column_text([datetime.datetime(2026, 2, 9, 8), datetime.timedelta(hours=1)])
        == '["2026-02-09 08:00:00", "1:00:00"]'
    )
    assert column_text([Decimal("1.5"), float("nan"), float("inf"), 2]) == "[1.5, null, null, 2]"
    for binary in (b"x", [{"array": bytearray(b"x")}], object()):
        with pytest.raises(BinaryValueError):
            column_text(binary)
    assert column_text({"a": float("nan"), (1, 2): "\ud800"}) == '{"a": null, "(1, 2)": "\\ud800"}'


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_what_json_can_hold_comes_back_unchanged(value: Any) -> None:
    text = column_text(value)
    text.encode()
    assert json.loads(text) == value


def test_a_column_of_system_prompts_is_found_named_or_ignored(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"problem": "1+1?", "answer": "2", "system": " Be brief. ", "role": "Think."},
        {"problem": "2+2?", "answer": "4", "system": "", "role": None},
    ]
    path = write_lines(tmp_path / "a.jsonl", rows)

    def prompts(**reading: Any) -> list[str]:
        return [problem.system_prompt for problem in load_problems(str(path), **reading).problems]

    assert prompts() == ["Be brief.", ""]
    assert columns_of(path) == [{"role": "Think."}, {"role": None}]
    assert prompts(system_column="role") == ["Think.", ""]
    assert prompts(system_column="none") == ["", ""]
    assert columns_of(path, system_column="none")[0] == {"system": " Be brief. ", "role": "Think."}
    with pytest.raises(UsageError, match="has no column roles"):
        prompts(system_column="roles")


def test_a_column_called_system_that_holds_no_texts_is_another_column(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"problem": "1+1?", "answer": "2", "system": 7}])
    (problem,) = load_problems(str(path)).problems
    assert (problem.system_prompt, problem.column_values()) == ("", {"system": 7})
    with pytest.raises(IgrpoError, match="the system_prompt is not a text but int"):
        load_problems(str(path), system_column="system")


def test_two_system_prompts_of_a_row_must_be_one(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    for system in ("Be brief.", "", "Be long."):
        path = write_lines(tmp_path / "a.jsonl", [{"prompt": chat, "answer": "2", "system_prompt": system}])
        if system != "Be long.":
            assert load_problems(str(path)).problems[0].system_prompt == "Be brief."
    with pytest.raises(IgrpoError, match="column system_prompt has another system prompt") as refused:
        load_problems(str(path))
    assert "data.system_column=none" in (refused.value.hint or "")


def test_one_problem_under_two_system_prompts_is_two(tmp_path: Path) -> None:
    rows = [{"problem": "1+1?", "answer": answer, "system": f"Base {answer}."} for answer in ("2", "10")]
    path = write_lines(tmp_path / "a.jsonl", rows)
    assert [problem.answer for problem in load_problems(str(path)).problems] == ["2", "10"]
