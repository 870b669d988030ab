"""Read shards as arrays: drafts for the selection, columns for figures, and tables for SQL.

Shape suffixes: _B groups of a block, _N drafts of a group.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import reduce
from itertools import chain
from operator import and_
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray
from pyarrow import Table as Table  # also the type of tables for rooms that do not import pyarrow
from pyarrow.fs import LocalFileSystem

from igrpo_cli.errors import DamagedFileError, UsageError
from igrpo_cli.records import VERDICTS, Verdict
from igrpo_cli.store.layout import RunDirectory, ShardPath, shards_in
from igrpo_cli.store.rows import storable
from igrpo_cli.store.schema import (
    ADVANTAGES,
    METRICS,
    PROBLEMS,
    ROLLOUTS,
    SCORES,
    SELECTIONS,
    name_of_schema,
    reward_columns,
    with_critiques,
    with_reward_parts,
)
from igrpo_cli.store.scores import with_scores
from igrpo_cli.store.tables import file_schema, iterate_blocks, read_table

_CANDIDATE_COLUMNS = (
    "group_id",
    "sample_id",
    "problem_id",
    "completion",
    "completion_ids",
    "reward",
    "reward_accuracy",
    "extracted_answer",
    "verdict",
)


@dataclass(frozen=True)
class CandidateBlock:
    """Holds the drafts of some groups."""

    group_ids: Sequence[int]
    problem_ids: Sequence[str]
    rewards_BN: NDArray[np.float32]
    accuracies_BN: NDArray[np.float32]
    is_graded_BN: NDArray[np.bool_]
    """False where the verdict is `ungraded`."""
    lengths_BN: NDArray[np.int64]
    """Tokens of each draft."""
    table: pa.Table

    def chosen(self, indices_B: NDArray[np.int64]) -> tuple[list[str], list[str | None], list[Verdict]]:
        """Return completion, extracted answer and verdict of one draft per group; other drafts are not decoded."""
        rows = indices_B + np.arange(len(self.group_ids)) * self.rewards_BN.shape[1]
        names = ("completion", "extracted_answer", "verdict")
        chosen = self.table.select(names).take(pa.array(rows))
        completions, answers, verdicts = (chosen[name].to_pylist() for name in names)
        return completions, answers, verdicts


def iterate_candidates(path: Path, scores: Path | None = None) -> Iterator[CandidateBlock]:
    """Yield the groups of a draft shard block by block, with the rewards and answers of `scores` if given.

    Raises DamagedFileError where a group lacks a draft or has one twice, or where the scores belong to other rows.
    """
    blocks = iterate_blocks(path, ROLLOUTS, _CANDIDATE_COLUMNS)
    num_drafts = 0
    for table in blocks if scores is None else with_scores(blocks, scores):
        group_ids, sample_ids = (table[name].to_numpy() for name in ("group_id", "sample_id"))
        num_drafts = num_drafts or int(sample_ids.max()) + 1
        complete = (
            table.num_rows % num_drafts == 0
            and (sample_ids == np.tile(np.arange(num_drafts), table.num_rows // num_drafts)).all()
        )
        if not complete or (group_ids != np.repeat(group_ids[::num_drafts], num_drafts)).any():
            raise DamagedFileError(
                f"{path}: a group between {group_ids[0]} and {group_ids[-1]} lacks a draft or holds one twice",
                hint="igrpo verify; igrpo draft --overwrite samples the shard again",
            )
        yield CandidateBlock(
            group_ids=group_ids[::num_drafts].tolist(),
            problem_ids=table["problem_id"].take(pa.array(np.arange(0, table.num_rows, num_drafts))).to_pylist(),
            rewards_BN=table["reward"].to_numpy().reshape(-1, num_drafts),
            accuracies_BN=table["reward_accuracy"].to_numpy().reshape(-1, num_drafts),
            is_graded_BN=pc.not_equal(table["verdict"], "ungraded").to_numpy().reshape(-1, num_drafts),
            lengths_BN=pc.list_value_length(table["completion_ids"]).to_numpy().reshape(-1, num_drafts),
            table=table,
        )


NO_DRAFT = -1
"""Value for a rollout without `draft_sample_id`."""
_ROLLOUT_COLUMNS = (
    "group_id",
    "sample_id",
    "draft_sample_id",
    "completion",
    "sampling_logprobs",
    "finish_reason",
    "reward",
    "verdict",
)


@dataclass(frozen=True, slots=True)
class RolloutColumns:
    """Holds the rollouts of one stage; every column has an entry per rollout, in the order of the files."""

    group_id: NDArray[np.int64]
    sample_id: NDArray[np.int64]
    draft_sample_id: NDArray[np.int64]
    """NO_DRAFT where the prompt is without draft."""
    completion: Sequence[str]
    num_tokens: NDArray[np.int64]
    logprob_sum: NDArray[np.float64]
    """Nats, over the tokens of the completion, as sampled."""
    is_truncated: NDArray[np.bool_]
    reward: NDArray[np.float64]
    verdict: NDArray[np.int64]
    """Position in `records.VERDICTS`."""

    def is_verdict(self, verdict: str) -> NDArray[np.bool_]:
        """Return a mask of the rollouts with this verdict."""
        found: NDArray[np.bool_] = self.verdict == VERDICTS.index(verdict)
        return found


@dataclass(frozen=True, slots=True)
class SelectionColumns:
    """Holds selections; every column has an entry per group."""

    group_id: NDArray[np.int64]
    draft_group_id: NDArray[np.int64]
    num_tied: NDArray[np.int64]


Columns = TypeVar("Columns", RolloutColumns, SelectionColumns)


def read_rollout_columns(path: Path) -> RolloutColumns:
    """Return the rollouts of a shard without token ids and prompts. Raises as `read_table`."""
    blocks = [_rollouts(block) for block in iterate_blocks(path, ROLLOUTS, _ROLLOUT_COLUMNS)]
    return concatenated([_rollouts(ROLLOUTS.empty_table()), *blocks])


def read_selection_columns(path: Path) -> SelectionColumns:
    """Return the selections of a shard. Raises as `read_table`."""
    blocks = [_selections(block) for block in iterate_blocks(path, SELECTIONS, SelectionColumns.__slots__)]
    return concatenated([_selections(SELECTIONS.empty_table()), *blocks])


def concatenated(parts: Sequence[Columns]) -> Columns:
    """Return the rows of one or more shards in one object."""
    columns = ([getattr(part, field.name) for part in parts] for field in fields(parts[0]))
    return type(parts[0])(*map(_end_to_end, columns))


def _end_to_end(pieces: list[Any]) -> Any:
    return np.concatenate(pieces) if isinstance(pieces[0], np.ndarray) else list(chain.from_iterable(pieces))


def _selections(block: pa.Table) -> SelectionColumns:
    return SelectionColumns(*(_integers(block[name]) for name in SelectionColumns.__slots__))


def _rollouts(block: pa.Table) -> RolloutColumns:
    logprobs = block["sampling_logprobs"].combine_chunks()
    num_tokens = _integers(pc.list_value_length(logprobs))
    starts = np.cumsum(num_tokens) - num_tokens
    logprob_sum = np.zeros(block.num_rows)
    # Only of completions with tokens: `reduceat` would give an empty one the first token of the next.
    values = logprobs.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    logprob_sum[num_tokens > 0] = np.add.reduceat(values, starts[num_tokens > 0]) if len(values) else 0.0
    return RolloutColumns(
        group_id=_integers(block["group_id"]),
        sample_id=_integers(block["sample_id"]),
        draft_sample_id=_integers(pc.fill_null(block["draft_sample_id"], NO_DRAFT)),
        completion=block["completion"].to_pylist(),
        num_tokens=num_tokens,
        logprob_sum=logprob_sum,
        is_truncated=pc.equal(block["finish_reason"].cast(pa.string()), "length").to_numpy().astype(np.bool_),
        reward=block["reward"].to_numpy().astype(np.float64),
        verdict=_integers(pc.index_in(block["verdict"].cast(pa.string()), pa.array(VERDICTS))),
    )


def _integers(column: pa.ChunkedArray | pa.Array) -> NDArray[np.int64]:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    found: NDArray[np.int64] = column.to_numpy(zero_copy_only=False).astype(np.int64)
    return found


_SCHEMAS = {name_of_schema(each): each for each in (ROLLOUTS, SELECTIONS, METRICS, ADVANTAGES, PROBLEMS, SCORES)}


def read_together(kind: str, paths: Sequence[Path], columns: Sequence[str] | None = None) -> Table:
    """Return the rows of files of one kind (`rollouts`, …) in order. Reads and raises as `read_table`.

    `columns` are those to read; None means all. Rollouts and scores have the reward parts of all files, null where a
    file lacks one. Raises UsageError for a column that no file has.
    """
    schema = _SCHEMAS[kind]
    found = [file_schema(path, schema) for path in paths]
    schema = _with_parts_of(found, schema)
    names = schema.names if columns is None else list(columns)
    unknown = [name for name in names if name not in schema.names]
    if unknown:
        raise UsageError(f"{kind} have no column {unknown[0]!r}; they have {', '.join(schema.names)}")
    lacking = {name for name in names for each in found if name not in each.names}
    fields = (schema.field(name) for name in names)
    wanted = pa.schema([field.with_nullable(field.nullable or field.name in lacking) for field in fields])
    tables = [wanted.empty_table()]
    for path, each in zip(paths, found, strict=True):
        tables.append(_filled(read_table(path, _SCHEMAS[kind], [name for name in names if name in each.names]), wanted))
    return pa.concat_tables(tables).unify_dictionaries()


def _filled(table: pa.Table, wanted: pa.Schema) -> pa.Table:
    """Return the columns of `wanted`, with nulls in those that the table lacks."""
    arrays = [
        table[field.name] if field.name in table.schema.names else pa.nulls(table.num_rows, field.type)
        for field in wanted
    ]
    return pa.table(arrays, schema=wanted)


_FORMAT = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
)


@dataclass(frozen=True)
class _File:
    path: Path
    place: Mapping[str, str] = field(default_factory=dict)
    """Values that only the path states, by the name of the column that they become."""


def run_tables(run: RunDirectory, num_shards: int) -> dict[str, ds.Dataset]:
    """Return the complete shards and updates of a run as tables by name; a kind without files is an empty table.

    `rollouts` has the reward parts and critiques of all its files, null where a file lacks one. `problems` has the
    other columns of the data. `scores` has the name of the set as column `name`; `evals` has the benchmark and the
    evaluation as columns `bench` and `policy`.

    Raises UnknownSchemaError and DamagedFileError for files that are not of their kind. Scanning the tables reads the
    rows and verifies their checksums.
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
        "problems": _with_other_columns(_table(PROBLEMS, [_File(path.data) for path in _finished([run.problems()])])),
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
    schema = _with_parts_of([file_schema(file.path, schema) for file in files], schema)
    for position, column in enumerate(place):
        schema = schema.insert(position, pa.field(column, pa.string()))
    if not files:
        return ds.dataset(schema.empty_table())
    filesystem = LocalFileSystem()
    fragments = [
        _FORMAT.make_fragment(str(file.path), filesystem, partition_expression=_is_of(file.place)) for file in files
    ]
    return ds.FileSystemDataset(fragments, schema, _FORMAT, filesystem)


