"""Find the shards of a stage or an evaluation that are complete, in progress, damaged or missing.

Only listings and manifests are read. A task that completes a shard removes the blocks of that shard. A
FileNotFoundError then means: read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from igrpo_cli.errors import IgrpoError
from igrpo_cli.store.checksummed_json import read_summary
from igrpo_cli.store.completion import damage_of
from igrpo_cli.store.layout import SUMMARY, RunDirectory, ShardPath, UpdatePath, read_eval_name, shards_in


@dataclass(frozen=True, slots=True)
class PartialShard:
    """A shard of which some blocks are kept.

    A directory does not show whether the task that made them is still alive. `last_change` is the only clue.
    """

    shard: int
    done: int
    """Blocks that are kept. For an update: optimiser steps."""
    claimed: int
    """Blocks that some task has begun, those that are kept included."""
    last_change: datetime
    """UTC, whole seconds."""
    seconds: float | None = None
    """Time from the first claim to the last change. None for an update."""

    def seconds_left(self, total: int) -> float | None:
        """Return the time that the other blocks take at the pace so far; None before one is kept."""
        return self.seconds * (total - self.done) / self.done if self.done and self.seconds is not None else None


@dataclass(frozen=True, slots=True)
class StageState:
    """The shards of one stage or evaluation."""

    total: int
    missing: tuple[int, ...]
    """Shards without a manifest. `igrpo status --missing` prints these."""
    damaged: dict[int, str]
    """Shards with a manifest that their command would make again, each with the reason."""
    in_progress: tuple[PartialShard, ...]
    """The missing shards of which some blocks are kept."""

    @property
    def done(self) -> int:
        """The number of shards that are complete and not damaged."""
        return self.total - len(self.missing) - len(self.damaged)


@dataclass(frozen=True, slots=True)
class EvaluationState:
    """One policy of the run, or another model, on one benchmark."""

    bench: str
    model: int | str
    """The number of a policy, or the directory name of another model."""
    selection: str | None
    """`eval.selection` of an evaluation with draft. None for an evaluation without draft."""
    shards: StageState
    accuracy: float | None
    """avg@k of its summary. None while there is no summary."""
    ci95: tuple[float, float] | None


def stage_state(paths: Sequence[ShardPath]) -> StageState:
    """Return the state of these shards of one stage."""
    missing = missing_shards(paths)
    found = {path.shard: damage_of(path) for path in paths if path.shard not in missing}
    return StageState(
        total=len(paths),
        missing=tuple(missing),
        damaged={shard: damage for shard, damage in found.items() if damage is not None},
        in_progress=tuple(each for path in missing.values() if (each := _partial_shard(path))),
    )


def missing_shards(paths: Sequence[ShardPath]) -> dict[int, ShardPath]:
    """Return the shards without a manifest, by number. The content of the others is checked by `igrpo verify`."""
    return {path.shard: path for path in paths if not path.manifest.exists()}


def update_state(update: UpdatePath) -> StageState:
    """Return the state of an update. It is one shard, and its blocks are the optimiser steps that are kept."""
    if update.policy.is_dir():  # Published. The next command moves the policy to the place that the manifest names.
        return StageState(1, (), {}, ())
    state = stage_state([update.shard])
    steps = [(int(path.name.removeprefix("step_")), path) for path in update.checkpoints.glob("*/step_*[0-9]")]
    if not state.missing or not steps:
        return state
    done, newest = max(steps)
    return StageState(1, state.missing, {}, (PartialShard(0, done, done, _last_change([newest])),))


def read_evaluations(run: RunDirectory, num_shards: int) -> list[EvaluationState]:
    """Return all evaluations of a run: by benchmark, without draft before with draft, policies in order."""
    found = [
        _evaluation(run, directory, num_shards)
        for directory in run.root.glob("eval/*/*")
        if directory.is_dir() and not directory.name.startswith(".")
    ]
    return sorted(found, key=lambda each: (each.bench, each.selection or "", isinstance(each.model, str), each.model))


def _partial_shard(path: ShardPath) -> PartialShard | None:
    if not path.parts.is_dir():
        return None
    files = [file for file in path.parts.iterdir() if file.name.startswith("block-")]
    changed = _last_change([path.parts, *files])
    done = {file.stem for file in files if file.suffix == ".parquet"}
    begun = min((file.stat().st_mtime for file in files), default=changed.timestamp())
    seconds = max(changed.timestamp() - begun, 0.0)
    return PartialShard(path.shard, len(done), len(done | {file.stem for file in files}), changed, seconds)


def _last_change(files: Sequence[Path]) -> datetime:
    return datetime.fromtimestamp(int(max(file.stat().st_mtime for file in files)), UTC)


def _evaluation(run: RunDirectory, directory: Path, num_shards: int) -> EvaluationState:
    model, selection = read_eval_name(directory.name)
    summary = _summary(directory)
    accuracy, ci95 = summary.get("avg_at_k"), summary.get("ci95")
    return EvaluationState(
        directory.parent.name,
        model,
        selection,
        _evaluation_shards(run, directory, num_shards, is_complete=bool(summary)),
        float(accuracy) if isinstance(accuracy, int | float) else None,
        (float(ci95[0]), float(ci95[1])) if isinstance(ci95, list) and len(ci95) == 2 else None,
    )


def _summary(directory: Path) -> dict[str, Any]:
    try:
        return read_summary(directory / SUMMARY)
    except IgrpoError:
        return {}


def _evaluation_shards(run: RunDirectory, directory: Path, num_shards: int, *, is_complete: bool) -> StageState:
    found = shards_in(directory)
    # An evaluation that was made elsewhere may have another number of shards.
    total = max((of for _, of in found), default=num_shards)
    if not is_complete:
        return stage_state([run.eval_shard_in(directory, shard, total) for shard in range(total)])
    missing = (shard for shard in range(total) if "json" not in found.get((shard, total), ()))
    return StageState(total, tuple(missing), {}, ())
