"""Read and write Parquet files: zstd, page checksums written and verified, the same bytes for the same rows.

There is one Parquet row group per block of groups, so that a file can be read block by block in constant memory.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from igrpo_cli.errors import DamagedFileError, IgrpoError, MissingInputError
from igrpo_cli.store.atomic import publish_file
from igrpo_cli.store.hashing import sha256_file
from igrpo_cli.store.manifest import DataFile
from igrpo_cli.store.rows import rows_of, table_of
from igrpo_cli.store.schema import (
    CRITIQUE_COLUMNS,
    ROLLOUTS,
    SCHEMA_OF,
    check_file_schema,
    is_always_finite,
    name_of_schema,
    version_of_schema,
)

Record = TypeVar("Record")

_UNREADABLE = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, IndexError)
"""Exceptions of pyarrow for bytes that have changed."""


def write_rows(path: Path, schema: pa.Schema, blocks: Iterable[Sequence[Any]], *, replace: bool = False) -> DataFile:
    """Publish rows (records or dicts); each of `blocks` becomes a Parquet row group, and empty blocks none.

    Raises IgrpoError for a row that does not fit the schema, and ConflictError as `publish_file` does.
    """
    return write_tables(path, schema, (table_of(schema, rows) for rows in blocks), replace=replace)


def write_tables(
    path: Path,
    schema: pa.Schema,
    blocks: Iterable[pa.Table],
    *,
    replace: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> DataFile:
    """Publish tables that `table_of` or `read_table` made; `metadata` is added to that of the file."""
    facts: list[DataFile] = []

    def write(temporary: Path) -> None:
        rows, groups = _write(temporary, schema, blocks, metadata or {})
        facts.append(
            DataFile(
                name_of_schema(schema),
                version_of_schema(schema),
                rows,
                groups,
                sha256_file(temporary),
                temporary.stat().st_size,
            )
        )

    publish_file(path, write, replace=replace)
    return facts[0]


def read_table(path: Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a whole file of the kind `schema`, all columns or the named ones, with every page checksum verified.

    The metadata that `write_tables` received is in the schema of the table, as bytes. Raises MissingInputError,
    UnknownSchemaError for another kind or version, and DamagedFileError.
    """
    with _reading(path), _open(path, schema) as file:
        return _checked(path, file.read(columns=_known(file, columns)))


def iterate_blocks(
    path: Path, schema: pa.Schema, columns: Sequence[str] | None = None, numbers: Iterable[int] | None = None
) -> Iterator[pa.Table]:
    """Yield the blocks of `read_table`, all or those with these numbers, with at most one block in memory."""
    with _reading(path):
        file = _open(path, schema)
    with file:
        for index in range(file.num_row_groups) if numbers is None else numbers:
            with _reading(path):
                block = _checked(path, file.read_row_group(index, columns=_known(file, columns)))
            # Outside of `_reading`, which would take the errors of whoever uses the block for the file's.
            yield block


def read_records(path: Path, record: type[Record]) -> list[Record]:
    """Return all rows of a file as `Rollout`, `Selection`, `Metric` or `Problem`. Raises as `read_table`."""
    return [row for rows in iterate_records(path, record) for row in rows]


def iterate_records(path: Path, record: type[Record], numbers: Iterable[int] | None = None) -> Iterator[list[Record]]:
    """Yield the blocks of `read_records`, all or those with these numbers."""
    for block in iterate_blocks(path, SCHEMA_OF[record], numbers=numbers):
        yield rows_of(block, record)


