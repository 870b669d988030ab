"""Check that a shard holds the groups that belong to it, each with all of its samples."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import chain, zip_longest
from typing import TYPE_CHECKING

from igrpo_cli.config import RunConfig
from igrpo_cli.errors import ConflictError, DamagedFileError, IgrpoError
from igrpo_cli.records import Problem, Rollout, Selection
from igrpo_cli.store.layout import ShardPath, block_range, command_line
from igrpo_cli.store.manifest import Manifest

if TYPE_CHECKING:
    from igrpo_cli.store.parts import RowId


def groups_of_shard(config: RunConfig, shard: int) -> range:
    """Group ids of one shard of an iteration."""
    num_groups, size = config.data.problems_sampled, config.engine.groups_per_block
    blocks = block_range(-(-num_groups // size), shard, config.run.num_shards)
    return range(blocks.start * size, min(blocks.stop * size, num_groups))


def require_groups(path: ShardPath, found: Sequence[int], expected: Collection[int]) -> None:
    """Raise DamagedFileError, naming shard and group, unless `found` are the groups `expected`, in order."""
    for group_id, wanted in zip_longest(found, expected):
        if wanted is None:
            raise _damaged(path, f"group {group_id} does not belong there, or stands twice")
        if group_id != wanted:
            raise _damaged(path, f"group {wanted} is missing, or not in its place")


def require_problems(path: ShardPath, selections: Sequence[Selection], problems: Sequence[Problem]) -> None:
    """Raise ConflictError, naming shard and group, where a selection is not of the problem of its group.

    `problems` are those of the iteration, at the positions that are their group ids.
    """
    for selection in selections:
        problem_id = problems[selection.group_id].problem_id
        if selection.problem_id != problem_id:
            raise ConflictError(
                f"{path.name} ({path.data}): group {selection.group_id} is of problem {selection.problem_id!r} there, "
                f"and of {problem_id!r} by run.seed and the problems of the run",
                hint="`igrpo verify` says what changed; restore that, or make draft and select again with --overwrite",
            )


def require_whole(path: ShardPath, manifest: Manifest, rows: Sequence[Rollout], expected: Collection[int]) -> None:
    """Raise DamagedFileError unless each of the groups `expected` has all of its samples, in order, and no other."""
    num_samples = manifest.identity.config[path.stage]["num_generations"]
    wanted = chain.from_iterable(((group_id, sample) for sample in range(num_samples)) for group_id in expected)
    what = _first_difference(((row.group_id, row.sample_id) for row in rows), wanted)
    if what is not None:
        raise _damaged(path, what)


def require_planned(path: ShardPath, block: int, found: Iterable[RowId], requested: Iterable[RowId]) -> None:
    """Raise IgrpoError, naming shard and sample, unless the rows of a block are the requested ones, in order.

    For a shard that is not published yet.
    """
    what = _first_difference(found, requested)
    if what is not None:
        raise IgrpoError(
            f"{path.name} is not published, block {block} is not what was asked for: {what}",
            hint=f"`{path.command}` samples that block again and goes on; finished blocks are kept",
        )


def _first_difference(found: Iterable[RowId], wanted: Iterable[RowId]) -> str | None:
    """Return what is wrong with the rows; None where they are the expected ones, in order."""
    for row, which in zip_longest(found, wanted):
        if which is None:
            return f"a row too many in group {row[0]}"
        if row != which:
            return f"sample {which[1]} of group {which[0]} is missing"
    return None


def _damaged(path: ShardPath, what: str) -> DamagedFileError:
    return DamagedFileError(
        f"{path.data}: {what}",
        hint=f"`{path.overwrite_command}` makes the shard again; `{command_line(path.root, 'verify')}` checks all",
    )
