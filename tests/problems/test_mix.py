"""Problems of several sources."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from problem_files import GOOD, OTHER, Row, write_lines

from igrpo_cli.errors import IgrpoError, UsageError
from igrpo_cli.problems.loading import load_mix

THIRD: Row = {"problem": "3+3?", "answer": "6"}


@pytest.fixture
def places(tmp_path: Path) -> tuple[str, str]:
    """A file and a folder with a file of the same name. Some ids are the same."""
    (tmp_path / "more").mkdir()
    file = write_lines(tmp_path / "train.jsonl", [{"id": 1, **GOOD}, {"id": 2, **OTHER}])
    write_lines(tmp_path / "more" / "train.jsonl", [{"id": 1, "question": "3+3?", "answer": "6"}])
    return str(file), str(tmp_path / "more")


def test_ids_and_places_begin_with_the_name_of_their_source(places: tuple[str, str]) -> None:
    loaded = load_mix({"a": (places[0], {}), "b": (places[1], {})})
    assert [(row.problem_id, row.problem, row.source) for row in loaded.problems] == [
        ("a/1", "1+1?", "a: train.jsonl:1"),
        ("a/2", "2+2?", "a: train.jsonl:2"),
        ("b/1", "3+3?", "b: train.jsonl:1"),
    ]
    assert loaded.counts == {"rows": 3, "kept": 3}
    assert loaded.source == "a, b"
    digests = [hashlib.sha256(Path(p).read_bytes()).hexdigest() for p in (places[0], f"{places[1]}/train.jsonl")]
    assert loaded.sha256 == hashlib.sha256(f"{digests[0]}  a\n{digests[1]}  b\n".encode()).hexdigest()


def test_rows_without_id_are_numbered_by_source(tmp_path: Path) -> None:
    a, b = (str(write_lines(tmp_path / f"{name}.jsonl", [row])) for name, row in (("a", GOOD), ("b", OTHER)))
    loaded = load_mix({"a": (a, {}), "other": (b, {})})
    assert [row.problem_id for row in loaded.problems] == ["a/1", "other/b-1"]


def test_each_source_has_its_own_columns(tmp_path: Path) -> None:
    a = str(write_lines(tmp_path / "a.jsonl", [GOOD]))
    (tmp_path / "b.csv").write_text("q,gold\n2+2?,4\n")
    reading = {"problem_column": "q", "answer_column": "gold"}
    loaded = load_mix({"a": (a, {}), "b": (str(tmp_path / "b.csv"), reading)})
    assert [(row.problem, row.answer) for row in loaded.problems] == [("1+1?", "2"), ("2+2?", "4")]
    with pytest.raises(UsageError, match=r"b: b\.csv: no column has a known name for the problem") as refused:
        load_mix({"a": (a, {}), "b": (str(tmp_path / "b.csv"), {})})
    assert "in data.mix, name it in its source" in (refused.value.hint or "")


def test_duplicates_and_conflicts_are_found_across_sources(tmp_path: Path) -> None:
    a = str(write_lines(tmp_path / "a.jsonl", [GOOD, OTHER, THIRD]))
    b = str(write_lines(tmp_path / "b.jsonl", [{"problem": "9?", "answer": "9"}, GOOD, {**OTHER, "answer": "5"}]))
    with pytest.raises(IgrpoError, match=r"b: b\.jsonl row 2: problem and answer equal those of a: a\.jsonl:1"):
        load_mix({"a": (a, {}), "b": (b, {})})
    loaded = load_mix({"a": (a, {}), "b": (b, {})}, skip_bad_rows=True)
    assert [row.problem_id for row in loaded.problems] == ["a/1", "a/3", "b/1"]
    assert loaded.counts == {"rows": 6, "kept": 3, "conflicting_answer": 2, "duplicate_problem": 1}


def test_a_source_that_contributes_nothing_is_an_error(tmp_path: Path) -> None:
    a, b = (str(write_lines(tmp_path / f"{name}.jsonl", [GOOD])) for name in ("a", "b"))
    with pytest.raises(IgrpoError, match="b contributes no problem"):
        load_mix({"a": (a, {}), "b": (b, {})}, skip_bad_rows=True)
