"""The figures of a run by iteration, with 95 % intervals, and the metrics that its updates recorded.

Figures have the names of metrics. They are computed from the rollouts, because an interval needs the groups, and
because an iteration without an update has figures too. Figures of the gradient step are read from the metrics.

Shape suffixes: _R rollouts, _P groups (problems).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from igrpo_cli.algo.estimates import clustered_interval, ratio_interval
from igrpo_cli.errors import DamagedFileError, MissingInputError
from igrpo_cli.records import Metric
from igrpo_cli.store.layout import RunDirectory, shards_in
from igrpo_cli.store.manifest import Manifest, read_manifest
from igrpo_cli.store.tables import read_records
from igrpo_cli.store.views import (
    NO_DRAFT,
    Columns,
    RolloutColumns,
    SelectionColumns,
    concatenated,
    read_rollout_columns,
    read_selection_columns,
)

WHOLE_ITERATION = -1
"""The step of a metric that describes the iteration and no single optimiser step."""


@dataclass(frozen=True)
class IterationMetrics:
    """The metrics that one complete update recorded."""

    iteration: int
    whole: dict[str, float] = field(default_factory=dict)
    """Metrics of the whole iteration by name: `draft/reward_mean`, `refine/fix_rate`, …"""
    steps: dict[int, dict[str, float]] = field(default_factory=dict)
    """Metrics of each optimiser step by name: `loss`, `grad_norm`, … Steps are counted over the whole run."""


@dataclass(frozen=True, slots=True)
class Point:
    """One figure of one iteration, with its 95 % interval clustered by problem."""

    value: float
    low: float | None = None
    """Lower end of the interval. None when there is no interval."""
    high: float | None = None
    """Upper end of the interval."""


@dataclass(frozen=True, slots=True)
class StageCost:
    """What one stage of an iteration took, summed over its shards."""

    groups: int = 0
    rollouts: int = 0
    tokens: int = 0
    """Tokens that were sampled, or trained on by the update."""
    seconds: float = 0.0
    """Seconds of work, summed over shards. Shards that were made at the same time all count."""
    gpu_seconds: float = 0.0

    def __add__(self, other: StageCost) -> StageCost:
        return StageCost(*(getattr(self, name) + getattr(other, name) for name in StageCost.__slots__))


@dataclass
class IterationFigures:
    """The figures and costs of one iteration."""

    iteration: int
    points: dict[str, Point] = field(default_factory=dict)
    """Figures by metric name: `draft/reward_mean`, `refine/fix_rate`, `grad_norm`, …"""
    costs: dict[str, StageCost] = field(default_factory=dict)
    """Costs by stage."""
    unreadable: list[str] = field(default_factory=list)
    """A sentence for each file that is damaged or missing."""
    has_verifications: bool = False
    """True if the refinements are rewarded for the verdict on their draft. Their figures are `verify/…`."""


def read_curves(run: RunDirectory) -> Iterator[IterationFigures]:
    """Yield the figures of all iterations in order. Files that cannot be read are listed in `unreadable`."""
    for found in (read_figures(run, iteration) for iteration in run.iterations()):
        if found.costs or found.unreadable:
            yield found


def read_figures(run: RunDirectory, iteration: int) -> IterationFigures:
    """Return the figures of one iteration, which may be incomplete."""
    found = IterationFigures(iteration)
    for read in (_read_update, _read_rollouts):
        read(run, found)
    found.points.update({f"{stage}/seconds": Point(cost.seconds) for stage, cost in found.costs.items()})
    return found


def read_metrics(run: RunDirectory, iteration: int) -> IterationMetrics | None:
    """Return the metrics of one iteration; None when its update is not complete. Raises DamagedFileError."""
    update = run.update(iteration)
    if not update.manifest.exists():
        return None
    found = IterationMetrics(iteration)
    try:
        metrics = read_records(update.metrics, Metric)
    except MissingInputError:
        return None
    for metric in metrics:
        values = found.whole if metric.step == WHOLE_ITERATION else found.steps.setdefault(metric.step, {})
        values[metric.name] = metric.value
    return found


def metrics_by_iteration(run: RunDirectory) -> list[IterationMetrics]:
    """Return the metrics of all iterations with a complete update, in order. Raises DamagedFileError."""
    found = (read_metrics(run, iteration) for iteration in run.iterations())
    return [metrics for metrics in found if metrics is not None]


def stage_points(rollouts: RolloutColumns, stage: str) -> dict[str, Point]:
    """Return the figures of the rollouts of one stage, named `<stage>/…`; {} when there are no rollouts.

    They are those of `algo.diagnostics.rollout_metrics`: completions that could not be graded count in no reward.
    """
    if not len(rollouts.group_id):
        return {}
    group_R, ungraded_R = rollouts.group_id, rollouts.is_verdict("ungraded")
    points = {
        "completion_length_mean": _ratio(group_R, rollouts.num_tokens, np.ones(len(group_R))),
        "sampled_entropy": _ratio(group_R, -rollouts.logprob_sum, rollouts.num_tokens),
        "truncated": _share(group_R, rollouts.is_truncated),
        "verdict_ungraded": _share(group_R, ungraded_R),
    }
    graded = np.flatnonzero(~ungraded_R)
    if len(graded):
        groups, group_R = np.unique(group_R[graded], return_inverse=True)
        least_P, most_P = np.full(len(groups), np.inf), np.full(len(groups), -np.inf)
        np.minimum.at(least_P, group_R, rollouts.reward[graded])
        np.maximum.at(most_P, group_R, rollouts.reward[graded])
        points |= {
            "reward_mean": _ratio(group_R, rollouts.reward[graded], np.ones(len(graded))),
            "groups_with_gradient": _share(np.arange(len(groups)), least_P != most_P),
            "verdict_correct": _share(group_R, rollouts.is_verdict("correct")[graded]),
            "verdict_no_answer": _share(group_R, rollouts.is_verdict("no_answer")[graded]),
        }
    return {f"{stage}/{name}": point for name, point in points.items()}


def refinement_points(
    drafts: RolloutColumns, selections: SelectionColumns, refinements: RolloutColumns
) -> dict[str, Point]:
    """Return fix, break and copy rate as `algo.diagnostics.refinement_metrics` defines them.

    Refinements whose draft could not be read are not counted. A rate over no refinement is left out.
    """
    row_of = {key: row for row, key in enumerate(zip(drafts.group_id, drafts.sample_id, strict=True))}
    shown_from = dict(zip(selections.group_id, selections.draft_group_id, strict=True))
    keys = zip((shown_from.get(each) for each in refinements.group_id), refinements.draft_sample_id, strict=True)
    draft_R = np.array([row_of.get(key, NO_DRAFT) for key in keys], np.int64)
    known_R = np.flatnonzero(draft_R != NO_DRAFT)
    draft_R, group_R = draft_R[known_R], refinements.group_id[known_R]
    is_graded_R = ~(drafts.is_verdict("ungraded")[draft_R] | refinements.is_verdict("ungraded")[known_R])
    was_right_R = drafts.is_verdict("correct")[draft_R]
    is_right_R = refinements.is_verdict("correct")[known_R]
    pairs = zip(draft_R, known_R, strict=True)
    copied_R = np.array([drafts.completion[d].strip() == refinements.completion[r].strip() for d, r in pairs], np.bool_)
    from_wrong_R, from_right_R = is_graded_R & ~was_right_R, is_graded_R & was_right_R
    rates = {
        "refine/fix_rate": (group_R[from_wrong_R], is_right_R[from_wrong_R]),
        "refine/break_rate": (group_R[from_right_R], ~is_right_R[from_right_R]),
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
    # A manifest without data is reported when the data is read.
    gone = [path for path in inputs if not path.exists() and not path.with_suffix(".json").exists()]
    found.unreadable.extend(f"{path} is missing, but the update was made from it" for path in gone)
    found.points.update(_recorded(metrics) if metrics else {})


def _recorded(metrics: IterationMetrics) -> dict[str, Point]:
    """Return the metrics of the iteration, and those of its optimiser steps averaged. They have no intervals."""
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
    prefix = "verify" if found.has_verifications else "refine"
    for stage, rollouts in (("draft", drafts), (prefix, refinements)):
        found.points.update(stage_points(rollouts, stage) if rollouts else {})
    if selections:
        tied = selections.num_tied > 1
        found.points["select/ties"] = _share(np.arange(len(tied)), tied)
    if drafts and selections and refinements and not found.has_verifications:
        found.points.update(refinement_points(drafts, selections, refinements))


def _read_stage(
    run: RunDirectory, found: IterationFigures, stage: str, read: Callable[[Path], Columns]
) -> Columns | None:
    """Return the rows of the complete shards of a stage; None when no shard can be read."""
    shards = shards_in(run.stage(found.iteration, stage))
    parts = []
    for (shard, num_shards), suffixes in shards.items():
        path = run.shard(found.iteration, stage, shard, num_shards)
        if "json" not in suffixes:
            continue
        try:
            manifest = read_manifest(path)
            _add_cost(found, stage, manifest)
            found.has_verifications |= manifest.holds_verifications
            parts.append(read(path.data))
        except (DamagedFileError, MissingInputError) as error:
            found.unreadable.append(error.message)
    complete = sum("json" in suffixes for suffixes in shards.values())
    total = max((num_shards for _, num_shards in shards), default=0)
    if complete < total:
        found.unreadable.append(f"{stage} of iteration {found.iteration}: {complete} of {total} shards are complete")
    return concatenated(parts) if parts else None


def _add_cost(found: IterationFigures, stage: str, manifest: Manifest) -> None:
    rollouts = manifest.data.rows if manifest.sampling is not None else 0
    cost = StageCost(manifest.data.groups, rollouts, manifest.tokens, manifest.seconds, manifest.gpu_seconds)
    found.costs[stage] = found.costs.get(stage, StageCost()) + cost


def _share(group_R: NDArray[np.int64], is_R: NDArray[np.bool_]) -> Point:
    """Return the mean of `is_R` with an interval. Groups differ in size where completions could not be graded."""
    group_R = np.unique(group_R, return_inverse=True)[1]
    counts_P = np.bincount(group_R)
    if len(set(counts_P.tolist())) == 1:
        return Point(float(is_R.mean()), *(clustered_interval(np.bincount(group_R, is_R) / counts_P) or (None, None)))
    point = _ratio(group_R, is_R, np.ones(len(group_R)))
    if point.low is None or point.high is None:
        return point
    return Point(point.value, max(point.low, 0.0), min(point.high, 1.0))


def _ratio(group_R: NDArray[np.int64], totals_R: ArrayLike, counts_R: ArrayLike) -> Point:
    group_R = np.unique(group_R, return_inverse=True)[1]
    totals_P, counts_P = np.bincount(group_R, totals_R), np.bincount(group_R, counts_R)
    value = float(totals_P.sum() / max(counts_P.sum(), 1))
    return Point(value, *(ratio_interval(totals_P, counts_P) or (None, None)))
