"""Draft shards as a selection reads them: block by block, only the columns that it depends on.

Shape suffixes: _B groups of a block, _N drafts of a group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from igrpo_cli.errors import DamagedFileError
from igrpo_cli.store.schema import ROLLOUTS
from igrpo_cli.store.scores import with_scores
from igrpo_cli.store.tables import iterate_blocks

COLUMNS = (
    "group_id",
    "sample_id",
    "problem_id",
    "completion",
    "completion_ids",
    "reward",
    "extracted_answer",
)


@dataclass(frozen=True)
class CandidateBlock:
    """The drafts of some groups."""

    group_ids: Sequence[int]
    problem_ids: Sequence[str]
    rewards_BN: NDArray[np.float32]
    lengths_BN: NDArray[np.int64]
    """Tokens of each draft."""
    table: pa.Table

    def texts(self, indices_B: NDArray[np.int64]) -> tuple[list[str], list[str | None]]:
        """Completions and extracted answers of one draft per group; the others are never turned into Python text."""
        rows = indices_B + np.arange(len(self.group_ids)) * self.rewards_BN.shape[1]
        chosen = self.table.select(["completion", "extracted_answer"]).take(pa.array(rows))
        return chosen["completion"].to_pylist(), chosen["extracted_answer"].to_pylist()


def iterate_candidates(path: Path, scores: Path | None = None) -> Iterator[CandidateBlock]:
    """The groups of a draft shard, a block at a time; rewards and extracted answers are those of `scores`, if given.

    Raises DamagedFileError where a group lacks a draft or has one twice, or where the scores are of other rows.
    """
    blocks = iterate_blocks(path, ROLLOUTS, COLUMNS)
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
            lengths_BN=pc.list_value_length(table["completion_ids"]).to_numpy().reshape(-1, num_drafts),
            table=table,
        )