def count_rollouts(path: Path) -> Counter[str]:
    """Return sampled tokens, verdicts, finish reasons and critiques of a rollout shard, from its file.

    So a shard that was resumed counts all its rows. A critique counts once for its group, and so do its tokens.
    """
    counts: Counter[str] = Counter(tokens=0)
    columns = ["completion_ids", "verdict", "finish_reason"]
    has_critiques = "critique" in file_schema(path, ROLLOUTS).names
    of_critiques = ["group_id", "draft_sample_id", *CRITIQUE_COLUMNS] if has_critiques else []
    for block in iterate_blocks(path, ROLLOUTS, columns + of_critiques):
        counts["tokens"] += sum(map(len, block["completion_ids"].to_pylist()))
        counts.update(f"verdict_{verdict}" for verdict in block["verdict"].to_pylist())
        counts.update(f"finish_{reason}" for reason in block["finish_reason"].to_pylist())
        if has_critiques:
            rows = block.select(of_critiques).to_pylist()
            critiques = {row["group_id"]: row for row in rows if row["draft_sample_id"] is not None}.values()
            num_tokens = sum(len(each["critique_ids"]) for each in critiques)
            empty = sum(not each["critique"] for each in critiques)
            counts.update(
                tokens=num_tokens, critique_tokens=num_tokens, critiques=len(critiques), empty_critiques=empty
            )
    return counts


def file_schema(path: Path, schema: pa.Schema) -> pa.Schema:
    """Return the columns of a file of the kind `schema`, including further reward parts, without reading rows."""
    with _reading(path), _open(path, schema) as file:
        return file.schema_arrow


def _write(path: Path, schema: pa.Schema, blocks: Iterable[pa.Table], metadata: Mapping[str, str]) -> tuple[int, int]:
    rows = groups = 0
    full = (block for block in blocks if block.num_rows)
    first = next(full, None)
    if first is not None:
        schema = first.schema.with_metadata(schema.metadata)
    with _writer(path, schema.with_metadata({**schema.metadata, **metadata})) as writer:
        for block in chain([] if first is None else [first], full):
            if block.schema.names != schema.names:
                raise IgrpoError(f"blocks with other columns than {', '.join(schema.names)} cannot share {path}")
            writer.write_table(_uniform(block), row_group_size=block.num_rows)
            rows += block.num_rows
            groups += len(block.column("group_id").unique()) if "group_id" in schema.names else 0
    return rows, groups


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    # No statistics: they lie in the footer, which no checksum covers, and would double its size.
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=3,
        write_page_checksum=True,
        write_statistics=False,
        version="2.6",
    )


def _uniform(block: pa.Table) -> pa.Table:
    """Return the rows in the form that decides their bytes: single chunks, dictionaries in order of appearance."""
    block = block.combine_chunks()
    for index, field in enumerate(block.schema):
        if pa.types.is_dictionary(field.type):
            values = block.column(index).cast(field.type.value_type)
            block = block.set_column(index, field, values.dictionary_encode().cast(field.type))
    return block.replace_schema_metadata(None)


def _open(path: Path, schema: pa.Schema) -> pq.ParquetFile:
    file = pq.ParquetFile(path, page_checksum_verification=True)
    try:
        check_file_schema(path, file.schema_arrow, schema)
    except BaseException:
        file.close()
        raise
    return file


def _known(file: pq.ParquetFile, columns: Sequence[str] | None) -> list[str] | None:
    """Check column names, because pyarrow ignores unknown columns silently."""
    unknown = sorted(set(columns or ()) - set(file.schema_arrow.names))
    if unknown:
        raise IgrpoError(f"there is no column {unknown[0]}")
    return None if columns is None else list(columns)


def _checked(path: Path, table: pa.Table) -> pa.Table:
    table.validate(full=True)
    for field, column in zip(table.schema, table.columns, strict=True):
        if column.null_count and not field.nullable:
            raise DamagedFileError(f"{path}: the column {field.name} has nulls")
        if is_always_finite(field.name) and not pc.all(pc.is_finite(column), min_count=0).as_py():
            raise DamagedFileError(f"{path}: the column {field.name} has NaN or infinity", hint="igrpo verify")
    return table


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise MissingInputError(f"{path} does not exist") from error
    except _UNREADABLE as error:
        reason = str(error).strip().partition("\n")[0]
        if isinstance(error, MemoryError) or "worker thread" in reason:
            hint = "give the command more memory and threads (ulimit -v, -u); `igrpo verify` says whether it is damaged"
            raise IgrpoError(f"there is no memory to read {path} ({reason})", hint=hint) from error
        raise DamagedFileError(f"{path} is damaged: {reason}", hint="igrpo verify") from error


