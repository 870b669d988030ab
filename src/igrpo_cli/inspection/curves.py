"""The figures of a run, iteration by iteration, with 95 % intervals: what a report draws.

They are named as the metrics of an update are, and computed anew from the rollouts: the groups that an interval
needs are there, and an iteration without an update has figures too. Of the gradient step only its metrics are left.

Shape suffix: _R rollouts, _P groups (problems).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from igrpo_cli.algo.estimates import clustered_interval, ratio_interval
from igrpo_cli.errors import DamagedFileError, MissingInputError
from igrpo_cli.inspection.metrics import IterationMetrics, read_metrics
from igrpo_cli.store.layout import RunDirectory, shards_in
from igrpo_cli.store.manifest import Manifest, read_manifest
from igrpo_cli.store.views import (
    NO_DRAFT,
    Columns,
    RolloutColumns,
    SelectionColumns,
    concatenated,
    read_rollout_columns,
    read_selection_columns,
)


@dataclass(frozen=True, slots=True)
class Point:
    """One figure of one iteration."""

    value: float
    low: float | None = None
    """Ends of its 95 % interval, problems being the unit of chance; None where there is none."""
    high: float | None = None


@dataclass(frozen=True, slots=True)
class StageCost:
    """What a stage of an iteration took, over all of its shards."""

    groups: int = 0
    rollouts: int = 0
    tokens: int = 0
    """Sampled, or trained on by the update."""
    seconds: float = 0.0
    """Of the processes that made the shards, added up: shards made side by side count each."""
    gpu_seconds: float = 0.0

    def __add__(self, other: StageCost) -> StageCost:
        return StageCost(*(getattr(self, name) + getattr(other, name) for name in StageCost.__slots__))


@dataclass(frozen=True)
class IterationFigures:
    """What is known of one iteration."""

    iteration: int
    points: dict[str, Point] = field(default_factory=dict)
    """By metric: `draft/reward_mean`, `refine/fix_rate`, `grad_norm`, …"""
    costs: dict[str, StageCost] = field(default_factory=dict)
    """By stage."""
    unreadable: list[str] = field(default_factory=list)
    """What is damaged or missing, a sentence each."""


def read_curves(run: RunDirectory) -> Iterator[IterationFigures]:
    """All iterations in order, one in memory at a time. What cannot be read is left out and said so."""
    for found in (read_figures(run, iteration) for iteration in run.iterations()):
        if found.costs or found.unreadable:
            yield found


def read_figures(run: RunDirectory, iteration: int) -> IterationFigures:
    """The figures of one iteration, as far as it has come."""
    found = IterationFigures(iteration)
    for read in (_read_update, _read_rollouts):
        read(run, found)
    found.points.update({f"{stage}/seconds": Point(cost.seconds) for stage, cost in found.costs.items()})
    return found


def stage_points(rollouts: RolloutColumns, stage: str) -> dict[str, Point]:
    """Figures of one stage's rollouts, named `<stage>/…`; none of an empty stage."""
    if not len(rollouts.group_id):
        return {}
    groups, group_R = np.unique(rollouts.group_id, return_inverse=True)
    least_P, most_P = np.full(len(groups), np.inf), np.full(len(groups), -np.inf)
    np.minimum.at(least_P, group_R, rollouts.reward)
    np.maximum.at(most_P, group_R, rollouts.reward)
    ones_R = np.ones(len(group_R))
    shares = {f"verdict_{verdict}": rollouts.is_verdict(verdict) for verdict in ("correct", "no_answer", "ungraded")}
    points = {
        "reward_mean": _ratio(group_R, rollouts.reward, ones_R),
        "groups_with_gradient": _share(np.arange(len(groups)), least_P != most_P),
        "completion_length_mean": _ratio(group_R, rollouts.num_tokens, ones_R),
        "sampled_entropy": _ratio(group_R, -rollouts.logprob_sum, rollouts.num_tokens),
        "truncated": _share(group_R, rollouts.is_truncated),
        **{name: _share(group_R, is_R) for name, is_R in shares.items()},
    }
    return {f"{stage}/{name}": point for name, point in points.items()}


