"""Rows become problems, are rejected with their place, or are counted by kind."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problem_files import GOOD, OTHER, Row, pairs, write_lines

from igrpo_cli.errors import IgrpoError
from igrpo_cli.problems.loading import load_problems, problems_in_both


def test_json_lines_an_array_and_parquet_of_the_same_rows_load_alike(tmp_path: Path) -> None:
    rows = [{"id": f"p{n}", "problem": f"{n}+1?", "answer": n + 1} for n in range(5)]
    write_lines(tmp_path / "a.jsonl", list(rows))
    write_lines(tmp_path / "lines.json", list(rows))
    (tmp_path / "array.json").write_text(json.dumps(rows, indent=1))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "lines.json", "array.json", "a.parquet"):
        loaded = load_problems(str(tmp_path / name))
        assert pairs(loaded) == [(f"{n}+1?", str(n + 1)) for n in range(5)]
        assert [row.problem_id for row in loaded.problems] == ["p0", "p1", "p2", "p3", "p4"]
        assert loaded.problems[1].source == f"{name}:2"
        assert loaded.counts == {"rows": 5, "kept": 5}
        assert loaded.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert loaded.revision is None


@pytest.mark.parametrize(
    ("bad", "kind", "reason"),
    [
        ({"problem": "3+3?", "answer": ""}, "empty_answer", "the answer is empty"),
        ({"problem": "3+3?"}, "empty_answer", "the answer is missing"),
        ({"problem": " ", "answer": "6"}, "empty_problem", "the problem is empty"),
        ({"answer": "6"}, "empty_problem", "the problem is missing"),
        ({"problem": 7, "answer": "6"}, "wrong_type", "the problem is not a text but int"),
        ({"problem": [{"content": "3?"}] * 2, "answer": "6"}, "chat_turns", "a chat of user, user"),
        (
            {"problem": "3+3?", "answer": "\frac{1}{2}"},
            "control_character",
            r"U\+000C, which is .frac with one backslash",
        ),
        (
            {"problem": "3 \times 3?", "answer": "6"},
            "control_character",
            r"U\+0009, which is .times with one backslash",
        ),
        ({"problem": "3+3\x1b?", "answer": "6"}, "control_character", r"the control character U\+001B \(character 4\)"),
        ('{"problem": "\\sqrt9?", "answer": "3"}', "invalid_json", r"Invalid \\+escape"),
        ({"problem": ["3+3?"], "answer": "6"}, "wrong_type", "not one of chat messages"),
        (
            {"problem": [{"content": ["3?"]}], "answer": "6"},
            "wrong_type",
            "the turn is not a text but list",
        ),
        ({"problem": "3+3?", "answer": {"a": 1}}, "wrong_type", "the answer is not a text but dict"),
        ('{"problem": "3+3?", "answer": NaN}', "wrong_type", "the answer is nan"),
        ('{"problem": "3+3?", "answer": 1e999}', "wrong_type", "the answer is inf"),
        (
            '{"problem": "3+3?", "answer": "6", "answer": "7"}',
            "duplicate_key",
            "the key 'answer' occurs twice",
        ),
        ('{"problem": "3+3?", "answer": "6"', "invalid_json", "not JSON at column"),
        ('{"problem": "3+3?", "answer": ' + "[" * 900 + "]" * 900 + "}", "empty_answer", "the answer is missing"),
        ("[1, 2]", "not_an_object", "the row is not a JSON object but list"),
        ("[" * 100_000, "invalid_json", "JSON nested too deeply"),
        ('{"problem": "3+3?", "answer": ' + "1" * 5000 + "}", "invalid_json", "JSON that cannot be parsed"),
        (b'{"problem": "3+\xff?", "answer": "6"}', "invalid_utf8", "byte 16 is not UTF-8"),
        ({"problem": "3+\0?", "answer": "6"}, "nul", "the problem contains a NUL character"),
        ('{"problem": "3\\ud800", "answer": "6"}', "invalid_utf8", "the problem contains half a surrogate pair"),
        ({"problem": "x" * 1_000_000, "answer": "6"}, "row_too_long", "the limit is 1,000,000"),
        (GOOD, "duplicate_problem", r"problem and answer equal those of set\.jsonl:1"),
    ],
)
def test_a_bad_row_is_rejected_with_its_place_or_counted(
    tmp_path: Path, bad: Row | str | bytes, kind: str, reason: str
) -> None:
    path = write_lines(tmp_path / "set.jsonl", [GOOD, bad, OTHER])
    with pytest.raises(IgrpoError, match=rf"set\.jsonl row 2: .*{reason}") as refused:
        load_problems(str(path))
    assert refused.value.exit_code == 1
    assert refused.value.hint is not None
    assert "--skip-bad-rows" in refused.value.hint
    loaded = load_problems(str(path), skip_bad_rows=True)
    assert pairs(loaded) == [("1+1?", "2"), ("2+2?", "4")]
    assert loaded.counts == {"rows": 3, "kept": 2, kind: 1}


@pytest.mark.parametrize(
    "turns",
    [
        ["system"],
        ["assistant"],
        ["assistant", "user"],
        ["user", "system"],
        ["user", "user"],
        ["user", "assistant", "assistant"],
        ["tool", "user"],
    ],
)
def test_a_chat_whose_turns_do_not_alternate_is_refused_with_the_way_out(tmp_path: Path, turns: list[str]) -> None:
    chat = [{"role": role, "content": f"{role}?"} for role in turns]
    path = write_lines(tmp_path / "a.jsonl", [{"prompt": chat, "answer": "6"}])
    with pytest.raises(IgrpoError, match=r"a\.jsonl row 1: the problem is a chat of") as refused:
        load_problems(str(path))
    assert ", ".join(turns) in refused.value.message
    assert "data.problem_column" in (refused.value.hint or "")


def test_examples_and_the_beginning_of_an_answer_are_kept_as_they_are_written(tmp_path: Path) -> None:
    said = ["Use base 7.", "1+1?", "<think>easy</think> 2", "3+4?", "Let me think. "]
    roles = ["system", "user", "assistant", "user", "assistant"]
    chat = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
    path = write_lines(tmp_path / "a.jsonl", [{"prompt": chat, "answer": "10"}, {"prompt": chat[3:], "answer": "7"}])
    examples, prefilled = load_problems(str(path)).problems
    assert (examples.problem, examples.prefill) == ("3+4?", "Let me think. ")
    assert json.loads(examples.earlier_turns) == ["1+1?", "<think>easy</think> 2"]
    assert (examples.system_prompt, prefilled.system_prompt) == ("Use base 7.", "")
    # The same question after other turns is another problem, so its answer is no contradiction.
    assert (prefilled.problem, prefilled.prefill, prefilled.earlier_turns) == ("3+4?", "Let me think. ", "")


ASKED = {"role": "user", "content": "3+4?"}


@pytest.mark.parametrize(
    ("chat", "reason"),
    [
        ([ASKED, {"role": "assistant", "content": " "}], "the turn is empty"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "the turn is not a text but list"),
        ([ASKED, {"role": "assistant", "content": "7", "reasoning_content": "easy"}, ASKED], "has reasoning_content"),
        ([{"from": "human", "value": "3+4?"}], "have from and value"),
        ("[{'role': 'user', 'content': '3+4?'}\n {'role': 'assistant', 'content': 'x'}]", "a chat written as text"),
        ('[{"role": "user", "content": "3+4?"}', "a chat written as text"),
    ],
)
def test_a_chat_that_cannot_be_read_whole_is_refused(tmp_path: Path, chat: object, reason: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"prompt": chat, "answer": "7"}])
    with pytest.raises(IgrpoError, match=reason):
        load_problems(str(path))


@pytest.mark.parametrize("answer", ["x \neq 2", "x \to 2", "3 \nmid 4", "5{\rm km}"])
def test_a_lost_backslash_in_an_answer_needs_no_dollar_signs_to_be_found(tmp_path: Path, answer: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"problem": "x?", "answer": answer}])
    with pytest.raises(IgrpoError, match="with one backslash"):
        load_problems(str(path))


def test_one_bad_row_in_a_wrapped_list_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"data": [{"problem": "3+4?", "answer": "7"}, "x"]}))
    with pytest.raises(IgrpoError, match="row 2: the row is not a JSON object but str"):
        load_problems(str(path))


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_turn_is_the_system_prompt_of_its_problem(tmp_path: Path, role: str) -> None:
    chat = [{"role": role, "content": "Use base 7."}, {"role": "user", "content": [{"type": "text", "text": "3+4?"}]}]
    for value in (chat, json.dumps(chat)):
        path = write_lines(tmp_path / "a.jsonl", [{"prompt": value, "answer": "10"}])
        (problem,) = load_problems(str(path)).problems
        assert (problem.system_prompt, problem.problem, problem.answer) == ("Use base 7.", "3+4?", "10")


def test_the_cure_of_a_lost_backslash_is_the_hint(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", ['{"problem": "half of 1?", "answer": "\\frac12"}'])
    with pytest.raises(IgrpoError, match=r"a\.jsonl row 1: ") as refused:
        load_problems(str(path))
    assert "write each backslash twice in JSON" in (refused.value.hint or "")


@pytest.mark.parametrize("text", ["a table:\n1\t2", "so\ne is 2.718", "$\\frac{1}{2}\ne^x$", "a\r\nb", "a\x85b"])
def test_line_ends_and_tabs_of_a_text_stay(tmp_path: Path, text: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"problem": text, "answer": "1"}])
    assert pairs(load_problems(str(path))) == [(text, "1")]


def test_the_first_row_may_be_bad_too(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "set.jsonl", ["no json", GOOD])
    with pytest.raises(IgrpoError, match=r"set\.jsonl row 1: not JSON"):
        load_problems(str(path))
    assert load_problems(str(path), skip_bad_rows=True).counts == {"rows": 2, "kept": 1, "invalid_json": 1}


def test_a_truncated_last_line_differs_from_one_without_line_end(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(OTHER))
    assert len(load_problems(str(path)).problems) == 2
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(OTHER)[:-5])
    with pytest.raises(IgrpoError, match=r"set\.jsonl row 2: the last line is truncated"):
        load_problems(str(path))
    assert load_problems(str(path), skip_bad_rows=True).counts == {"rows": 2, "kept": 1, "half_last_line": 1}


def test_a_byte_order_mark_windows_line_ends_and_blank_lines_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    lines = [json.dumps(GOOD), "", "  ", json.dumps(OTHER)]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n\n")
    loaded = load_problems(str(path))
    assert loaded.counts == {"rows": 5, "kept": 2, "blank_line": 3}
    assert loaded.problems[1].source == "set.jsonl:4"


def test_nan_in_an_unused_column_is_ignored(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "set.jsonl", ['{"problem": "1+1?", "answer": "2", "level": NaN}'])
    assert pairs(load_problems(str(path))) == [("1+1?", "2")]


def test_a_line_at_the_limit_is_read_and_a_longer_one_is_not(tmp_path: Path) -> None:
    empty = len(json.dumps({"problem": "", "answer": "2"})) + 1
    fits, too_long = ({"problem": "x" * (1_000_000 - empty + extra), "answer": "2"} for extra in (0, 1))
    assert load_problems(str(write_lines(tmp_path / "a.jsonl", [fits, GOOD]))).counts["kept"] == 2
    loaded = load_problems(str(write_lines(tmp_path / "b.jsonl", [too_long, GOOD])), skip_bad_rows=True)
    assert loaded.counts == {"rows": 2, "kept": 1, "row_too_long": 1}
    assert loaded.problems[0].source == "b.jsonl:2"


def test_identical_rows_keep_one_and_contradictions_keep_none(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"id": 1, "problem": "a?", "answer": "1"},
        {"id": 2, "problem": " a? ", "answer": 1.0},
        {"id": 3, "problem": "b?", "answer": "1"},
        {"id": 4, "problem": "b?", "answer": "2"},
        {"id": 5, "problem": "b?", "answer": "1"},
        {"id": 1, "problem": "c?", "answer": "1"},
        {"id": 7, "problem": "d?", "answer": "1"},
    ]
    path = write_lines(tmp_path / "set.jsonl", list(rows))
    loaded = load_problems(str(path), skip_bad_rows=True)
    assert [(row.problem_id, row.problem) for row in loaded.problems] == [("1", "a?"), ("7", "d?")]
    kinds = {"conflicting_answer": 3, "duplicate_id": 1, "duplicate_problem": 1}
    assert loaded.counts == {"rows": 7, "kept": 2, **kinds}
    with pytest.raises(
        IgrpoError, match=r"row 2: the problem equals that of set\.jsonl:1, but the answer is '2', not '1'"
    ):
        load_problems(str(write_lines(tmp_path / "set.jsonl", [*rows[2:4]])))
    with pytest.raises(IgrpoError, match=r"row 2: the id '1' is already used by set\.jsonl:1"):
        load_problems(str(write_lines(tmp_path / "set.jsonl", [rows[0], rows[5]])))


def test_every_prompt_a_hundred_times_leaves_one_of_each(tmp_path: Path) -> None:
    chats = [
        {
            "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"{n % 5}?"}],
            "reward_model": {"ground_truth": str(n % 5), "style": "rule"},
        }
        for n in range(500)
    ]
    pq.write_table(pa.Table.from_pylist(chats), tmp_path / "dapo.parquet")
    loaded = load_problems(str(tmp_path / "dapo.parquet"), skip_bad_rows=True)
    assert pairs(loaded) == [(f"{n}?", str(n)) for n in range(5)]
    assert {problem.system_prompt for problem in loaded.problems} == {"Be brief."}
    assert loaded.counts == {"rows": 500, "kept": 5, "duplicate_problem": 495}


def test_rows_without_an_id_are_numbered_by_their_place(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "set.jsonl", [GOOD, "", OTHER])
    assert [row.problem_id for row in load_problems(str(path)).problems] == ["set-1", "set-3"]
    (tmp_path / "main").mkdir()
    write_lines(tmp_path / "main" / "set.jsonl", [{"problem": "3+3?", "answer": "6"}])
    assert {row.problem_id for row in load_problems(str(tmp_path)).problems} == {
        "set-1",
        "set-3",
        "main-set-1",
    }


junk = st.one_of(
    st.binary(max_size=30),
    st.dictionaries(
        st.sampled_from(["problem", "answer", "id"]),
        st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=3), st.lists, max_leaves=3),
    ).map(lambda row: json.dumps(row).encode()),
)


@settings(deadline=None)
@given(st.lists(junk, max_size=12))
def test_for_any_bytes_every_row_is_a_problem_or_counted(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("junk") / "a.jsonl"
    path.write_bytes(json.dumps({"id": "first", **GOOD}).encode() + b"\n" + b"\n".join(lines))
    loaded = load_problems(str(path), skip_bad_rows=True)
    counts = dict(loaded.counts)
    data = path.read_bytes()
    assert counts.pop("rows") == data.count(b"\n") + (not data.endswith(b"\n"))
    assert loaded.counts["rows"] == sum(counts.values())
    assert counts["kept"] == len(loaded.problems)
    assert all(row.problem.strip() and row.answer.strip() for row in loaded.problems)
    assert len({row.problem_id for row in loaded.problems}) == len({row.problem for row in loaded.problems})


def test_problems_of_two_sets_are_compared_without_white_space(tmp_path: Path) -> None:
    train = [{"problem": "Add 1\nand  2.", "answer": "3"}, {"problem": "Add 1 and 3.", "answer": "4"}]
    test = [{"problem": "Add 1 and 2.", "answer": "3"}, {"problem": "add 1 and 3.", "answer": "4"}]
    train_set, test_set = (
        load_problems(str(write_lines(tmp_path / f"{name}.jsonl", list(rows)))).problems
        for name, rows in (("train", train), ("test", test))
    )
    assert [problem.problem for problem in problems_in_both(test_set, train_set)] == ["Add 1 and 2."]
    assert problems_in_both(test_set, []) == []
