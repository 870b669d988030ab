"""The evaluations of a run: how far each is, and the accuracy that its summary tells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igrpo_cli.errors import IgrpoError
from igrpo_cli.inspection.shard_states import StageState, stage_state
from igrpo_cli.store.checksummed_json import read_summary
from igrpo_cli.store.layout import SUMMARY, RunDirectory, read_eval_name, shards_in


@dataclass(frozen=True, slots=True)
class EvaluationState:
    """One policy, or another model, on one benchmark."""

    bench: str
    model: int | str
    """A policy of the run by its number, another model by the name of its directory."""
    conditioned: str | None
    """The `eval.selection` of a conditioned evaluation; None for bare problems."""
    shards: StageState
    accuracy: float | None
    """avg@k of its summary; None where there is none yet."""
    ci95: tuple[float, float] | None


def read_evaluations(run: RunDirectory, num_shards: int) -> list[EvaluationState]:
    """All evaluations in the run's directory by benchmark, bare before conditioned, policies in order."""
    found = [
        _evaluation(run, directory, num_shards)
        for directory in run.root.glob("eval/*/*")
        if directory.is_dir() and not directory.name.startswith(".")
    ]
    return sorted(found, key=lambda each: (each.bench, each.conditioned or "", isinstance(each.model, str), each.model))


def _evaluation(run: RunDirectory, directory: Path, num_shards: int) -> EvaluationState:
    model, conditioned = read_eval_name(directory.name)
    summary = _summary(directory)
    accuracy, ci95 = summary.get("avg_at_k"), summary.get("ci95")
    return EvaluationState(
        directory.parent.name,
        model,
        conditioned,
        _shards(run, directory, num_shards, is_finished=bool(summary)),
        float(accuracy) if isinstance(accuracy, int | float) else None,
        (float(ci95[0]), float(ci95[1])) if isinstance(ci95, list) and len(ci95) == 2 else None,
    )


def _summary(directory: Path) -> dict[str, Any]:
    try:
        return read_summary(directory / SUMMARY)
    except IgrpoError:
        return {}


def _shards(run: RunDirectory, directory: Path, num_shards: int, *, is_finished: bool) -> StageState:
    found = shards_in(directory)
    # An evaluation that was made elsewhere may be cut into another number of shards.
    total = max((of for _, of in found), default=num_shards)
    if not is_finished:
        return stage_state([run.eval_shard_in(directory, shard, total) for shard in range(total)])
    missing = (shard for shard in range(total) if "json" not in found.get((shard, total), ()))
    return StageState(total, tuple(missing), {}, ())
