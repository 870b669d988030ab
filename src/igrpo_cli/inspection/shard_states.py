"""Which shards of a stage are done, under way, damaged or not there, from listings and manifests alone.

A task that finishes a shard takes its blocks away: FileNotFoundError then says to look again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from igrpo_cli.store.completion import damage_of
from igrpo_cli.store.layout import ShardPath, UpdatePath


@dataclass(frozen=True, slots=True)
class UnfinishedShard:
    """A shard of which something is kept. Nobody can see in a directory whether its task still lives: its age tells."""

    shard: int
    done: int
    """Blocks that are kept; of an update optimiser steps."""
    claimed: int
    """Blocks that some task has begun, the kept ones included."""
    last_change: datetime
    """UTC, whole seconds."""


@dataclass(frozen=True, slots=True)
class StageState:
    """The shards of one stage."""

    total: int
    missing: tuple[int, ...]
    """Without a manifest: what `igrpo status --missing` prints."""
    damaged: dict[int, str]
    """Why the other shards that its command would make anew do not count."""
    under_way: tuple[UnfinishedShard, ...]
    """Of the missing ones."""

    @property
    def done(self) -> int:
        """Shards that are there and sound."""
        return self.total - len(self.missing) - len(self.damaged)


def stage_state(paths: Sequence[ShardPath]) -> StageState:
    """The state of some shards of one stage, such as draft."""
    missing = missing_shards(paths)
    found = {path.shard: damage_of(path) for path in paths if path.shard not in missing}
    return StageState(
        total=len(paths),
        missing=tuple(missing),
        damaged={shard: damage for shard, damage in found.items() if damage is not None},
        under_way=tuple(each for path in missing.values() if (each := _unfinished_shard(path))),
    )


def missing_shards(paths: Sequence[ShardPath]) -> dict[int, ShardPath]:
    """Those without a manifest, by number; whether the others' bytes are right is for `igrpo verify` to say."""
    return {path.shard: path for path in paths if not path.manifest.exists()}


def update_state(update: UpdatePath) -> StageState:
    """The same of an update, which is one shard; its blocks are the optimiser steps that are kept."""
    if update.policy.is_dir():  # Published, and the next command moves its policy to where the manifest says it lies.
        return StageState(1, (), {}, ())
    state = stage_state([update.shard])
    steps = [(int(path.name.removeprefix("step_")), path) for path in update.checkpoints.glob("*/step_*[0-9]")]
    if not state.missing or not steps:
        return state
    done, newest = max(steps)
    return StageState(1, state.missing, {}, (UnfinishedShard(0, done, done, _last_change([newest])),))


def _unfinished_shard(path: ShardPath) -> UnfinishedShard | None:
    if not path.parts.is_dir():
        return None
    files = [file for file in path.parts.iterdir() if file.name.startswith("block-")]
    changed = _last_change([path.parts, *files])
    done = {file.stem for file in files if file.suffix == ".parquet"}
    return UnfinishedShard(path.shard, len(done), len(done | {file.stem for file in files}), changed)


def _last_change(files: Sequence[Path]) -> datetime:
    return datetime.fromtimestamp(int(max(file.stat().st_mtime for file in files)), UTC)
