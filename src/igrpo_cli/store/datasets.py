"""The finished files of a run as tables that a query reads where they lie, page checksums verified."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import and_
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow.fs import LocalFileSystem

from igrpo_cli.store.layout import RunDirectory, ShardPath, shards_in
from igrpo_cli.store.schema import (
    ADVANTAGES,
    METRICS,
    PROBLEMS,
    ROLLOUTS,
    SCORES,
    SELECTIONS,
    reward_columns,
    with_reward_parts,
)
from igrpo_cli.store.tables import file_schema

_FORMAT = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
)


@dataclass(frozen=True)
class _File:
    path: Path
    place: Mapping[str, str] = field(default_factory=dict)
    """What only the path says of its rows, by the name of the column that it becomes."""


def run_tables(run: RunDirectory, num_shards: int) -> dict[str, ds.Dataset]:
    """What the finished shards and updates of a run hold, by name; a kind that has none yet is a table without rows.

    `rollouts` has the parts of the reward of all its files, null where a file was made without one. `scores` has
    the name of the set as column `name`; `evals` those of the benchmark and of the evaluation as `bench` and `policy`.

    Raises UnknownSchemaError and DamagedFileError for files that are not of their kind. Rows are read, and their
    checksums verified, by whoever scans the tables.
    """
    iterations = run.iterations()
    shards = {
        stage: [path for number in iterations for path in _finished(run.shards(number, stage, num_shards))]
        for stage in ("draft", "select", "refine")
    }
    rollouts = [*shards["draft"], *shards["refine"]]
    updates = [update for number in iterations if (update := run.update(number)).manifest.exists()]
    return {
        "rollouts": _table(ROLLOUTS, [_File(path.data) for path in rollouts]),
        "selections": _table(SELECTIONS, [_File(path.data) for path in shards["select"]]),
        "metrics": _table(METRICS, [_File(update.metrics) for update in updates]),
        "advantages": _table(ADVANTAGES, [_File(update.advantages) for update in updates]),
        "problems": _table(PROBLEMS, [_File(path.data) for path in _finished([run.problems()])]),
        "scores": _table(SCORES, _scores(run, rollouts), ("name",)),
        "evals": _table(ROLLOUTS, _evals(run), ("bench", "policy")),
    }


def _scores(run: RunDirectory, rollouts: Iterable[ShardPath]) -> list[_File]:
    names = {(path.iteration, path.stage): run.score_sets(path.iteration, path.stage) for path in rollouts}
    return [
        _File(scores.data, {"name": name})
        for path in rollouts
        for name in names[path.iteration, path.stage]
        for scores in _finished([run.scores(path, name)])
    ]


def _evals(run: RunDirectory) -> list[_File]:
    return [
        _File(path.data, {"bench": directory.parent.name, "policy": directory.name})
        for directory in sorted((run.root / "eval").glob("*/*"))
        # An evaluation that another command put here may have been cut into another number of shards.
        for path in _finished(run.eval_shard_in(directory, *place) for place in shards_in(directory))
    ]


def _finished(paths: Iterable[ShardPath]) -> list[ShardPath]:
    return [path for path in paths if path.manifest.exists()]


def _table(schema: pa.Schema, files: list[_File], place: tuple[str, ...] = ()) -> ds.Dataset:
    found = [file_schema(file.path, schema) for file in files]
    if reward_columns(schema):
        parts = {name.removeprefix("reward_") for each in found for name in reward_columns(each)}
        schema = with_reward_parts(schema, parts)
    for position, column in enumerate(place):
        schema = schema.insert(position, pa.field(column, pa.string()))
    if not files:
        return ds.dataset(schema.empty_table())
    filesystem = LocalFileSystem()
    fragments = [
        _FORMAT.make_fragment(str(file.path), filesystem, partition_expression=_is_of(file.place)) for file in files
    ]
    return ds.FileSystemDataset(fragments, schema, _FORMAT, filesystem)


def _is_of(place: Mapping[str, str]) -> ds.Expression | None:
    terms = [ds.field(column) == value for column, value in place.items()]
    return reduce(and_, terms) if terms else None
