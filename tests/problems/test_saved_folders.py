"""Folders that `save_to_disk` of Hugging Face datasets writes, and other Arrow files."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from problem_files import Row, pairs

from igrpo_cli.errors import DamagedFileError, MissingInputError, UsageError
from igrpo_cli.problems.loading import load_problems
from igrpo_cli.problems.sources import resolve_bench

ROWS: list[Row] = [
    {"prompt": [{"role": "user", "content": f"{n}+1?"}], "solution": str(n + 1), "info": {"level": {"name": "easy"}}}
    for n in range(4)
]
ALL = [(f"{n}+1?", str(n + 1)) for n in range(4)]


def write_stream(path: Path, rows: list[Row], *, batch_size: int = 2) -> Path:
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=batch_size)
    return path


def save(folder: Path, *shards: list[Row]) -> Path:
    """Write what `Dataset.save_to_disk` writes."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{len(shards):05d}.arrow" for number in range(len(shards))]
    for name, rows in zip(names, shards, strict=True):
        write_stream(folder / name, rows)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "f", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))
    return folder


def test_a_saved_dataset_is_read_in_the_order_of_its_files(tmp_path: Path) -> None:
    folder = save(tmp_path / "saved", ROWS[:3], ROWS[3:])
    write_stream(folder / "cache-0123456789abcdef.arrow", [{**ROWS[0], "solution": "7"}])
    loaded = load_problems(str(folder))
    assert pairs(loaded) == ALL
    assert loaded.problems[3].source == "data-00001-of-00002.arrow:1"


def test_a_saved_dict_has_its_folders_as_splits(tmp_path: Path) -> None:
    save(tmp_path / "train", ROWS[:2])
    save(tmp_path / "test", ROWS[2:])
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert pairs(load_problems(str(tmp_path))) == ALL[:2]
    assert pairs(load_problems(resolve_bench(str(tmp_path)))) == ALL[2:]
    assert pairs(load_problems(str(tmp_path), split="test")) == ALL[2:]
    assert pairs(load_problems(str(tmp_path / "test"))) == ALL[2:]
    (tmp_path / "train").rename(tmp_path / "sft")
    with pytest.raises(UsageError, match="contains the splits sft, test") as refused:
        load_problems(str(tmp_path))
    assert "--set data.split=sft" in (refused.value.hint or "")


def test_what_the_package_writes_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    saved = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
    saved.save_to_disk(str(tmp_path / "dict"), num_shards={"train": 2})
    saved["train"].save_to_disk(str(tmp_path / "one"))
    assert pairs(load_problems(str(tmp_path / "dict"))) == pairs(load_problems(str(tmp_path / "one"))) == ALL


def test_arrow_files_of_both_formats_are_read(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(tmp_path / "file.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    assert pairs(load_problems(str(tmp_path / "file.arrow"))) == ALL
    assert pairs(load_problems(str(write_stream(tmp_path / "stream.arrow", ROWS)))) == ALL


@pytest.mark.parametrize("removed", [1, 8, 200])
def test_a_truncated_stream_is_an_error(tmp_path: Path, removed: int) -> None:
    path = write_stream(tmp_path / "a.arrow", ROWS)
    path.write_bytes(path.read_bytes()[:-removed])
    with pytest.raises(DamagedFileError, match=r"a\.arrow is not a readable Arrow file \(its end is missing\)"):
        load_problems(str(path))
    path.write_bytes(b"")
    with pytest.raises(DamagedFileError, match="not a readable Arrow file"):
        load_problems(str(path))


def test_a_missing_file_and_an_index_are_errors(tmp_path: Path) -> None:
    folder = save(tmp_path / "saved", ROWS[:3], ROWS[3:])
    (folder / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(MissingInputError, match=r"state\.json lists data-00001-of-00002\.arrow, which is missing"):
        load_problems(str(folder))
    (folder / "state.json").write_text('{"_data_files": [], "_indices_data_files": [{"filename": "i.arrow"}]}')
    with pytest.raises(UsageError, match="selects rows by an index") as refused:
        load_problems(str(folder))
    assert "flatten_indices" in (refused.value.hint or "")