def _with_parts_of(found: Sequence[pa.Schema], schema: pa.Schema) -> pa.Schema:
    """Return `schema` with the reward parts and critiques of all files."""
    if reward_columns(schema):
        parts = {name.removeprefix("reward_") for each in found for name in reward_columns(each)}
        schema = with_reward_parts(schema, parts)
    return with_critiques(schema) if any("critique" in each.names for each in found) else schema


def _is_of(place: Mapping[str, str]) -> ds.Expression | None:
    terms = [ds.field(column) == value for column, value in place.items()]
    return reduce(and_, terms) if terms else None


def _with_other_columns(problems: ds.Dataset) -> ds.Dataset:
    """Return the table of the problems with each other column of the data as a column.

    Numbers, texts and booleans keep their type if all values of a column have it. Other columns are JSON. A name that
    the table already has, in any letter case, gets `data_` in front.
    """
    try:
        table = problems.to_table()
    except (pa.ArrowException, OSError):
        return problems  # A query of this table reports the damage.
    rows = [json.loads(text) for text in table["columns"].to_pylist()]
    table = table.drop_columns("columns")
    for name in rows[0] if rows else ():
        taken, unique = {each.lower() for each in table.column_names}, name
        while unique.lower() in taken:
            unique = f"data_{unique}"
        table = table.append_column(unique, _array([row[name] for row in rows]))
    return ds.dataset(table)


def _array(values: Sequence[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if kinds in ({int}, {float}, {int, float}, {bool}):
        with suppress(pa.ArrowInvalid, OverflowError):  # a large integer
            return pa.array(values)
    texts = values if kinds <= {str} else [each if each is None else json.dumps(each) for each in values]
    return pa.array([each if each is None else storable(each) for each in texts], pa.string())
