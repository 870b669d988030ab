"""A run as an SQL database in memory: DuckDB over its finished files, without a way to anything else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from igrpo_cli.errors import DamagedFileError, IgrpoError, UsageError
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.views import run_tables

T = TypeVar("T")

ROWS_AT_A_TIME = 1024
_SETTINGS: dict[str, Any] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "python_enable_replacements": False,  # the name of a table never means a variable of ours
    "temp_directory": "",
}


class RunDatabase:
    """The tables of `run_tables`, to be asked one query. It reaches no file, no network, no extension and no setting.

    Raises IgrpoError where DuckDB is not installed, and as `run_tables` does.
    """

    def __init__(self, run: RunDirectory, num_shards: int) -> None:
        try:
            import duckdb
        except ImportError as error:
            raise IgrpoError(f"SQL needs DuckDB: {error}", hint="pip install 'igrpo-cli[sql]'") from error
        self._error: type[Exception] = duckdb.Error
        self._tables = run_tables(run, num_shards)
        self._database = duckdb.connect(":memory:", config=_SETTINGS)
        for name, table in self._tables.items():
            self._database.register(name, table)
        # What is registered stays readable. Nothing else is from here on, and a locked setting cannot be taken back.
        self._database.execute("SET enable_external_access = false; SET lock_configuration = true")

    def ask(self, query: str) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
        """The names of the columns, and the rows as Python values, fetched while they are gone through.

        Raises, there as here, UsageError with DuckDB's message for a query that cannot be answered,
        DamagedFileError where a file turns out to be damaged.
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
        """DuckDB hears of Ctrl-C late, or never, in the thread that computes, and at once from another."""
        with ThreadPoolExecutor(1) as beside:
            called = beside.submit(call)
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
            if "IOError: " in message:  # pyarrow's, from within a scan: no query can reach a file in another way
                raise DamagedFileError(message, hint="igrpo verify") from error
            raise UsageError(
                message, hint=f"tables: {', '.join(self._tables)}; their columns: igrpo sql 'DESCRIBE rollouts'"
            ) from error
