"""`igrpo sql`: query the rollouts, selections and metrics of a run."""

from __future__ import annotations

import csv
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from igrpo_cli.errors import DamagedFileError, UsageError
from igrpo_cli.pipeline.session import open_session
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.views import run_tables
from igrpo_cli.ui.console import Console, printable, table

T = TypeVar("T")

ROWS_AT_A_TIME = 1024
_SETTINGS: dict[str, Any] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "python_enable_replacements": False,  # a table name never means a Python variable
    "temp_directory": "",
}
WIDTH_WITHOUT_TERMINAL = 120
MIN_CELL_WIDTH = 8
"""A text keeps at least this many characters, for any number of columns."""


def run(path: Path, query: str, num_rows: int, console: Console, *, as_csv: bool) -> None:
    """Print the result of `query`: at most `num_rows` rows as a table (0: all), or all rows as JSON or CSV."""
    if os.path.isdir(query):  # Path.is_dir raises OSError when the text is too long
        raise UsageError(f"{query} is a directory; the query comes first", hint="igrpo sql 'SELECT …' RUN")
    with open_session(path, [], console, only_looks=True) as session:
        columns, rows = RunDatabase(session.run, session.config.run.num_shards).ask(query)
        if as_csv:
            _print_csv(columns, rows)
        elif console.as_json:
            console.data({"columns": columns, "rows": _objects(columns, rows)}, "")
        else:
            console.data({}, _text(columns, rows, num_rows))


def _print_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    shown = printable if sys.stdout.isatty() else str  # a program reads the text unchanged
    writer = csv.writer(sys.stdout, lineterminator="\n")
    for row in chain([columns], rows):
        writer.writerow("" if value is None else shown(str(value)) for value in row)


def _objects(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[dict[str, Any]]:
    duplicate = next((name for name in columns if columns.count(name) > 1), None)
    if duplicate is not None:
        raise UsageError(f"two columns have the name {duplicate}", hint="SELECT … AS another_name")
    return [dict(zip(columns, map(_json_value, row), strict=True)) for row in rows]


def _json_value(value: Any) -> Any:
    """Return a value for JSON. Types that JSON lacks, such as dates, become text."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _json_value(item) for key, item in value.items()}
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _text(columns: Sequence[str], rows: Iterator[Sequence[Any]], num_rows: int) -> str:
    shown = list(islice(rows, num_rows or None))
    more = sum(1 for _ in rows)
    text = _fitted(columns, shown, shutil.get_terminal_size((WIDTH_WITHOUT_TERMINAL, 0)).columns)
    return f"{text}\n… {more:,} more rows: --rows 0, --json or --csv" if more else text


def _fitted(columns: Sequence[str], rows: Sequence[Sequence[Any]], width: int) -> str:
    """Return a table of at most `width` characters with long texts cut. Many columns can make it wider."""
    cells = [[value if isinstance(value, int | float | None) else _line(value, width) for value in row] for row in rows]
    names = [_line(name, width) for name in columns]
    widths = [max(len(str(cell)) for cell in (name, *(row[i] for row in cells))) for i, name in enumerate(names)]
    room = width - 2 * (len(widths) - 1)
    longest = max(widths)
    while longest > MIN_CELL_WIDTH and sum(min(each, longest) for each in widths) > room:
        longest -= 1
    return table([_cut(name, longest) for name in names], [[_cut(cell, longest) for cell in row] for row in cells])


def _line(value: object, width: int) -> str:
    return printable(str(value)[: width + 1].replace("\n", "\\n").replace("\t", "\\t"))


def _cut(cell: Any, longest: int) -> Any:
    return f"{cell[: longest - 1]}…" if isinstance(cell, str) and len(cell) > longest else cell


class RunDatabase:
    """The tables of `run_tables` for one query. The query reaches no file, network, extension or setting.

    Raises the errors of `run_tables`.
    """

    def __init__(self, run: RunDirectory, num_shards: int) -> None:
        import duckdb

        self._error: type[Exception] = duckdb.Error
        self._tables = run_tables(run, num_shards)
        self._database = duckdb.connect(":memory:", config=_SETTINGS)
        for name, rows in self._tables.items():
            self._database.register(name, rows)
        # Registered tables stay readable. A locked configuration cannot be unlocked by the query.
        self._database.execute("SET enable_external_access = false; SET lock_configuration = true")

    def ask(self, query: str) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
        """Return the column names and an iterator over the rows as Python values, which are fetched on demand.

        Both the call and the iterator raise UsageError with DuckDB's message when the query cannot be answered, and
        DamagedFileError when a file is damaged.
        """
        with self._failures():
            result = self._interruptible(lambda: self._database.execute(query))
        if result is None or result.description is None:
            raise UsageError("the query is empty", hint="igrpo sql 'SHOW TABLES'")
        return [column[0] for column in result.description], self._rows(result)

    def _rows(self, result: Any) -> Iterator[tuple[Any, ...]]:
        def fetch() -> list[tuple[Any, ...]]:
            with self._failures():
                return self._interruptible(lambda: result.fetchmany(ROWS_AT_A_TIME))

        while rows := fetch():
            yield from rows

    def _interruptible(self, call: Callable[[], T]) -> T:
        """Run `call` in another thread: DuckDB does not react to Ctrl-C in the thread that computes."""
        with ThreadPoolExecutor(1) as executor:
            called = executor.submit(call)
            try:
                return called.result()
            except BaseException:
                self._database.interrupt()
                raise

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            message = str(error).rstrip()
            if "IOError: " in message:  # an error of pyarrow during a scan: the query itself cannot open files
                raise DamagedFileError(message, hint="igrpo verify") from error
            raise UsageError(
                message, hint=f"tables: {', '.join(self._tables)}; their columns: igrpo sql 'DESCRIBE rollouts'"
            ) from error
