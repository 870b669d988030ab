"""What there is to send: an entry for each finished update and each evaluation of a policy, read from their files.

The names of stages lead to their metrics: `draft/…`, `select/…`, `refine/…` and `update/…` are those of
`metrics.parquet`, `eval/<benchmark>/…` those of `summary.json`. Under `train/…` stands, once more, what TRL's
`GRPOTrainer` logs under that name, so that runs of both lie in one chart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igrpo_cli.inspection.curves import IterationMetrics, read_metrics
from igrpo_cli.store.checksummed_json import read_summary
from igrpo_cli.store.layout import RunDirectory, read_eval_name

ITERATION, STEP = "iteration", "train/global_step"
"""The two x axes: the iteration, which is also the number of the policy that was sampled, and the optimiser step."""

TRL_STEP_METRICS = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "entropy": "entropy",
    "kl": "kl",
    "clip_ratio/region_mean": "clip_fraction",
    "sampling/sampling_logp_difference/mean": "sampler_mismatch_mean",
    "sampling/sampling_logp_difference/max": "sampler_mismatch_max",
    "sampling/importance_sampling_ratio/mean": "importance_weight_mean",
}
"""TRL's name (after `train/`) of a metric of an optimiser step."""
TRL_ROLLOUT_METRICS = {
    "reward": "draft/reward_mean",
    "completions/mean_length": "draft/completion_length_mean",
    "completions/max_length": "draft/completion_length_max",
    "completions/clipped_ratio": "draft/truncated",
}
"""The same of what was sampled: drafts, because TRL samples bare problems too. At the first step that trains on it."""


@dataclass(frozen=True)
class Row:
    """Values by name, at one place of one x axis."""

    axis: str
    x: int
    values: dict[str, float]


@dataclass(frozen=True)
class Entry:
    """What one update or one evaluation came to."""

    key: str
    """Where it lies in the run: `iteration_0003/update`, `eval/aime24/policy_0040`."""
    finished: float
    """When, in seconds since 1970."""
    rows: list[Row]


def read_entries(run: RunDirectory, is_sent: Callable[[str], bool]) -> Iterator[Entry]:
    """Entries that were not sent: updates in order, then evaluations. Raises DamagedFileError.

    An evaluation of another model has no place on the axis of iterations, and is left out.
    """
    for iteration in run.iterations():
        update = run.update(iteration)
        key = _key(run, update.directory)
        metrics = None if is_sent(key) else read_metrics(run, iteration)
        if metrics is not None:
            yield Entry(key, update.manifest.stat().st_mtime, _update_rows(metrics))
    for summary in run.eval_summaries():
        key = _key(run, summary.parent)
        policy, conditioned = read_eval_name(summary.parent.name)
        if isinstance(policy, int) and not is_sent(key):
            values = _eval_values(f"eval/{summary.parents[1].name}", conditioned, read_summary(summary))
            yield Entry(key, summary.stat().st_mtime, [Row(ITERATION, policy, values)])


def _key(run: RunDirectory, directory: Path) -> str:
    return directory.relative_to(run.root).as_posix()


def _update_rows(metrics: IterationMetrics) -> list[Row]:
    rows = [Row(ITERATION, metrics.iteration, metrics.whole)]
    sampled = {
        f"train/{name}": metrics.whole[ours] for name, ours in TRL_ROLLOUT_METRICS.items() if ours in metrics.whole
    }
    if "draft/groups_with_gradient" in metrics.whole:
        sampled["train/frac_reward_zero_std"] = 1.0 - metrics.whole["draft/groups_with_gradient"]
    for step, values in sorted(metrics.steps.items()):
        ours = {f"update/{name}": value for name, value in values.items()}
        trl = {f"train/{name}": values[of_step] for name, of_step in TRL_STEP_METRICS.items() if of_step in values}
        rows.append(Row(STEP, step, {**ours, **trl, **sampled}))
        sampled = {}
    return rows


def _eval_values(prefix: str, conditioned: str | None, summary: dict[str, Any]) -> dict[str, float]:
    """The numbers of a summary, and its interval as two curves."""
    if conditioned is not None:
        prefix += "/conditioned" if conditioned == "each" else f"/conditioned_{conditioned}"
    numbers = {name: value for name, value in summary.items() if type(value) in (int, float)}
    for name, interval in summary.items():
        if name.endswith("ci95") and interval is not None:
            numbers[f"{name}_low"], numbers[f"{name}_high"] = interval
    return {f"{prefix}/{name}": float(value) for name, value in numbers.items()}
