"""Read named sets of scores: new rewards for the same rows, stored next to the rollouts."""

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


def open_scores(scores: ShardPath, rollouts: ShardPath, *, counts_ungraded: bool = False) -> Manifest:
    """Open a set of scores of the rollouts that are on disk now.

    Raises as `open_input`, and ConflictError where the rollouts were replaced since, or where the scores leave
    completions out and the caller would count them (`reward.ungraded = "wrong"`).
    """
    manifest = open_input(scores)
    if not set(input_hashes(rollouts)) <= set(manifest.identity.inputs):
        raise ConflictError(
            f"{scores.data} scores rows that are no longer there: {rollouts.name} was made again",
            hint=f"{scores.overwrite_command}, with the weights that it had",
        )
    if counts_ungraded and (left_out := manifest.counts.get("left_out")):
        raise ConflictError(
            f'{scores.data} leaves {left_out} completions out, but reward.ungraded = "wrong" counts them',
            hint="add --set reward.ungraded=mask; or give each completion a row and grade with --overwrite",
        )
    return manifest


def read_scored(rollouts: Path, scores: Path | None) -> list[Rollout]:
    """Return all rows of a rollout shard, with reward, verdict and extracted answer of a set of scores if given.

    Raises as `read_records`, and DamagedFileError where the scores belong to other rollouts.
    """
    rows = read_records(rollouts, Rollout)
    return rows if scores is None else apply_scores(rows, read_records(scores, Score), scores)


def apply_scores(rollouts: Sequence[Rollout], scores: Sequence[Score], path: Path) -> list[Rollout]:
    """Return `rollouts` with the rewards, verdicts and answers of `scores`, which were read from `path`."""
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


_OF_SCORES = ("reward", "reward_accuracy", "verdict", "extracted_answer")


def with_scores(blocks: Iterator[pa.Table], path: Path) -> Iterator[pa.Table]:
    """Yield blocks of a rollout shard with the columns `_OF_SCORES` of scores."""
    of_scores = iterate_blocks(path, SCORES, (*_ROW, *_OF_SCORES))
    for block in blocks:
        scores = next(of_scores, None)
        theirs = [] if scores is None else _identities(scores)
        _require_same_rows(_identities(block), theirs, path)
        assert scores is not None
        for name in _OF_SCORES:
            block = block.set_column(block.schema.get_field_index(name), block.schema.field(name), scores[name])
        yield block


def _identities(block: pa.Table) -> list[tuple[int, int]]:
    return list(zip(*(block[name].to_pylist() for name in _ROW), strict=True))


def _require_same_rows(ours: list[tuple[int, int]], theirs: list[tuple[int, int]], path: Path) -> None:
    if ours != theirs:
        raise DamagedFileError(f"{path} scores other rows than the shard beside it holds", hint="igrpo verify")
