"""The metrics that the updates of a run recorded, by iteration and optimiser step."""

from __future__ import annotations

from dataclasses import dataclass, field

from igrpo_cli.errors import MissingInputError
from igrpo_cli.records import Metric
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.tables import read_records

WHOLE_ITERATION = -1
"""The step of a metric that is of the iteration and of no single step."""


@dataclass(frozen=True)
class IterationMetrics:
    """What one finished update recorded."""

    iteration: int
    whole: dict[str, float] = field(default_factory=dict)
    """Of the whole iteration, by name: `draft/reward_mean`, `refine/fix_rate`, …"""
    steps: dict[int, dict[str, float]] = field(default_factory=dict)
    """Of each optimiser step (counted over the whole run), by name: `loss`, `grad_norm`, …"""


def read_metrics(run: RunDirectory, iteration: int) -> IterationMetrics | None:
    """The metrics of one iteration; None where its update is not finished. Raises DamagedFileError."""
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
    """Of all iterations whose update is finished, in order. Raises DamagedFileError."""
    found = (read_metrics(run, iteration) for iteration in run.iterations())
    return [metrics for metrics in found if metrics is not None]
