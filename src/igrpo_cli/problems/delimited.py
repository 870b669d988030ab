"""Read CSV and TSV files with a header."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from igrpo_cli.errors import DamagedFileError, UsageError
from igrpo_cli.problems.rows import BLANK_LINE, MAX_ROW_BYTES, BadRow, RawRow

SURROGATE = re.compile("[\\udc80-\\udcff]")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
"""The character between two cells, by the suffix of the file."""
OTHER_DELIMITERS = ";\t,|"
"""The delimiter is the first of these in the header if the header would otherwise name only one column."""


def read_delimited(path: Path) -> Iterator[RawRow]:
    """Yield the rows of a file; a row has the number of its first line. All values are text, and empty cells None.

    Raises `UsageError` for a header that names no columns, and `DamagedFileError` for quotes that do not match, since
    nobody knows which rows they hide.
    """
    csv.field_size_limit(MAX_ROW_BYTES)
    # Bytes that are not UTF-8 become half surrogates, so that only their row is bad.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=DELIMITERS[path.suffix], strict=True)
        try:
            header = next(reader, [])
            other = next((each for each in OTHER_DELIMITERS if len(header) == 1 and each in header[0]), None)
            if other is not None:
                file.seek(0)
                reader = csv.reader(file, delimiter=other, strict=True)
                header = next(reader, [])
            _check_header(path, header)
            line = reader.line_num + 1
            for cells in reader:
                yield line, _row(header, cells)
                line = reader.line_num + 1
        except csv.Error as error:
            hint = 'a text with a comma, a quote or a line end stands in quotes, and a quote in it is written twice: ""'
            raise DamagedFileError(f"{path.name} line {reader.line_num}: {error}", hint=hint) from None


def _check_header(path: Path, header: list[str]) -> None:
    names = [name.strip() for name in header]
    doubled = [name for name, number in Counter(names).items() if number > 1]
    if doubled:
        raise UsageError(
            f"{path.name}: the column {doubled[0]!r} occurs twice",
            hint="each column has its own name in the first line",
        )


def _row(header: list[str], cells: list[str]) -> dict[str, Any] | BadRow:
    if not cells:
        return BadRow(BLANK_LINE, "the line is blank")
    if len(cells) != len(header):
        reason = f"the row has {len(cells)} cells, and the header {len(header)}"
        return BadRow("wrong_number_of_cells", reason, "quote cells that contain the separator")
    if any(not cell.isascii() and SURROGATE.search(cell) for cell in cells):
        return BadRow("invalid_utf8", "the row is not UTF-8", "save the file as UTF-8")
    return {name.strip(): cell or None for name, cell in zip(header, cells, strict=True)}
