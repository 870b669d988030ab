"""Define the columns of every kind of file, with their types, and how a file states its kind.

Columns are not nullable unless stated. The version of a schema increases when its columns change meaning. Readers
accept their own version only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from pathlib import Path

import pyarrow as pa

from igrpo_cli.errors import DamagedFileError, IgrpoError
from igrpo_cli.records import (
    FINISH_REASONS,
    ROLLOUT_STAGES,
    SELECTION_ACTIONS,
    VERDICTS,
    Metric,
    Problem,
    Rollout,
    Score,
    Selection,
)
from igrpo_cli.store.checksummed_json import UnknownSchemaError

NAME_KEY = b"igrpo.schema"
VERSION_KEY = b"igrpo.schema_version"

CHOICES: dict[str, tuple[str, ...]] = {
    "stage": ROLLOUT_STAGES,
    "finish_reason": FINISH_REASONS,
    "verdict": VERDICTS,
    "draft_verdict": VERDICTS,
    "action": SELECTION_ACTIONS,
}
"""The only values of each dictionary column."""

FINITE = frozenset({"reward", "draft_reward", "group_reward_mean", "group_reward_std", "advantage"})
"""Columns in which NaN or infinity is always a defect, as in reward parts. Other columns are stored as observed."""

_REWARD_PART = re.compile(r"reward_[a-z][a-z0-9_]*")
_INT32_LIST = pa.list_(pa.field("element", pa.int32(), nullable=False))
_FLOAT32_LIST = pa.list_(pa.field("element", pa.float32(), nullable=False))
_CHOICE = pa.dictionary(pa.int8(), pa.string())


def _schema(name: str, version: int, columns: Mapping[str, pa.DataType], nullable: Iterable[str] = ()) -> pa.Schema:
    fields = [pa.field(column, kind, nullable=column in nullable) for column, kind in columns.items()]
    return pa.schema(fields, metadata={NAME_KEY: name.encode(), VERSION_KEY: str(version).encode()})


ROLLOUTS = _schema(
    "rollouts",
    1,
    {
        "iteration": pa.int32(),
        "stage": _CHOICE,
        "problem_id": pa.string(),
        "group_id": pa.int32(),
        "sample_id": pa.int16(),
        "draft_sample_id": pa.int16(),
        "prompt": pa.string(),
        "prompt_ids": _INT32_LIST,
        "completion": pa.string(),
        "completion_ids": _INT32_LIST,
        "sampling_logprobs": _FLOAT32_LIST,
        "finish_reason": _CHOICE,
        "seed": pa.int64(),
        "reward": pa.float32(),
        "reward_accuracy": pa.float32(),
        "reward_format": pa.float32(),
        "verdict": _CHOICE,
        "extracted_answer": pa.string(),
    },
    nullable=("draft_sample_id", "extracted_answer"),
)
"""One row per completion, in order of group and sample; see `records.Rollout`.

`critique` and `critique_ids` are only in refinements of runs with critiques (`critique.by`).
"""

CRITIQUE_COLUMNS: dict[str, pa.DataType] = {"critique": pa.string(), "critique_ids": _INT32_LIST}
"""Further columns of `ROLLOUTS`, for critiques."""

SCORES = _schema(
    "scores",
    1,
    {
        "iteration": pa.int32(),
        "stage": _CHOICE,
        "problem_id": pa.string(),
        "group_id": pa.int32(),
        "sample_id": pa.int16(),
        "reward": pa.float32(),
        "reward_accuracy": pa.float32(),
        "reward_format": pa.float32(),
        "verdict": _CHOICE,
        "extracted_answer": pa.string(),
    },
    nullable=("extracted_answer",),
)
"""One row per completion of a rollout shard, in its order and blocks; see `records.Score`."""

SELECTIONS = _schema(
    "selections",
    3,
    {
        "iteration": pa.int32(),
        "group_id": pa.int32(),
        "problem_id": pa.string(),
        "draft_sample_id": pa.int16(),
        "draft": pa.string(),
        "draft_reward": pa.float32(),
        "num_tied": pa.int16(),
        "group_reward_mean": pa.float32(),
        "group_reward_std": pa.float32(),
        # These are not nullable: a group that is refined bare, or dropped, still records the draft that
        # would have been chosen (with an empty answer where none was found); `action` says what was done.
        "action": _CHOICE,
        "draft_group_id": pa.int32(),
        "draft_answer": pa.string(),
        "num_refinements": pa.int16(),
        "draft_verdict": _CHOICE,
    },
    nullable=("num_refinements", "draft_verdict"),
)
"""One row per group, in order; see `records.Selection`. Versions 1 and 2 had no `draft_verdict`."""

METRICS = _schema(
    "metrics",
    1,
    {"iteration": pa.int32(), "step": pa.int32(), "name": pa.string(), "value": pa.float64()},
)
"""See `records.Metric`."""

PROBLEMS = _schema(
    "problems",
    3,
    {
        "problem_id": pa.string(),
        "problem": pa.string(),
        "answer": pa.string(),
        "source": pa.string(),
        "earlier_turns": pa.string(),
        "prefill": pa.string(),
        "system_prompt": pa.string(),
        "columns": pa.string(),
    },
)
"""See `records.Problem`. Version 2 had no `system_prompt` and no `columns`."""

ADVANTAGES = _schema(
    "advantages",
    1,
    {
        "iteration": pa.int32(),
        "step": pa.int32(),
        "stage": _CHOICE,
        "problem_id": pa.string(),
        "group_id": pa.int32(),
        "sample_id": pa.int16(),
        "reward": pa.float32(),
        "advantage": pa.float32(),
        "num_tokens": pa.int32(),
        "old_logprob_mean": pa.float32(),
        "policy_entropy_mean": pa.float32(),
    },
)
"""The input of the gradient step, one row per completion and optimiser step. No stage reads it.

