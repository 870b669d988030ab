"""Named sets of scores beside the rollouts that they are of: the same rows, judged anew, never written over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from igrpo_cli.errors import ConflictError, DamagedFileError
from igrpo_cli.records import Rollout, Score
from igrpo_cli.store.completion import input_hashes, open_input
from igrpo_cli.store.layout import ShardPath
from igrpo_cli.store.manifest import Manifest
from igrpo_cli.store.schema import SCORES
from igrpo_cli.store.tables import iterate_blocks, read_records

_ROW = ("group_id", "sample_id")


def open_scores(scores: ShardPath, rollouts: ShardPath) -> Manifest:
    """`open_input` of a set of scores, which must be of the rollouts that are on disk now.

    Raises as `open_input`, and ConflictError where the rollouts were made anew since.
    """
    manifest = open_input(scores)
    if not set(input_hashes(rollouts)) <= set(manifest.identity.inputs):
        raise ConflictError(
            f"{scores.data} scores rows that are no longer there: {rollouts.name} was made anew",
            hint=f"{scores.overwrite_command}, with the weights that it had",
        )
    return manifest


def read_scored(rollouts: Path, scores: Path | None) -> list[Rollout]:
    """All rows of a rollout shard, with reward, verdict and extracted answer of a set of scores if one is given.

    Raises as `read_records`, and DamagedFileError where the scores are not those of the rollouts.
    """
    rows = read_records(rollouts, Rollout)
    return rows if scores is None else apply_scores(rows, read_records(scores, Score), scores)


def apply_scores(rollouts: Sequence[Rollout], scores: Sequence[Score], path: Path) -> list[Rollout]:
    """`rollouts` with what `scores`, of the file `path`, say of them."""
    _require_same_rows(
        [(row.group_id, row.sample_id) for row in rollouts], [(row.group_id, row.sample_id) for row in scores], path
    )
    return [
        replace(
            rollout,
            reward=score.reward,
            reward_parts=score.reward_parts,
            verdict=score.verdict,
            extracted_answer=score.extracted_answer,
        )
        for rollout, score in zip(rollouts, scores, strict=True)
    ]


def with_scores(blocks: Iterator[pa.Table], path: Path) -> Iterator[pa.Table]:
    """Blocks of a rollout shard, their columns `reward` and `extracted_answer` taken from the scores at `path`."""
    of_scores = iterate_blocks(path, SCORES, (*_ROW, "reward", "extracted_answer"))
    for block in blocks:
        scores = next(of_scores, None)
        theirs = [] if scores is None else _identities(scores)
        _require_same_rows(_identities(block), theirs, path)
        assert scores is not None
        for name in ("reward", "extracted_answer"):
            block = block.set_column(block.schema.get_field_index(name), block.schema.field(name), scores[name])
        yield block


def _identities(block: pa.Table) -> list[tuple[int, int]]:
    return list(zip(*(block[name].to_pylist() for name in _ROW), strict=True))


def _require_same_rows(ours: list[tuple[int, int]], theirs: list[tuple[int, int]], path: Path) -> None:
    if ours != theirs:
        raise DamagedFileError(f"{path} scores other rows than the shard beside it holds", hint="igrpo verify")
