"""The results of a study: what its runs have on disk, by arm, with intervals, and the arms against the baseline.

Accuracies have an entry per seed and problem. Their intervals count both (`algo.crossed`). Metrics of training have an
entry per seed, and their intervals are over seeds.

Shape suffixes: _S seeds, _P problems, _T evaluated policies, in order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from igrpo_cli.algo.crossed import crossed_difference, crossed_interval, first_crossing, holm, mean_weights, weights_at
from igrpo_cli.algo.estimates import clustered_interval, ratio_interval
from igrpo_cli.config.study import Cell, Study
from igrpo_cli.errors import ConflictError, DamagedFileError, MissingInputError
from igrpo_cli.inspection.curves import Point, read_metrics
from igrpo_cli.inspection.run_state import read_complete_iteration
from igrpo_cli.store.checksummed_json import read_summary, summary_hint
from igrpo_cli.store.completion import input_hash, open_input
from igrpo_cli.store.conflicts import require_same_settings
from igrpo_cli.store.layout import RunDirectory, ShardPath, bench_name
from igrpo_cli.store.lineage import require_current
from igrpo_cli.store.settings import require_unedited
from igrpo_cli.store.views import RolloutColumns, concatenated, read_rollout_columns

WITHOUT_DRAFT, WITH_DRAFT = "eval/without_draft", "eval/with_draft"
"""Names of the curves of the evaluations; those of training have the names of metrics."""
SHARES = ("groups_with_gradient", "rate", "verdict_correct")
"""Ends of the names of metrics that are shares."""
MIN_SEEDS_OF_P = 3
"""Seeds below which no p-value is given: one says nothing of how much seeds differ, and two next to nothing."""
TRAINING = (
    "draft/verdict_correct",
    "refine/verdict_correct",
    "draft/groups_with_gradient",
    "refine/groups_with_gradient",
    "verify/verdict_correct",
    "verify/groups_with_gradient",
    "refine/copy_rate",
    "refine/fix_rate",
    "refine/break_rate",
    "draft/sampled_entropy",
    "refine/sampled_entropy",
)
"""Metrics of training that are shown by iteration."""
HELD_OUT = (
    "eval/copy_rate",
    "eval/fix_rate",
    "eval/retry_rate",
    "eval/break_rate",
    "eval/entropy_without_draft",
    "eval/entropy_with_draft",
)
"""Metrics of the evaluations, by policy. Also arms that never train with a draft have them."""
SCORES = {
    "final": (WITHOUT_DRAFT, "last policy, without draft"),
    "final_with_draft": (WITH_DRAFT, "last policy, with draft"),
    "mean": (WITHOUT_DRAFT, "mean over training, without draft"),
    "equal_tokens": (WITHOUT_DRAFT, "at equal sampled tokens, without draft"),
}
"""The accuracies in which arms are compared: their curve, and their name in tables. `mean` is the area under the curve
over iterations, divided by its length. `equal_tokens` is the curve over sampled tokens at `StudyResults.budget`."""


@dataclass(frozen=True)
class CellResults:
    """What one run of the study has on disk."""

    cell: Cell
    correct: dict[str, dict[int, NDArray[np.float64]]]
    """{curve: {policy: share of correct samples by problem, NaN where none was graded}}, as far as the arm has it."""
    held_out: dict[str, dict[int, float]]
    """{one of `HELD_OUT`: {policy: value}}."""
    spent: dict[str, list[float]]
    """{tokens, seconds or gpu_seconds: what was spent before policy 0, 1, 2, …}. Tokens are those sampled."""
    metrics: Sequence[Mapping[str, float]]
    """The metrics of each complete iteration."""
    problems_sha256: str | None
    """Hash of the problems of the evaluations."""

    def is_complete(self, study: Study) -> bool:
        """Return True if all iterations are complete and all evaluations of the arm exist."""
        policies = study.evaluated(self.cell.config)
        return len(self.metrics) == policies[-1] and all([*found] == policies for found in self.correct.values())

    def score(self, name: str, budget: float) -> NDArray[np.float64]:
        """Return one of `SCORES` by problem."""
        by_policy = self.correct[SCORES[name][0]]
        policies, correct_TP = list(by_policy), np.array([*by_policy.values()])
        if name == "mean":
            weights_T = mean_weights(policies)
        elif name == "equal_tokens":
            weights_T = weights_at([self.spent["tokens"][policy] for policy in policies], budget)
        else:
            weights_T = weights_at(policies, policies[-1])
        used = weights_T > 0
        score_P: NDArray[np.float64] = weights_T[used] @ correct_TP[used]
        return score_P


@dataclass(frozen=True)
class Comparison:
    """One arm against the baseline, paired by seed and problem."""

    arm: str
    score: str
    seeds: int
    difference: Point
    p_value: float | None
    """None for fewer than `MIN_SEEDS_OF_P` seeds."""
    corrected: float | None = None
    """The p-value corrected for the number of arms of the study, with or without results (`algo.crossed.holm`)."""


@dataclass(frozen=True)
class ArmResults:
    """One arm over its seeds."""

    name: str
    cells: list[CellResults]
    complete: list[CellResults]
    """The cells with all updates and evaluations. Scores and comparisons use only these."""
    curves: dict[str, list[tuple[int, Point]]] = field(default_factory=dict)
    """Accuracy by policy, and metrics by iteration, with 95 % intervals."""
    spent: dict[str, list[float]] = field(default_factory=dict)
    """As `CellResults.spent`, the mean over the seeds that have come so far."""


@dataclass(frozen=True)
class StudyResults:
    """All arms of a study."""

    study: Study
    arms: list[ArmResults]
    """In the order of the file."""

    @cached_property
    def budget(self) -> float | None:
        """The sampled tokens at which arms are compared: those of the file, but at most what a complete run has."""
        totals = [cell.spent["tokens"][-1] for arm in self.arms for cell in arm.complete]
        return min([*totals, self.study.compare_at_tokens or math.inf]) if totals else None

    @cached_property
    def seconds(self) -> str:
        """Kind of seconds that the study counts: `gpu_seconds` where every run used a GPU, else `seconds`."""
        used = [cell.spent["gpu_seconds"][-1] for arm in self.arms for cell in arm.complete]
        return "gpu_seconds" if used and all(used) else "seconds"

    @cached_property
    def target(self) -> float | None:
        """The accuracy without draft whose cost is shown: that of the file, or the final one of the baseline."""
        if self.study.target_accuracy is not None:
            return self.study.target_accuracy
        score = self.score(self.study.reference, "final")
        return None if score is None else score.value

    def arm(self, name: str) -> ArmResults:
        """Return an arm by its name."""
        return next(arm for arm in self.arms if arm.name == name)

    def score(self, arm: str, name: str) -> Point | None:
        """Return one of `SCORES` of an arm over its complete seeds; None without any, or without such evaluations."""
        scores_SP = self._scores(self.arm(arm).complete, name)
        return None if scores_SP is None else _accuracy(scores_SP)

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """All arms against the baseline in each of `SCORES`, as far as they have seeds in common."""
        found = []
        for name in SCORES:
            of_score = [self._compare(arm, name) for arm in self.arms if arm.name != self.study.reference]
            known = [each for each in of_score if each is not None]
            p_values = [each.p_value for each in known if each.p_value is not None]
            # Arms without a result yet are of the family, too. With p = 1 they come last.
            corrected = iter(holm(p_values + [1.0] * (len(self.arms) - 1 - len(p_values))))
            found += [replace(each, corrected=None if each.p_value is None else next(corrected)) for each in known]
        return found

    def cost_of_target(self, arm: str) -> dict[str, float | None]:
        """Return the tokens and seconds after which the mean curve of an arm reaches `target`; None if it never does.

        `seeds` is the number of its seeds that reach it at all.
        """
        results, target = self.arm(arm), self.target
        policies = [*results.complete[0].correct[WITHOUT_DRAFT]] if results.complete else []
        # Of each policy the problems that all seeds have, as in the curves and in `target`.
        known = {each: _of_all_seeds(results.complete, WITHOUT_DRAFT, each) for each in policies}
        policies = [each for each in policies if known[each].size]
        if target is None or not policies:
            return {"tokens": None, self.seconds: None, "seeds": None}
        values_ST = np.array([known[each].mean(axis=1) for each in policies]).T
        cost: dict[str, float | None] = {}
        for axis in ("tokens", self.seconds):
            spent_T = np.mean([[cell.spent[axis][each] for each in policies] for cell in results.complete], axis=0)
            cost[axis] = first_crossing(spent_T, values_ST.mean(axis=0), target)
        reached = sum(first_crossing(policies, values_T, target) is not None for values_T in values_ST)
        return {**cost, "seeds": reached}

    def _compare(self, arm: ArmResults, name: str) -> Comparison | None:
        baseline = {each.cell.seed: each for each in self.arm(self.study.reference).complete}
        pairs = [(baseline[each.cell.seed], each) for each in arm.complete if each.cell.seed in baseline]
        both = self._scores([cell for pair in pairs for cell in pair], name)
        if both is None:
            return None
        paired = crossed_difference(both[::2], both[1::2])
        difference = Point(paired.difference, *(paired.ci95 or (None, None)))
        p_value = paired.p_value if len(pairs) >= MIN_SEEDS_OF_P else None
        return Comparison(arm.name, name, len(pairs), difference, p_value)

    def _scores(self, cells: Sequence[CellResults], name: str) -> NDArray[np.float64] | None:
        """Return one of `SCORES` as [S, P], without the problems that some seed has no graded sample of."""
        if not cells or self.budget is None or any(SCORES[name][0] not in cell.correct for cell in cells):
            return None
        scores_SP = np.array([cell.score(name, self.budget) for cell in cells])
        scores_SP = scores_SP[:, np.isfinite(scores_SP).all(axis=0)]
        return scores_SP if scores_SP.size else None


def read_study_results(root: Path, study: Study, cells: Sequence[Cell]) -> StudyResults:
    """Read what the runs below `root` have so far. Raises DamagedFileError, and ConflictError for other problems."""
    found = [results for cell in cells if (results := _read_cell(root, study, cell)) is not None]
    _require_same_problems(root, found)
    arms = []
    for name in study.arms:
        of_arm = [each for each in found if each.cell.arm == name]
        complete = [each for each in of_arm if each.is_complete(study)]
        arms.append(ArmResults(name, of_arm, complete, dict(_curves(of_arm)), _mean_spent(of_arm)))
    return StudyResults(study, arms)


def _read_cell(root: Path, study: Study, cell: Cell) -> CellResults | None:
    """Return what a run has so far; None if it has no evaluation and no complete iteration.

    Raises MissingInputError, DamagedFileError and ConflictError for files that are not as they were written.
    """
    run, bench, policies = RunDirectory(root / cell.path), bench_name(study.eval_bench), study.evaluated(cell.config)
    evaluations = dict(zip((WITHOUT_DRAFT, WITH_DRAFT), cell.evaluations, strict=False))
    correct: dict[str, dict[int, NDArray[np.float64]]] = {curve: {} for curve in evaluations}
    held_out: dict[str, dict[int, float]] = {name: {} for name in HELD_OUT}
    for curve, selection in evaluations.items():
        for policy in policies:
            summary = run.eval_summary(bench, policy, conditioned=selection)
            if not summary.exists():
                continue
            shards = range(cell.config.run.num_shards)
            paths = [run.eval_shard(bench, policy, each, len(shards), conditioned=selection) for each in shards]
            rollouts, figures = _read_evaluation(run, paths, summary)
            correct[curve][policy] = _correct_by_problem(rollouts)
            entropy = -float(rollouts.logprob_sum.sum()) / max(int(rollouts.num_tokens.sum()), 1)
            held_out[curve.replace("/", "/entropy_")][policy] = entropy
            if selection is not None:
                rates = {name: figures.get(name.partition("/")[2]) for name in HELD_OUT if name.endswith("rate")}
                for name in (name for name, rate in rates.items() if rate is not None):
                    held_out[name][policy] = figures[name.partition("/")[2]]
    newest = max((policy for found in correct.values() for policy in found), default=0)
    spent, metrics = _read_training(run, cell, newest)
    if not metrics and not any(correct.values()):
        return None
    if not run.run_toml.exists():
        raise MissingInputError(f"{run.run_toml} does not exist, though the run has results")
    require_unedited(run.run_toml)
    open_input(run.problems())
    sha256 = open_input(run.eval_problems(bench)).data.sha256 if any(correct.values()) else None
    return CellResults(cell, correct, held_out, spent, metrics, sha256)


def _read_evaluation(
    run: RunDirectory, paths: Sequence[ShardPath], summary: Path
) -> tuple[RolloutColumns, dict[str, Any]]:
    """Return the rollouts of an evaluation and its summary, after checking that they belong together."""
    manifests = {path: open_input(path) for path in paths}
    require_same_settings(manifests)
    require_current(run, [input_hash(path, manifest) for path, manifest in manifests.items()])
    figures = read_summary(summary)
    if figures.get("shards") != [manifest.data.sha256 for manifest in manifests.values()]:
        raise DamagedFileError(f"{summary} is of other shards than those next to it", hint=summary_hint(summary))
    return concatenated([read_rollout_columns(path.data) for path in paths]), figures


def _read_training(run: RunDirectory, cell: Cell, newest: int) -> tuple[dict[str, list[float]], list[dict[str, float]]]:
    """Return what was spent before each policy, and the metrics of each complete iteration, at least up to `newest`.

    Raises MissingInputError and DamagedFileError, naming the command that makes it again, for an update that later work
    follows from.
    """
    costs, metrics = [], []
    updated = [each for each in run.iterations() if run.update(each).manifest.exists()]
    for iteration in range(max([newest - 1, *updated]) + 1):
        update = run.update(iteration)
        gone = next((file for file in (update.manifest, update.metrics) if not file.exists()), None)
        if gone is not None:
            message = f"{gone} does not exist, though the run has been trained further"
            raise MissingInputError(message, hint=_remake(run, iteration, update.shard.command))
        found, _ = read_complete_iteration(run, iteration, cell.config.stages())
        if found.unreadable:
            hint = _remake(run, iteration, update.shard.overwrite_command)
            raise DamagedFileError(found.unreadable[0], hint=hint)
        recorded = read_metrics(run, iteration)
        assert recorded is not None
        metrics.append(recorded.whole)
        costs.append(found.stages)
    # An update trains on tokens that are already counted.
    sampled = [{stage: spent for stage, spent in stages.items() if stage != "update"} for stages in costs]
    spent = {
        axis: [*accumulate((sum(getattr(each, axis) for each in stages.values()) for stages in counted), initial=0.0)]
        for axis, counted in (("tokens", sampled), ("seconds", costs), ("gpu_seconds", costs))
    }
    return spent, metrics


def _remake(run: RunDirectory, iteration: int, command: str) -> str:
    """Return `command` where the policy that the update began from is there, and else what to do instead."""
    if run.policy(iteration).is_dir():
        return command
    again = f"remove {run.root} and train the cell again"
    return f"restore the file, or {again}: policy {iteration}, which the update began from, was removed"


def _correct_by_problem(rollouts: RolloutColumns) -> NDArray[np.float64]:
    graded = ~rollouts.is_verdict("ungraded")
    size = int(rollouts.group_id.max()) + 1
    counts_P = np.bincount(rollouts.group_id[graded], minlength=size)
    right_P = np.bincount(rollouts.group_id[graded], rollouts.is_verdict("correct")[graded], minlength=size)
    return np.where(counts_P > 0, right_P / np.maximum(counts_P, 1), np.nan)


def _require_same_problems(root: Path, found: Sequence[CellResults]) -> None:
    """Raise ConflictError where two runs were evaluated on different problems, which cannot be compared."""
    first: tuple[CellResults, tuple[str | None, int]] | None = None
    for results in found:
        for correct_P in results.correct[WITHOUT_DRAFT].values():
            key = results.problems_sha256, len(correct_P)
            first = first or (results, key)
            if key != first[1]:
                raise ConflictError(
                    f"{root / results.cell.path} and {root / first[0].cell.path} were evaluated on different problems",
                    hint="give all arms the same eval.limit, and make the cells with an older benchmark again",
                )


def _curves(cells: Sequence[CellResults]) -> Iterator[tuple[str, list[tuple[int, Point]]]]:
    """Yield the curves of an arm. A point is over the seeds that have it so far."""
    for curve in (WITHOUT_DRAFT, WITH_DRAFT):
        points = []
        for policy in sorted({policy for cell in cells for policy in cell.correct.get(curve, {})}):
            correct_SP = _of_all_seeds(cells, curve, policy)
            points += [(policy, _accuracy(correct_SP))] if correct_SP.size else []
        yield curve, points
    by_name = {name: [cell.held_out[name] for cell in cells] for name in HELD_OUT}
    for name in TRAINING:
        by_name[name] = [{at: each[name] for at, each in enumerate(cell.metrics) if name in each} for cell in cells]
    for name, values in by_name.items():
        places = sorted({at for each in values for at in each})
        if places:
            yield name, [(at, _mean_over_seeds(name, [each[at] for each in values if at in each])) for at in places]


def _of_all_seeds(cells: Sequence[CellResults], curve: str, policy: int) -> NDArray[np.float64]:
    """Return the accuracy of a policy as [S, P], over the seeds that have it and the problems that all of them have."""
    correct_SP = np.array([cell.correct[curve][policy] for cell in cells if policy in cell.correct.get(curve, {})])
    return correct_SP[:, np.isfinite(correct_SP).all(axis=0)]


def _mean_over_seeds(name: str, values_S: Sequence[float]) -> Point:
    is_share = name.endswith(SHARES)
    if np.ptp(values_S) == 0:  # The initial policy, which all seeds share.
        return Point(float(values_S[0]), None, None)
    interval = clustered_interval(values_S) if is_share else ratio_interval(values_S, np.ones(len(values_S)))
    return Point(float(np.mean(values_S)), *(interval or (None, None)))


def _mean_spent(cells: Sequence[CellResults]) -> dict[str, list[float]]:
    longest = max((len(cell.metrics) for cell in cells), default=0) + 1
    return {
        axis: [
            float(np.mean([cell.spent[axis][at] for cell in cells if at < len(cell.spent[axis])]))
            for at in range(longest)
        ]
        for axis in ("tokens", "seconds", "gpu_seconds")
        if cells
    }


def _accuracy(correct_SP: NDArray[np.float64]) -> Point:
    return Point(float(correct_SP.mean()), *(crossed_interval(correct_SP) or (None, None)))
