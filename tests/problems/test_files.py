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
    (tmp_path / "a.csv").write_text("problem,answer\n")
    with pytest.raises(UsageError, match=r"a\.csv is none of"):
        load_problems(str(tmp_path / "a.csv"))
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
