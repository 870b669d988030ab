"""Rows with choices become problems with letters, or are rejected."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problem_files import Row, pairs, write_lines

from igrpo_cli.errors import IgrpoError, UsageError
from igrpo_cli.problems.choices import (
    INSTRUCTION,
    problem_with_choices,
    read_choices,
    reference_letter,
    shuffled_choices,
)
from igrpo_cli.problems.loading import load_problems
from igrpo_cli.problems.sources import BENCHES, ProblemSource, resolve_bench

METALS: Row = {"question": "Which is no metal?", "options": ["iron", " sulphur\n", "zinc"], "answer": "B"}
METALS_TEXT = f"Which is no metal?\n\n(A) iron\n(B) sulphur\n(C) zinc\n\n{INSTRUCTION}"
GASES: Row = {"question": "Which is a gas?", "options": ["iron", "neon"], "answer": "B"}


def wrong_ones(*values: Any) -> Row:
    columns = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    return {"Question": "Which is no metal?", **dict(zip(columns, values, strict=True))}


@pytest.mark.parametrize("answer", ["B", "(B)", "b", "B.", "B)", " B ", ["B"], "\\boxed{B}", "so\n#### B"])
def test_a_letter_may_be_written_in_many_ways(tmp_path: Path, answer: Any) -> None:
    path = write_lines(tmp_path / "a.jsonl", [METALS | {"answer": answer}])
    assert pairs(load_problems(str(path))) == [(METALS_TEXT, "(B)")]


@pytest.mark.parametrize("name", ["options", "Options", "choices"])
def test_lists_of_choices_are_found_in_lines_and_in_parquet(tmp_path: Path, name: str) -> None:
    row = {"question": METALS["question"], name: METALS["options"], "answer": "B"}
    write_lines(tmp_path / "a.jsonl", [row])
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    for suffix in ("jsonl", "parquet"):
        assert pairs(load_problems(resolve_bench(str(tmp_path / f"a.{suffix}")))) == [(METALS_TEXT, "(B)")]


def test_choices_may_be_numbers_and_keep_their_order(tmp_path: Path) -> None:
    row = {"problem": "1+1?", "choices": [3, 2.0, "1"], "answer": "B"}
    text = f"1+1?\n\n(A) 3\n(B) 2\n(C) 1\n\n{INSTRUCTION}"
    assert pairs(load_problems(str(write_lines(tmp_path / "a.jsonl", [row])))) == [(text, "(B)")]


@pytest.mark.parametrize(
    ("column", "answers", "letters"),
    [
        ("answer", [1, 0], ["(B)", "(A)"]),
        ("answer", [1.0, 0.0], ["(B)", "(A)"]),
        ("answer_index", [1, 1], ["(B)", "(B)"]),
    ],
)
def test_numbers_count_from_0_if_that_is_known(
    tmp_path: Path, column: str, answers: list[Any], letters: list[str]
) -> None:
    rows = [
        {"question": row["question"], "options": row["options"], column: answer}
        for row, answer in zip((METALS, GASES), answers, strict=True)
    ]
    path = write_lines(tmp_path / "a.jsonl", [*rows])
    assert [problem.answer for problem in load_problems(str(path)).problems] == letters


def test_a_letter_takes_precedence_over_an_index(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [METALS | {"answer_index": 0}])
    assert pairs(load_problems(str(path))) == [(METALS_TEXT, "(B)")]


@pytest.mark.parametrize(
    ("changes", "kind", "reason"),
    [
        ({"answer": "D"}, "unknown_choice", "the answer is 'D', not a letter from A to C"),
        ({"answer": "tin"}, "unknown_choice", "the answer is 'tin', not a letter from A to C, nor one of the choices"),
        ({"answer": "x" * 99}, "unknown_choice", r"the answer is 'x{27}\.\.\.', not a letter"),
        ({"answer": "AB"}, "unknown_choice", "the answer is 'AB', not a letter"),
        ({"answer": "(B"}, "unknown_choice", r"the answer is '\(B', not a letter"),
        ({"answer": "2"}, "unknown_choice", "the answer is '2', not a letter"),
        ({"answer": 2}, "unknown_choice", "number 2, and it is unknown whether choices are counted from 0 or 1"),
        ({"answer": ["A", "B"]}, "wrong_type", "the answer is a list of 2"),
        ({"answer": True}, "wrong_type", "the answer is true or false"),
        ({"answer": None}, "empty_answer", "the answer is missing"),
        ({"options": None}, "wrong_number_of_choices", "the row has 0 choices, not 2 to 26"),
        ({"options": []}, "wrong_number_of_choices", "the row has 0 choices"),
        ({"options": ["sulphur"]}, "wrong_number_of_choices", "the row has 1 choices"),
        ({"options": list(range(27))}, "wrong_number_of_choices", "the row has 27 choices"),
        ({"options": "iron, sulphur"}, "wrong_type", "not a list but text in which no letters"),
        ({"options": {"one": "iron", "two": "zinc"}}, "wrong_type", "the names one, two, not letters or numbers"),
        ({"options": {"text": ["iron", "zinc"], "label": ["A"]}}, "wrong_number_of_choices", "2 texts and 1 labels"),
        ({"options": "a) iron b) zinc a) tin"}, "unknown_choice", "the letter A occurs twice"),
        ({"options": "['iron' 'zinc']"}, "wrong_type", "a comma is missing"),
        ({"options": 4}, "wrong_type", "not a list but int"),
        ({"options": ["iron", " ", "zinc"]}, "empty_choice", r"the choice is empty \(number 2\)"),
        ({"options": ["iron", None]}, "empty_choice", r"the choice is missing \(number 2\)"),
        ({"options": ["iron", ["zinc"]]}, "wrong_type", r"the choice is not a text but list \(number 2\)"),
        ({"options": ["iron", False]}, "wrong_type", r"the choice is true or false.* \(number 2\)"),
        ({"options": ["a b", "c", "a  b"]}, "duplicate_choice", r"two choices are the same \(number 1, number 3\)"),
        ({"question": " "}, "empty_problem", "the problem is empty"),
    ],
)
def test_a_bad_row_of_choices_is_rejected_or_counted(tmp_path: Path, changes: Row, kind: str, reason: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", [GASES, METALS | changes])
    with pytest.raises(IgrpoError, match=rf"a\.jsonl row 2: .*{reason}"):
        load_problems(str(path))
    assert load_problems(str(path), skip_bad_rows=True).counts == {"rows": 2, "kept": 1, kind: 1}


def test_an_index_outside_the_choices_is_rejected(tmp_path: Path) -> None:
    for index in (2, -1):
        path = write_lines(tmp_path / "a.jsonl", [GASES | {"answer": 0}, METALS | {"answer": index}])
        if index == 2:
            assert load_problems(str(path)).problems[1].answer == "(C)"
        path = write_lines(tmp_path / "a.jsonl", [METALS | {"answer": 0}, GASES | {"answer": index}])
        with pytest.raises(IgrpoError, match=f"row 2: the answer is {index}, and choices count from 0 to 1"):
            load_problems(str(path))


def test_the_same_question_with_other_choices_is_another_problem(tmp_path: Path) -> None:
    rows: list[Any] = [METALS, METALS | {"options": ["sulphur", "iron"], "answer": "A"}]
    assert load_problems(str(write_lines(tmp_path / "a.jsonl", rows))).counts == {"rows": 2, "kept": 2}


def test_an_empty_column_of_choices_is_none(tmp_path: Path) -> None:
    for value in (None, [], "", {}):
        row = {"problem": "1+1?", "options": value, "answer": "2"}
        assert pairs(load_problems(str(write_lines(tmp_path / "a.jsonl", [row])))) == [("1+1?", "2")]


@pytest.mark.parametrize(
    "options",
    [
        {"A": "iron", "B": "sulphur", "C": "zinc"},
        {"(a)": "iron", "(b)": "sulphur", "(c)": "zinc", "(d)": None},
        {"text": ["iron", "sulphur", "zinc"], "label": ["A", "B", "C"]},
        {"text": ["iron", "sulphur", "zinc"]},
        [{"label": "A", "text": "iron"}, {"label": "B", "text": "sulphur"}, {"label": "C", "text": "zinc"}],
        ["A) iron", "B) sulphur", "C) zinc"],
        "a ) iron , b ) sulphur , c ) zinc",
        "(A) iron (B) sulphur\n(C) zinc",
        "A. iron; B. sulphur; C. zinc",
        "['A)iron', 'B)sulphur', 'C)zinc']",
        '["iron", "sulphur", "zinc"]',
        "{'A': 'iron', 'B': 'sulphur', 'C': 'zinc'}",
    ],
)
def test_every_form_of_choices_is_the_same_problem(tmp_path: Path, options: Any) -> None:
    for answer in ("B", "sulphur"):
        path = write_lines(tmp_path / "a.jsonl", [METALS | {"options": options, "answer": answer}])
        assert pairs(load_problems(str(path))) == [(METALS_TEXT, "(B)")]


def test_labels_of_the_row_are_what_the_answer_names(tmp_path: Path) -> None:
    choices = {"text": ["3", "1", "2"], "label": ["1", "2", "3"]}
    row = {"question": "1+1?", "choices": choices, "answerKey": "3"}
    assert load_problems(str(write_lines(tmp_path / "a.jsonl", [row]))).problems[0].answer == "(C)"


@pytest.mark.parametrize("columns", [("A", "B", "C"), ("option_a", "option_b", "option_c"), ("opa", "opb", "opc")])
def test_each_choice_may_have_its_column(tmp_path: Path, columns: tuple[str, ...]) -> None:
    cells = dict(zip(columns, ("iron", "sulphur", "zinc"), strict=True))
    path = write_lines(tmp_path / "a.jsonl", [{"question": METALS["question"], **cells, "correct": "b"}])
    assert pairs(load_problems(str(path))) == [(METALS_TEXT, "(B)")]


def test_columns_a_b_c_of_numbers_are_no_choices(tmp_path: Path) -> None:
    row = {"problem": "1+1?", "a": 1, "b": 1, "c": 0, "answer": "2"}
    assert pairs(load_problems(str(write_lines(tmp_path / "a.jsonl", [row])))) == [("1+1?", "2")]


def test_where_answers_are_texts_a_text_that_is_a_letter_is_one_too(tmp_path: Path) -> None:
    letters = {"question": "Which is a vowel?", "options": ["B", "A", "C"], "answer": "A"}
    answers = [METALS | {"answer": "sulphur"}, letters]
    loaded = load_problems(str(write_lines(tmp_path / "a.jsonl", [*answers])))
    assert [problem.answer for problem in loaded.problems] == ["(B)", "(B)"]
    loaded = load_problems(str(write_lines(tmp_path / "a.jsonl", [METALS, letters])))
    assert [problem.answer for problem in loaded.problems] == ["(B)", "(A)"]


def test_a_number_that_is_no_index_is_the_text_of_a_choice(tmp_path: Path) -> None:
    row = {"question": "3+4?", "options": {"A": 5, "B": 7}, "answer": 7}
    assert load_problems(str(write_lines(tmp_path / "a.jsonl", [row]))).problems[0].answer == "(B)"
    with pytest.raises(IgrpoError, match="unknown whether choices are counted from 0 or 1"):
        load_problems(str(write_lines(tmp_path / "a.jsonl", [row | {"options": [1, 7], "answer": 1}])))


def test_the_column_of_choices_can_be_named_or_ignored(tmp_path: Path) -> None:
    row = {"question": "Which is no metal?", "given": {"texts": METALS["options"]}, "choices": ["x"], "answer": "B"}
    path = str(write_lines(tmp_path / "a.jsonl", [row]))
    assert pairs(load_problems(path, choices_column="given.texts")) == [(METALS_TEXT, "(B)")]
    assert pairs(load_problems(path, choices_column="none")) == [("Which is no metal?", "B")]
    with pytest.raises(UsageError, match="has no column texts"):
        load_problems(path, choices_column="texts")
    both = METALS | {"choices": ["a", "b"]}
    with pytest.raises(UsageError, match="2 columns may hold the choices: options, choices"):
        load_problems(str(write_lines(tmp_path / "a.jsonl", [both])))


def test_columns_of_right_and_wrong_answers_are_found_or_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [wrong_ones("sulphur", "iron", "zinc", "tin")])
    order, letter = shuffled_choices("Which is no metal?", "a", {"a": "sulphur", "b": "iron", "c": "zinc", "d": "tin"})
    expected = [(problem_with_choices("Which is no metal?", order), letter)]
    assert sorted(order) == ["iron", "sulphur", "tin", "zinc"]
    assert letter == f"({'ABCD'[order.index('sulphur')]})"
    assert pairs(load_problems(str(path))) == expected
    named = ProblemSource(path, answer_column="Correct Answer", wrong_columns=BENCHES["gpqa"].source.wrong_columns)
    assert pairs(load_problems(named)) == expected
    with pytest.raises(UsageError, match="has no column Incorrect Answer 3"):
        load_problems(
            ProblemSource(
                write_lines(tmp_path / "b.jsonl", [METALS]),
                answer_column="answer",
                wrong_columns=("Incorrect Answer 3",),
            )
        )


@pytest.mark.parametrize(
    ("values", "kind", "reason"),
    [
        (("a", "b", "c", "a "), "duplicate_choice", r"two choices are the same \(Correct Answer, Incorrect Answer 3\)"),
        (("a", "b", "b", "c"), "duplicate_choice", r"\(Incorrect Answer 1, Incorrect Answer 2\)"),
        ((None, "b", "c", "d"), "empty_choice", r"the choice is missing \(Correct Answer\)"),
        (("a", "b", "", "d"), "empty_choice", r"the choice is empty \(Incorrect Answer 2\)"),
    ],
)
def test_a_bad_choice_is_named_by_its_column(tmp_path: Path, values: tuple[Any, ...], kind: str, reason: str) -> None:
    good = wrong_ones("1", "2", "3", "4") | {"Question": "another"}
    path = write_lines(tmp_path / "a.jsonl", [good, wrong_ones(*values)])
    with pytest.raises(IgrpoError, match=rf"a\.jsonl row 2: .*{reason}"):
        load_problems(str(path))
    assert load_problems(str(path), skip_bad_rows=True).counts == {"rows": 2, "kept": 1, kind: 1}


@given(st.permutations(["a", "b", "c", "d"]), st.text("xy", max_size=3))
def test_the_order_of_choices_depends_only_on_their_texts(columns: list[str], question: str) -> None:
    values = {"a": "1", "b": "2", "c": "3", "d": "4"}
    order, letter = shuffled_choices(question, "a", values)
    assert shuffled_choices(question, "a", {column: values[column] for column in columns}) == (order, letter)
    assert order["ABCD".index(letter[1])] == "1"


def test_the_order_of_the_choices_never_changes() -> None:
    order, letter = shuffled_choices("Which is no metal?", "a", {"a": "sulphur", "b": "iron", "c": "zinc", "d": "tin"})
    assert (order, letter) == (["tin", "iron", "zinc", "sulphur"], "(D)")


def test_every_letter_is_right_about_equally_often() -> None:
    values = {"right": "sulphur", "b": "iron", "c": "zinc", "d": "tin"}
    letters = Counter(shuffled_choices(f"question {number}", "right", values)[1] for number in range(4000))
    assert set(letters) == {"(A)", "(B)", "(C)", "(D)"}
    assert all(abs(count - 1000) < 110 for count in letters.values()), "four standard deviations"


def test_multiple_choice_benchmarks_are_read_from_a_folder(tmp_path: Path) -> None:
    write_lines(tmp_path / "gpqa.jsonl", [wrong_ones("sulphur", "iron", "zinc", "tin")])
    write_lines(tmp_path / "mmlu_pro_test.jsonl", [METALS | {"question_id": 7, "answer_index": 1}])
    gpqa, mmlu_pro = (load_problems(resolve_bench(name, tmp_path)).problems for name in ("gpqa", "mmlu_pro"))
    assert gpqa[0].problem.startswith("Which is no metal?\n\n(A) ")
    assert (mmlu_pro[0].problem, mmlu_pro[0].answer) == (METALS_TEXT, "(B)")


def test_letters_in_front_of_choices_name_them_in_any_order():
    choices = read_choices(["B) 5", "A) 6"])
    assert (choices.texts, choices.labels) == (["5", "6"], ["B", "A"])
    assert reference_letter("A", "plain", choices, counts_from_zero=False, is_text=False) == "(B)"