def refinement_points(
    drafts: RolloutColumns, selections: SelectionColumns, refinements: RolloutColumns
) -> dict[str, Point]:
    """Fix, break and copy rate as `algo.diagnostics.refinement_metrics` defines them; a rate over nothing is left out.

    Refinements whose draft could not be read count nowhere.
    """
    row_of = {key: row for row, key in enumerate(zip(drafts.group_id, drafts.sample_id, strict=True))}
    shown_from = dict(zip(selections.group_id, selections.draft_group_id, strict=True))
    keys = zip((shown_from.get(each) for each in refinements.group_id), refinements.draft_sample_id, strict=True)
    draft_R = np.array([row_of.get(key, NO_DRAFT) for key in keys], np.int64)
    known_R = np.flatnonzero(draft_R != NO_DRAFT)
    draft_R, group_R = draft_R[known_R], refinements.group_id[known_R]
    was_right_R = drafts.is_verdict("correct")[draft_R]
    is_right_R = refinements.is_verdict("correct")[known_R]
    pairs = zip(draft_R, known_R, strict=True)
    copied_R = np.array([drafts.completion[d].strip() == refinements.completion[r].strip() for d, r in pairs], np.bool_)
    rates = {
        "refine/fix_rate": (group_R[~was_right_R], is_right_R[~was_right_R]),
        "refine/break_rate": (group_R[was_right_R], ~is_right_R[was_right_R]),
        "refine/copy_rate": (group_R, copied_R),
    }
    return {name: _share(*rate) for name, rate in rates.items() if len(rate[0])}


def _read_update(run: RunDirectory, found: IterationFigures) -> None:
    path = run.update(found.iteration)
    if not path.manifest.exists():
        return
    try:
        manifest = read_manifest(path.shard)
        metrics = read_metrics(run, found.iteration)
    except (DamagedFileError, MissingInputError) as error:
        found.unreadable.append(error.message)
        return
    _add_cost(found, "update", manifest)
    inputs = [run.root / file.path for file in manifest.identity.inputs]
    # A manifest without its data is found where the data is read.
    gone = [path for path in inputs if not path.exists() and not path.with_suffix(".json").exists()]
    found.unreadable.extend(f"{path} is gone, though the update was made from it" for path in gone)
    found.points.update(_recorded(metrics) if metrics else {})


def _recorded(metrics: IterationMetrics) -> dict[str, Point]:
    """What the update recorded: of the iteration, and as the mean over its optimiser steps. Neither has an interval."""
    by_name: dict[str, list[float]] = {}
    for values in metrics.steps.values():
        for name, value in values.items():
            by_name.setdefault(name, []).append(value)
    means = {name: float(np.mean(values)) for name, values in by_name.items()}
    return {name: Point(value) for name, value in {**metrics.whole, **means}.items()}


def _read_rollouts(run: RunDirectory, found: IterationFigures) -> None:
    drafts = _read_stage(run, found, "draft", read_rollout_columns)
    selections = _read_stage(run, found, "select", read_selection_columns)
    refinements = _read_stage(run, found, "refine", read_rollout_columns)
    for stage, rollouts in (("draft", drafts), ("refine", refinements)):
        found.points.update(stage_points(rollouts, stage) if rollouts else {})
    if selections:
        tied = selections.num_tied > 1
        found.points["select/ties"] = _share(np.arange(len(tied)), tied)
    if drafts and selections and refinements:
        found.points.update(refinement_points(drafts, selections, refinements))


def _read_stage(
    run: RunDirectory, found: IterationFigures, stage: str, read: Callable[[Path], Columns]
) -> Columns | None:
    """The finished shards of a stage; None where there are none that can be read."""
    shards = shards_in(run.stage(found.iteration, stage))
    parts = []
    for (shard, num_shards), suffixes in shards.items():
        path = run.shard(found.iteration, stage, shard, num_shards)
        if "json" not in suffixes:
            continue
        try:
            _add_cost(found, stage, read_manifest(path))
            parts.append(read(path.data))
        except (DamagedFileError, MissingInputError) as error:
            found.unreadable.append(error.message)
    finished = sum("json" in suffixes for suffixes in shards.values())
    total = max((num_shards for _, num_shards in shards), default=0)
    if finished < total:
        found.unreadable.append(f"{stage} of iteration {found.iteration}: {finished} of {total} shards are finished")
    return concatenated(parts) if parts else None


def _add_cost(found: IterationFigures, stage: str, manifest: Manifest) -> None:
    rollouts = manifest.data.rows if manifest.sampling is not None else 0
    cost = StageCost(manifest.data.groups, rollouts, manifest.tokens, manifest.seconds, manifest.gpu_seconds)
    found.costs[stage] = found.costs.get(stage, StageCost()) + cost


def _share(group_R: NDArray[np.int64], is_R: NDArray[np.bool_]) -> Point:
    """The share of rollouts that are so. Its interval weighs groups alike: those of a stage are of one size."""
    group_R = np.unique(group_R, return_inverse=True)[1]
    means_P = np.bincount(group_R, is_R) / np.bincount(group_R)
    return Point(float(is_R.mean()), *(clustered_interval(means_P) or (None, None)))


def _ratio(group_R: NDArray[np.int64], totals_R: ArrayLike, counts_R: ArrayLike) -> Point:
    totals_P, counts_P = np.bincount(group_R, totals_R), np.bincount(group_R, counts_R)
    value = float(totals_P.sum() / max(counts_P.sum(), 1))
    return Point(value, *(ratio_interval(totals_P, counts_P) or (None, None)))
