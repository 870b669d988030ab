"""Parquet files that others made: problems in any schema, checked by whoever reads them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from igrpo_cli.errors import DamagedFileError, MissingInputError

ROWS_AT_A_TIME = 1024


def read_external_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of `path` in order, as plain Python values; a missing column is simply not a key.

    A value that Python cannot hold (a string that is not UTF-8) comes as bytes, so that one bad row
    does not hide the others. Raises `DamagedFileError` where the file cannot be read.
    """
    if not path.is_file():
        raise MissingInputError(f"{path} does not exist")
    try:
        with pq.ParquetFile(path) as file:
            _check_names(file.schema_arrow.names, path)
            for batch in file.iter_batches(batch_size=ROWS_AT_A_TIME):
                columns = {name: _values(batch.column(name)) for name in batch.schema.names}
                for row in range(batch.num_rows):
                    yield {name: values[row] for name, values in columns.items()}
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # names of columns that are no text
        raise DamagedFileError(
            f"{path.name} is not a readable Parquet file ({_first_line(error)})",
            hint="copy or download it again",
        ) from error


def _check_names(names: list[str], path: Path) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DamagedFileError(f"{path.name} has two columns of the name {twice[0]}")


def _values(column: pa.Array) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except ValueError:
        return [_value(scalar) for scalar in column]
    return values


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except ValueError:
        return scalar.as_buffer().to_pybytes() if hasattr(scalar, "as_buffer") else b""


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]
