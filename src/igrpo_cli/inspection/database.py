"""A run as an SQL database in memory: DuckDB over its complete files, without access to anything else."""

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
    "python_enable_replacements": False,  # a table name never means a Python variable
    "temp_directory": "",
}


class RunDatabase:
    """The tables of `run_tables` for one query. The query reaches no file, network, extension or setting.

    Raises IgrpoError when DuckDB is not installed, and the errors of `run_tables`.
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
