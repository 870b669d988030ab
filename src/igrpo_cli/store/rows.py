"""Records to columns and back, with the checks that pyarrow does not make.

Left to itself pyarrow drops unknown keys, makes missing ones null, takes nulls in columns that may
hold none, and cuts 1.5 to 1 in a list of integers. Here each of these is an error that names
column, row and value.

Text is stored as UTF-8, which has no lone surrogates (JSON can carry them). They are written as
their escape, `\\ud800`, here and nowhere else. That cannot be undone, and need not be: what a model
was given and what it said are the token ids.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import pyarrow as pa

from igrpo_cli.errors import IgrpoError
from igrpo_cli.store.schema import (
    CHOICES,
    is_always_finite,
    name_of_schema,
    reward_columns,
    with_critiques,
    with_reward_parts,
)

Row = TypeVar("Row")
PARTS = "reward_parts"
FLOAT32_MAX = (2 - 2**-23) * 2.0**127


def table_of(schema: pa.Schema, rows: Sequence[Any]) -> pa.Table:
    """Return a table of `schema` from records or dicts, with the further reward parts and critiques of the first row.

    Raises IgrpoError naming column, row (counted from 0 in `rows`) and kind of the first bad value.
    """
    fields = {kind: _field_names(kind) for kind in set(map(type, rows))}
    cells = [_cells(row, fields[type(row)]) for row in rows]
    if cells and reward_columns(schema):
        further = (name.removeprefix("reward_") for name in cells[0] if name.startswith("reward_"))
        schema = with_reward_parts(schema, further)
    if cells and "critique" in cells[0]:
        schema = with_critiques(schema)
    kind, names = name_of_schema(schema), set(schema.names)
    for index, cell in enumerate(cells):
        if cell.keys() != names:
            missing, unknown = sorted(names - cell.keys()), sorted(cell.keys() - names)
            what = f"lacks the column {missing[0]}" if missing else f"has an unknown column {unknown[0]}"
            raise IgrpoError(f"{kind} row {index} {what}")
        if kind == "rollouts":
            _check_lengths(index, cell)
    columns = [_column(kind, field, [cell[field.name] for cell in cells]) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def rows_of(table: pa.Table, record: type[Row]) -> list[Row]:
    """Return the rows of a table as `record`, which is a dataclass of `records` or `dict`."""
    columns = {name: table.column(name).to_pylist() for name in table.schema.names}
    cells: Iterable[dict[str, Any]] = (
        {name: values[index] for name, values in columns.items()} for index in range(table.num_rows)
    )
    parts = reward_columns(table.schema)
    if parts and record is not dict:
        cells = (_with_parts(cell, parts) for cell in cells)
    return [record(**cell) for cell in cells]


def storable(text: str) -> str:
    """Return `text` as it is stored: lone surrogates become their escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _field_names(kind: Any) -> Sequence[str]:
    return () if issubclass(kind, dict) else tuple(field.name for field in dataclasses.fields(kind))


def _cells(row: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return the cells of a dict, or of a record with the fields `names`."""
    cell = dict(row) if isinstance(row, dict) else {name: getattr(row, name) for name in names}
    if PARTS in cell:
        cell |= {f"reward_{name}": value for name, value in cell.pop(PARTS).items()}
    if cell.get("critique", "") is None:
        del cell["critique"], cell["critique_ids"]
    return cell


def _with_parts(cell: dict[str, Any], parts: Sequence[str]) -> dict[str, Any]:
    values = {name.removeprefix("reward_"): cell.pop(name) for name in parts}
    return {**cell, PARTS: values}


def _check_lengths(index: int, cell: dict[str, Any]) -> None:
    tokens, logprobs = cell["completion_ids"], cell["sampling_logprobs"]
    if hasattr(tokens, "__len__") and hasattr(logprobs, "__len__") and len(tokens) != len(logprobs):
        counts = f"{len(logprobs)} log-probs for {len(tokens)} tokens"
        raise IgrpoError(f"rollouts row {index}, column sampling_logprobs: {counts}")


def _column(kind: str, field: pa.Field, values: list[Any]) -> pa.Array:
    if pa.types.is_string(field.type) and all(type(value) is str for value in values):
        with suppress(UnicodeEncodeError):  # of a lone surrogate
            return pa.array(values, type=field.type)
    plain = []
    for index, value in enumerate(values):
        try:
            plain.append(None if value is None and field.nullable else _plain(field, value))
        except (TypeError, ValueError) as error:
            raise IgrpoError(f"{kind} row {index}, column {field.name}: {error}") from error
    return pa.array(plain, type=field.type)


def _plain(field: pa.Field, value: Any) -> Any:
    """Return `value` as the plain Python value that pyarrow stores unchanged. Raises TypeError and ValueError."""
    type_ = field.type
    if pa.types.is_list(type_):
        return _plain_list(type_.value_type, value)
    if pa.types.is_dictionary(type_):
        if not isinstance(value, str) or value not in CHOICES[field.name]:
            raise ValueError(f"expected one of {', '.join(CHOICES[field.name])}, got {_described(value)}")
        return value
    if pa.types.is_string(type_):
        if not isinstance(value, str):
            raise TypeError(f"expected text, got {_described(value)}")
        return storable(value)
    number = _number(type_, value)
    if is_always_finite(field.name) and not math.isfinite(number):
        raise ValueError(f"expected a finite number, got {number}")
    return number


def _number(type_: pa.DataType, value: Any) -> int | float:
    if pa.types.is_integer(type_):
        if not isinstance(value, numbers.Integral) or isinstance(value, bool):
            raise TypeError(f"expected an integer, got {_described(value)}")
        return _fits(type_, int(value))
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"expected a number, got {_described(value)}")
    number = float(value)
    # A finite value too large for its column would be stored as infinity.
    if type_.bit_width == 32 and math.isfinite(number) and abs(number) > FLOAT32_MAX:
        raise ValueError(f"{number} does not fit into {type_}")
    return number


def _plain_list(type_: pa.DataType, value: Any) -> list[Any]:
    values = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(values, Sequence) or isinstance(values, str | bytes | bytearray):
        raise TypeError(f"expected a list, got {_described(value)}")
    wanted = numbers.Integral if pa.types.is_integer(type_) else numbers.Real
    # By kinds first: a list has thousands of elements and, if it is right, one kind.
    kinds = set(map(type, values))
    if any(kind is bool or not issubclass(kind, wanted) for kind in kinds):
        place, wrong = next((i, v) for i, v in enumerate(values) if type(v) is bool or not isinstance(v, wanted))
        raise TypeError(f"expected {wanted.__name__.lower()} elements, got {_described(wrong)} at {place}")
    if wanted is numbers.Real:
        return [float(each) for each in values]
    if values:
        _fits(type_, int(min(values)))
        _fits(type_, int(max(values)))
    return [int(each) for each in values]


def _fits(type_: pa.DataType, value: int) -> int:
    limit = 1 << (type_.bit_width - 1)
    if not -limit <= value < limit:
        raise ValueError(f"{value} does not fit into {type_}")
    return value


def _described(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:40] + '…'}"
