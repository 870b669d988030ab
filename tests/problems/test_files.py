"""Files and folders: splits, configs, and unusable files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from problem_files import GOOD, OTHER, pairs, write_lines

from igrpo_cli.errors import DamagedFileError, IgrpoError, MissingInputError, UsageError
from igrpo_cli.problems.loading import load_problems


def test_a_folder_is_read_completely_but_never_across_splits(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_lines(tmp_path / "data" / "train-0.jsonl", [GOOD])
    write_lines(tmp_path / "data" / "train-1.jsonl", [OTHER])
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / ".cache").mkdir()
    write_lines(tmp_path / ".cache" / "x.jsonl", ["broken"])
    loaded = load_problems(str(tmp_path))
    assert [row.source for row in loaded.problems] == ["data/train-0.jsonl:1", "data/train-1.jsonl:1"]
    digests = [hashlib.sha256((tmp_path / "data" / f"train-{n}.jsonl").read_bytes()).hexdigest() for n in (0, 1)]
    listing = f"{digests[0]}  data/train-0.jsonl\n{digests[1]}  data/train-1.jsonl\n"
    assert loaded.sha256 == hashlib.sha256(listing.encode()).hexdigest()

    write_lines(tmp_path / "data" / "test.jsonl", [{"problem": "test?", "answer": "1"}])
    assert len(load_problems(str(tmp_path)).problems) == 2
    assert pairs(load_problems(str(tmp_path), split="test")) == [("test?", "1")]
    for path in (tmp_path / "data").glob("train*"):
        path.rename(path.with_name(path.name.replace("train", "validation")))
    with pytest.raises(UsageError, match="contains the splits test, validation"):
        load_problems(str(tmp_path))


@pytest.mark.parametrize("name", ["b_test", "validation"])
def test_a_test_file_is_not_read_together_with_files_of_no_split(tmp_path: Path, name: str) -> None:
    write_lines(tmp_path / "a.jsonl", [GOOD])
    write_lines(tmp_path / f"{name}.jsonl", [OTHER])
    with pytest.raises(UsageError, match=r"and files of no split, such as a\.jsonl"):
        load_problems(str(tmp_path))
    split = name.removeprefix("b_")
    assert pairs(load_problems(str(tmp_path), split=split)) == [("2+2?", "4")]
    (tmp_path / f"{name}.jsonl").rename(tmp_path / "train.jsonl")
    assert len(load_problems(str(tmp_path)).problems) == 2


def test_configs_are_subfolders_in_the_given_order(tmp_path: Path) -> None:
    for name, row in (("II", OTHER), ("I", GOOD), ("III", {"problem": "no", "answer": "0"})):
        (tmp_path / name).mkdir()
        write_lines(tmp_path / name / "test.jsonl", [row])
    assert pairs(load_problems(str(tmp_path), config=["I", "II"])) == [("1+1?", "2"), ("2+2?", "4")]
    assert pairs(load_problems(str(tmp_path), config="II")) == [("2+2?", "4")]


def test_unusable_files_are_errors(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"problem": "1+1?", "answer": "2"}')
    with pytest.raises(DamagedFileError, match=r"a\.json: not JSON at column"):
        load_problems(str(tmp_path / "a.json"), skip_bad_rows=True)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(DamagedFileError, match=r"a\.parquet"):
        load_problems(str(tmp_path / "a.parquet"))
    (tmp_path / "a.txt").write_text("problem,answer\n")
    with pytest.raises(UsageError, match=r"a\.txt is none of"):
        load_problems(str(tmp_path / "a.txt"))
    with pytest.raises(UsageError, match="one file: it has no splits"):
        load_problems(str(write_lines(tmp_path / "a.jsonl", [GOOD])), split="test")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(IgrpoError, match=r"no usable problem \(no rows\)"):
        load_problems(str(tmp_path / "empty.jsonl"))
    with pytest.raises(IgrpoError, match=r"no usable problem \(1 invalid json\)"):
        load_problems(str(write_lines(tmp_path / "b.jsonl", ["x"])), skip_bad_rows=True)
    with pytest.raises(MissingInputError):
        load_problems(str(tmp_path / "none.jsonl"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(MissingInputError, match="contains no"):
        load_problems(str(tmp_path / "folder"))


def test_an_array_skips_its_bad_rows_like_lines(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([GOOD, 3, OTHER]))
    with pytest.raises(IgrpoError, match=r"a\.json row 2: the row is not a JSON object but int"):
        load_problems(str(tmp_path / "a.json"))
    loaded = load_problems(str(tmp_path / "a.json"), skip_bad_rows=True)
    assert loaded.counts == {"rows": 3, "kept": 2, "not_an_object": 1}


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.tsv", "\t")])
def test_csv_and_tsv_are_read_with_the_lines_of_their_rows(tmp_path: Path, name: str, separator: str) -> None:
    rows = [
        ["id", "problem", "answer"],
        ["p1", '"1+1, or\n""2""?"', "2"],
        ["p2", "$\\frac{1}{2}$?", "\\frac12"],
        [],
        ["", "3?", "3"],
    ]
    path = tmp_path / name
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(separator.join(row) for row in rows).encode() + b"\r\n")
    loaded = load_problems(str(path), skip_bad_rows=True)
    assert pairs(loaded) == [('1+1, or\n"2"?', "2"), ("$\\frac{1}{2}$?", "\\frac12")]
    assert [problem.source for problem in loaded.problems] == [f"{name}:2", f"{name}:4"]
    assert loaded.counts == {"rows": 4, "kept": 2, "blank_line": 1, "empty_id": 1}


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_another_separator_of_csv_is_found_in_the_header(tmp_path: Path, separator: str) -> None:
    rows = [["problem", "answer"], [f'"1{separator}1, how many?"', "2"], ["3?", "3"]]
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + "\n".join(separator.join(row) for row in rows).encode())
    assert pairs(load_problems(str(tmp_path / "a.csv"))) == [(f"1{separator}1, how many?", "2"), ("3?", "3")]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"problem,answer\n1+1?,2,3\n", IgrpoError, r"a\.csv row 2: the row has 3 cells, and the header 2"),
        (b"problem,answer\n1+\xff?,2\n", IgrpoError, r"a\.csv row 2: the row is not UTF-8"),
        (b"problem,answer,problem\n", UsageError, "the column 'problem' occurs twice"),
        (b'problem,answer\n"1+1?,2\n3?,4\n', DamagedFileError, r"a\.csv line 3: unexpected end of data"),
        (b'problem,answer\n"1" + 1?,2\n', DamagedFileError, r"a\.csv line 2: "),
        (b"", IgrpoError, "no rows"),
    ],
)
def test_unusable_csv_is_an_error_with_its_line(
    tmp_path: Path, content: bytes, error: type[IgrpoError], message: str
) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(error, match=message):
        load_problems(str(tmp_path / "a.csv"))


@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_of_rows_may_be_wrapped_in_an_object(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": 1, "rows": [GOOD, OTHER], "authors": ["x"]}, indent=indent))
    loaded = load_problems(str(path))
    assert pairs(loaded) == [("1+1?", "2"), ("2+2?", "4")]
    assert loaded.problems[1].source == "a.json:2"
    chat = {"prompt": [{"role": "user", "content": "1+1?"}], "answer": "2"}
    for row in (GOOD, chat):
        path.write_text(json.dumps(row, indent=indent))
        assert pairs(load_problems(str(path))) == [("1+1?", "2")]


def test_an_object_without_one_list_of_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"train": [GOOD], "test": [OTHER]}))
    with pytest.raises(UsageError, match="contains the lists train, test"):
        load_problems(str(path))
    path.write_text(json.dumps({"problem": ["1+1?"], "answer": ["2"]}))
    with pytest.raises(UsageError, match=r"holds columns \(problem, answer\), not rows"):
        load_problems(str(path))
    path.write_text('{\n "data": [\n  {"problem": "1?", "answer": "\\sqrt2"}\n ]\n}')
    with pytest.raises(DamagedFileError, match="not JSON at line 3 column") as refused:
        load_problems(str(path))
    assert "written twice" in (refused.value.hint or "")
