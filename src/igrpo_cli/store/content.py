"""One hash for the values of a table, whatever form they are held in.

A file's own SHA-256 cannot stand in the file; this one can, and tells of damage where no checksum of Parquet does.
"""

from __future__ import annotations

import hashlib
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def content_sha256(table: pa.Table) -> str:
    """SHA-256 over the columns of a table in order: names, types, which rows are null, and all values.

    Chunks, slices, dictionaries and what lies under a null do not count; floats count by their bits. Made for the
    types of `schema`; raises ArrowException for any other.
    """
    digest = hashlib.sha256()
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        _add(digest, name, column.combine_chunks())
    return digest.hexdigest()


def _add(digest: hashlib._Hash, name: str, array: pa.Array) -> None:
    """Every piece is preceded by what says how long it is, so that no two tables run together into the same bytes."""
    digest.update(f"{name!r} {array.type} {len(array)} {array.null_count}\n".encode())
    digest.update(_numbers(pc.indices_nonzero(array.is_null())))
    if pa.types.is_list(array.type):
        digest.update(_numbers(pc.list_value_length(array).fill_null(0)))
        _add(digest, "", array.flatten())
    elif pa.types.is_string(array.type):
        texts = array.fill_null("")
        digest.update(_numbers(pc.binary_length(texts)))
        digest.update(pc.binary_join(pa.ListArray.from_arrays([0, len(texts)], texts), "")[0].as_buffer())
    else:
        digest.update(_numbers(array.fill_null(0)))


def _numbers(array: pa.Array) -> Any:
    return array.to_numpy(zero_copy_only=True)