def content_sha256(table: pa.Table) -> str:
    """Return the SHA-256 of the columns of a table in order: names, types, null positions and all values.

    Chunks, slices, dictionaries and values under a null do not count. Floats count by their bits. Raises ArrowException
    for types other than those of `schema`.
    """
    digest = hashlib.sha256()
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        _add(digest, name, column.combine_chunks())
    return digest.hexdigest()


def _add(digest: hashlib._Hash, name: str, array: pa.Array) -> None:
    """Hash each piece after its length, so that two different tables never yield the same bytes."""
    digest.update(f"{name!r} {array.type} {len(array)} {array.null_count}\n".encode())
    digest.update(_buffer(pc.indices_nonzero(array.is_null())))
    if pa.types.is_list(array.type):
        digest.update(_buffer(pc.list_value_length(array).fill_null(0)))
        _add(digest, "", array.flatten())
    elif pa.types.is_string(array.type):
        texts = array.fill_null("")
        digest.update(_buffer(pc.binary_length(texts)))
        digest.update(pc.binary_join(pa.ListArray.from_arrays([0, len(texts)], texts), "")[0].as_buffer())
    else:
        digest.update(_buffer(array.fill_null(0)))


def _buffer(array: pa.Array) -> Any:
    return array.to_numpy(zero_copy_only=True)


ROWS_AT_A_TIME = 1024


def read_external_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """Return the rows of `path` in order as plain Python values; a missing column is a missing key.

    A value that Python cannot hold, such as a string that is not UTF-8, is returned as bytes, so that one bad row does
    not hide the others. Raises DamagedFileError where the file cannot be read.
    """
    with _reading_external(path, "Parquet"), pq.ParquetFile(path) as file:
        _check_names(file.schema_arrow.names, path)
        for batch in file.iter_batches(batch_size=ROWS_AT_A_TIME):
            yield from _python_rows(batch)


def read_external_arrow(path: Path) -> Iterator[dict[str, Any]]:
    """Return the rows of an Arrow IPC file, of the stream format or of the file format, as `read_external_parquet`."""
    with _reading_external(path, "Arrow"), pa.OSFile(str(path)) as file:
        if file.read(len(_ARROW_MAGIC)) == _ARROW_MAGIC:
            with pa.ipc.open_file(file) as blocks:
                _check_names(blocks.schema.names, path)
                for index in range(blocks.num_record_batches):
                    yield from _python_rows(blocks.get_batch(index))
            return
        # A stream that is cut between two blocks looks complete to pyarrow.
        file.seek(max(file.size() - len(_END_OF_STREAM), 0))
        if file.read() != _END_OF_STREAM:
            raise pa.ArrowInvalid("its end is missing")
        file.seek(0)
        with pa.ipc.open_stream(file) as stream:
            _check_names(stream.schema.names, path)
            for batch in stream:
                yield from _python_rows(batch)


_ARROW_MAGIC = b"ARROW1"
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


@contextmanager
def _reading_external(path: Path, kind: str) -> Iterator[None]:
    if not path.is_file():
        raise MissingInputError(f"{path} does not exist")
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # names of columns that are no text
        raise DamagedFileError(
            f"{path.name} is not a readable {kind} file ({_first_line(error)})",
            hint="copy or download it again",
        ) from error


def _python_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    columns = {name: _python_values(batch.column(name)) for name in batch.schema.names}
    for row in range(batch.num_rows):
        yield {name: values[row] for name, values in columns.items()}


def _check_names(names: list[str], path: Path) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DamagedFileError(f"{path.name} has two columns of the name {twice[0]}")


def _python_values(column: pa.Array) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except ValueError:
        return [_python_value(scalar) for scalar in column]
    return values


def _python_value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except ValueError:
        return scalar.as_buffer().to_pybytes() if hasattr(scalar, "as_buffer") else b""


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]
