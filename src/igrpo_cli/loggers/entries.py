"""The entries of a run for a tracker, one for each complete update and each evaluation, and which of them were sent.

Metrics of `metrics.parquet` have the prefixes `draft/`, `select/`, `refine/` and `update/`, those of `summary.json`
have `eval/<benchmark>/`. Metrics that TRL's `GRPOTrainer` logs too are repeated under its name, with the prefix
`train/`, so that runs of both appear in one chart.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igrpo_cli.inspection.curves import IterationMetrics, read_metrics
from igrpo_cli.store.checksummed_json import read_sent, read_summary, write_sent
from igrpo_cli.store.layout import RunDirectory, read_eval_name

ITERATION, STEP = "iteration", "train/global_step"
"""The two x-axes: the iteration, which is also the number of the sampled policy, and the optimiser step."""

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
"""Metrics of an optimiser step, by the name that TRL logs after `train/`."""
TRL_ROLLOUT_METRICS = {
    "reward": "draft/reward_mean",
    "completions/mean_length": "draft/completion_length_mean",
    "completions/max_length": "draft/completion_length_max",
    "completions/clipped_ratio": "draft/truncated",
}
"""Metrics of the rollouts by TRL's name. They describe drafts, because TRL samples without draft too, and are logged
at the first step that trains on the rollouts."""


@dataclass(frozen=True)
class Row:
    """Values by name at one point of an x-axis."""

    axis: str
    x: int
    values: dict[str, float]


@dataclass(frozen=True)
class Entry:
    """The metrics of one update or one evaluation."""

    key: str
    """Its directory in the run: `iteration_0003/update`, `eval/aime24/policy_0040`."""
    finished: float
    """Time of completion in seconds since 1970."""
    rows: list[Row]


def read_entries(run: RunDirectory, is_sent: Callable[[str], bool]) -> Iterator[Entry]:
    """Yield the entries that were not sent: updates in order, then evaluations. Raises DamagedFileError.

    Evaluations of other models are left out, because they have no position on the axis of iterations.
    """
    for iteration in run.iterations():
        update = run.update(iteration)
        key = _key(run, update.directory)
        metrics = None if is_sent(key) else read_metrics(run, iteration)
        if metrics is not None:
            yield Entry(key, update.manifest.stat().st_mtime, _update_rows(metrics))
    for summary in run.eval_summaries():
        key = _key(run, summary.parent)
        policy, selection = read_eval_name(summary.parent.name)
        if isinstance(policy, int) and not is_sent(key):
            values = _eval_values(f"eval/{summary.parents[1].name}", selection, read_summary(summary))
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


def _eval_values(prefix: str, selection: str | None, summary: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a summary. An interval becomes two curves."""
    if selection is not None:
        prefix += "/conditioned" if selection == "each" else f"/conditioned_{selection}"
    numbers = {name: value for name, value in summary.items() if type(value) in (int, float)}
    for name, interval in summary.items():
        if name.endswith("ci95") and interval is not None:
            numbers[f"{name}_low"], numbers[f"{name}_high"] = interval
    return {f"{prefix}/{name}": float(value) for name, value in numbers.items()}


class SentEntries:
    """The keys of the entries that a tracker has, and the id of the run there, in a file.

    Needed for trackers that cannot be queried.
    """

    def __init__(self, path: Path) -> None:
        """Read the file, or create it. Raises DamagedFileError, and IgrpoError when it cannot be written."""
        self._path = path
        if not path.exists():
            write_sent(path, secrets.token_hex(4), [])
        self.run_id, self._sent = read_sent(path)
        self._unsaved: list[str] = []

    def __contains__(self, key: str) -> bool:
        return key in self._sent or key in self._unsaved

    def add(self, key: str) -> None:
        """Note an entry that the tracker has received, but may still lose."""
        self._unsaved.append(key)

    def save(self) -> None:
        """Write the file: the tracker has stored all entries."""
        if self._unsaved:
            self._sent += self._unsaved
            self._unsaved = []
            write_sent(self._path, self.run_id, self._sent, replace=True)
