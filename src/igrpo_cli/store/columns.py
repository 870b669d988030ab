"""Rollouts and selections as arrays, for figures over runs that are too long to be read as records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from igrpo_cli.records import VERDICTS
from igrpo_cli.store.schema import ROLLOUTS, SELECTIONS
from igrpo_cli.store.tables import iterate_blocks

NO_DRAFT = -1
"""Stands where a rollout has no `draft_sample_id`."""
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
    """Rollouts of one stage; every column has an entry per rollout, in the order of the files."""

    group_id: NDArray[np.int64]
    sample_id: NDArray[np.int64]
    draft_sample_id: NDArray[np.int64]
    """NO_DRAFT where the prompt is bare."""
    completion: Sequence[str]
    num_tokens: NDArray[np.int64]
    logprob_sum: NDArray[np.float64]
    """Nats, over the tokens of the completion, as sampled."""
    is_truncated: NDArray[np.bool_]
    reward: NDArray[np.float64]
    verdict: NDArray[np.int64]
    """Position in `records.VERDICTS`."""

    def is_verdict(self, verdict: str) -> NDArray[np.bool_]:
        """Which rollouts have this verdict."""
        found: NDArray[np.bool_] = self.verdict == VERDICTS.index(verdict)
        return found


@dataclass(frozen=True, slots=True)
class SelectionColumns:
    """Selections; every column has an entry per group."""

    group_id: NDArray[np.int64]
    draft_group_id: NDArray[np.int64]
    num_tied: NDArray[np.int64]


Columns = TypeVar("Columns", RolloutColumns, SelectionColumns)


def read_rollout_columns(path: Path) -> RolloutColumns:
    """The rollouts of a shard; token ids and prompts are left on disk. Raises as `read_table`."""
    blocks = [_rollouts(block) for block in iterate_blocks(path, ROLLOUTS, _ROLLOUT_COLUMNS)]
    return joined([_rollouts(ROLLOUTS.empty_table()), *blocks])


def read_selection_columns(path: Path) -> SelectionColumns:
    """The selections of a shard. Raises as `read_table`."""
    blocks = [_selections(block) for block in iterate_blocks(path, SELECTIONS, SelectionColumns.__slots__)]
    return joined([_selections(SELECTIONS.empty_table()), *blocks])


def joined(parts: Sequence[Columns]) -> Columns:
    """The rows of one or more shards, one after the other."""
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
