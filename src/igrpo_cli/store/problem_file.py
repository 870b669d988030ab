"""The problems of a run or a benchmark, frozen in one file with its manifest."""

from __future__ import annotations

from collections.abc import Sequence

from igrpo_cli.records import Problem
from igrpo_cli.store.completion import open_input
from igrpo_cli.store.layout import ShardPath
from igrpo_cli.store.manifest import DataFile, read_manifest

ROWS_PER_BLOCK = 1024


def write_problems(path: ShardPath, problems: Sequence[Problem], *, replace: bool = False) -> DataFile:
    """Publish the data file; the caller publishes its manifest (`commit_shard`)."""
    from igrpo_cli.store.schema import PROBLEMS
    from igrpo_cli.store.tables import write_rows

    starts = range(0, len(problems), ROWS_PER_BLOCK)
    blocks = (problems[start : start + ROWS_PER_BLOCK] for start in starts)
    return write_rows(path.data, PROBLEMS, blocks, replace=replace)


def read_problems(path: ShardPath) -> list[Problem]:
    """All problems in order, the file checked against its manifest; raises as `open_input` does."""
    from igrpo_cli.store.tables import read_records

    open_input(path)
    return read_records(path.data, Problem)


def count_problems(path: ShardPath) -> int:
    """How many problems there are, from the manifest alone."""
    return read_manifest(path).data.rows