`old_logprob_mean` and `policy_entropy_mean` are means over the `num_tokens` tokens of the completion, in nats.
"""


SCHEMA_OF: dict[type, pa.Schema] = {
    Rollout: ROLLOUTS,
    Score: SCORES,
    Selection: SELECTIONS,
    Metric: METRICS,
    Problem: PROBLEMS,
}
"""The schema of each kind of record."""


def name_of_schema(schema: pa.Schema) -> str:
    """Return the name of a schema, for example `rollouts`."""
    name: bytes = schema.metadata[NAME_KEY]
    return name.decode()


def version_of_schema(schema: pa.Schema) -> int:
    """Return the version of a schema, counted from 1."""
    return int(schema.metadata[VERSION_KEY])


def with_reward_parts(schema: pa.Schema, further_parts: Iterable[str] = ()) -> pa.Schema:
    """Return `ROLLOUTS` or `SCORES` with a column `reward_<name>` per further part, sorted, after `reward_format`."""
    names = sorted({f"reward_{name}" for name in further_parts} - set(schema.names))
    strange = [name for name in names if not _REWARD_PART.fullmatch(name)]
    if strange:
        raise IgrpoError(f"{strange[0]!r} cannot be a column: a reward part is named by a-z, 0-9 and _")
    place = schema.get_field_index("reward_format") + 1
    for name in reversed(names):
        schema = schema.insert(place, pa.field(name, pa.float32(), nullable=False))
    return schema


def with_critiques(schema: pa.Schema) -> pa.Schema:
    """Return `ROLLOUTS`, with any reward parts, and `CRITIQUE_COLUMNS` at its end."""
    for name, kind in CRITIQUE_COLUMNS.items():
        schema = schema.append(pa.field(name, kind, nullable=False))
    return schema


def is_always_finite(column: str) -> bool:
    """Return True where NaN or infinity in a column of that name is a defect, as in the reward parts."""
    return column in FINITE or _REWARD_PART.fullmatch(column) is not None


def reward_columns(schema: pa.Schema) -> list[str]:
    """Return the columns that hold reward parts, in order; only rollouts and scores have any."""
    return [name for name in schema.names if _REWARD_PART.fullmatch(name)]


def check_file_schema(path: Path, found: pa.Schema, expected: pa.Schema) -> None:
    """Check that a file is of the kind `expected`, which may have further reward parts and critiques.

    Raises UnknownSchemaError for another kind or version, and DamagedFileError where the columns are not those of the
    kind and version that the file states.
    """
    metadata = found.metadata or {}
    name, version = metadata.get(NAME_KEY), metadata.get(VERSION_KEY)
    kind, ours = name_of_schema(expected), version_of_schema(expected)
    if name is None or version is None:
        raise UnknownSchemaError(f"{path} was not written by igrpo: its metadata names no schema", hint="igrpo verify")
    if name.decode(errors="replace") != kind:
        raise UnknownSchemaError(f"{path} holds {name.decode(errors='replace')!r}, not {kind}", hint="igrpo verify")
    if version != str(ours).encode():
        theirs = version.decode(errors="replace")
        age = "a newer" if version.isdigit() and int(version) > ours else "an older or unknown"
        raise UnknownSchemaError(
            f"{path} was written by {age} igrpo ({kind} version {theirs}, this igrpo reads {ours})",
            hint="use the igrpo that made the run, or make a new run",
        )
    _check_columns(path, found, expected)


def _check_columns(path: Path, found: pa.Schema, expected: pa.Schema) -> None:
    if reward_columns(expected):
        expected = with_reward_parts(expected, (name.removeprefix("reward_") for name in reward_columns(found)))
    if name_of_schema(expected) == "rollouts" and not CRITIQUE_COLUMNS.keys().isdisjoint(found.names):
        expected = with_critiques(expected)
    for theirs, ours in zip_longest(found, expected):
        if theirs is None or ours is None or not theirs.equals(ours):
            column, kind = (ours or theirs).name, name_of_schema(expected)
            raise DamagedFileError(f"{path}: the column {column} is not that of {kind}")
