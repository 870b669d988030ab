"""Parquet files that others made."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from igrpo_cli.errors import DamagedFileError, MissingInputError
from igrpo_cli.store.tables import read_external_parquet


def test_rows_come_in_order_as_plain_values_across_row_groups(tmp_path: Path) -> None:
    rows = [{"n": n, "chat": [{"role": "user", "content": f"q{n}"}], "x": None} for n in range(2500)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=700)
    assert list(read_external_parquet(path)) == rows


def test_text_that_is_not_utf8_comes_as_bytes_and_spares_its_neighbours(tmp_path: Path) -> None:
    column = pa.array([b"good", b"\xff\xfe", b"fine"]).view(pa.binary())
    broken = pa.StringArray.from_buffers(3, column.buffers()[1], column.buffers()[2])
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"problem": broken, "n": [1, 2, 3]}), path)
    assert [row["problem"] for row in read_external_parquet(path)] == ["good", b"\xff\xfe", "fine"]
    assert [row["n"] for row in read_external_parquet(path)] == [1, 2, 3]


@pytest.mark.parametrize("keep", [0, 10, 0.5])
def test_a_cut_file_is_called_damaged(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"problem": [str(n) for n in range(5000)]}), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if keep < 1 else int(keep)])
    with pytest.raises(DamagedFileError, match=r"a\.parquet is not a readable Parquet file"):
        list(read_external_parquet(path))


def test_two_columns_of_one_name_are_refused_since_a_row_would_keep_only_one(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["answer", "answer"]), path)
    with pytest.raises(DamagedFileError, match="two columns of the name answer"):
        list(read_external_parquet(path))


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError):
        list(read_external_parquet(tmp_path / "none.parquet"))
