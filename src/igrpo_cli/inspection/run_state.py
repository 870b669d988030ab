"""The state of a run: the JSON object of `igrpo status`, read from directory listings, manifests and policies."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from statistics import fmean
from typing import Any

from igrpo_cli.config import RunConfig
from igrpo_cli.errors import DamagedFileError, IgrpoError
from igrpo_cli.inspection.run_config import described_changes, described_fork, flat_settings
from igrpo_cli.inspection.shard_states import EvaluationState, StageState, read_evaluations, stage_state, update_state
from igrpo_cli.store.hashing import sha256_file
from igrpo_cli.store.layout import RunDirectory, ShardPath, format_shards, shards_in
from igrpo_cli.store.lineage import first_stale, unpromoted_policies
from igrpo_cli.store.manifest import Spent, read_manifest, read_update_figures
from igrpo_cli.store.policies import Policy, read_policy

CURVES = (
    "draft/accuracy_mean",
    "refine/accuracy_mean",
    "draft/reward_mean",
    "refine/reward_mean",
    "draft/groups_with_gradient",
    "refine/groups_with_gradient",
    "refine/copy_rate",
)
"""Metrics of whole iterations, without draft (`draft`) and with draft (`refine`) in the prompt."""
RECENT = 5
"""Number of the last iterations that `findings` looks at."""


@dataclass
class IterationCosts:
    """Holds what one iteration has taken so far."""

    stages: dict[str, Spent]
    wall_seconds: float = 0.0
    """Time in which at least one of its shards was being made."""
    unreadable: list[str] = field(default_factory=list)
    """A sentence for each manifest that cannot be read."""


@dataclass(frozen=True)
class Projection:
    """Represents the costs of the whole run, projected from the mean of its complete iterations."""

    finished_iterations: int
    spent: Spent
    """All iterations together."""
    wall_seconds_per_iteration: float
    wall_seconds_left: float


@dataclass(frozen=True, slots=True)
class PolicyChain:
    """The policies of a run. The update of iteration k trains policy k + 1 from policy k."""

    policies: dict[int, Policy]
    """Policies whose records can be read. Their weights are not checked."""
    faults: list[str]
    """A sentence for each policy that cannot be read, or whose parent is another policy than the one on disk."""
    waiting: list[int]
    """Policies that are still in the directory of their update. The next command moves them."""


class RunStatus:
    """Reads the state of a run as often as asked. Complete iterations are read once."""

    def __init__(self, run: RunDirectory, config: RunConfig) -> None:
        self._run, self._config = run, config
        self._complete: dict[int, IterationCosts] = {}
        self._curves: dict[int, Mapping[str, float]] = {}

    def read(self, shown: int, num_iterations: int) -> dict[str, Any]:
        """Return the state now. `stages`, `scores` and their faults describe the iteration `shown`."""
        run, num_shards = self._run, self._config.run.num_shards
        complete = [number for number in range(num_iterations) if os.path.exists(run.update(number).manifest)]
        stale = first_stale(run, num_iterations, self._config.run.staleness)
        if stale is not None:
            complete = [number for number in complete if number < stale[0]]
        unfinished = sorted(set(range(num_iterations)).difference(complete))
        newest = max(run.policy_iterations(), default=None)
        states = {stage: self._state(shown, stage) for stage in self._config.at(shown).stages()}
        chain = read_policy_chain(run)
        costs = self._read_costs(complete)
        faults = [why for state in states.values() for why in state.damaged.values()] + chain.faults
        faults += [] if stale is None else [stale[1].message]
        faults += [why for each in costs.values() for why in each.unreadable]
        projection = project([costs[number] for number in complete], len(unfinished))
        return {
            "run": str(run.root),
            "iteration": shown,
            "num_iterations": num_iterations,
            "num_shards": num_shards,
            "staleness": self._config.run.staleness,
            "finished": num_iterations - 1 in complete,
            "unfinished": unfinished,
            "stages": {stage: self._stage(stage, state) for stage, state in states.items()},
            "policy": None if newest is None else str(run.policy(newest)),
            "policies": [
                {"policy": number, "id": policy.id, "made_from": policy.parent, "model": policy.model}
                for number, policy in chain.policies.items()
            ],
            "policies_waiting": chain.waiting,
            "scores": {stage: scores for stage in states if (scores := self._scores(shown, stage))},
            "evaluations": [_evaluation(each) for each in read_evaluations(run, num_shards)],
            "curves": (curves := self._read_curves(complete)),
            "findings": findings(curves, flat_settings(self._config.latest.model_dump())),
            "spent": {stage: asdict(_spent_on(stage, costs)) for stage in self._config.stages()},
            "changes": described_changes(self._config),
            "forked_from": described_fork(run),
            "projection": None if projection is None else asdict(projection),
            "seconds_left_at_least": None
            if complete or shown not in costs
            else self._seconds_left_at_least(states, costs[shown].wall_seconds, len(unfinished)),
            # The states and the costs of the iteration that is shown come from the same manifests.
            "faults": list(dict.fromkeys(faults)),
        }

    def paths_of_stage(self, iteration: int, stage: str) -> tuple[ShardPath, ...]:
        """Return the shards of a stage. An update is one shard."""
        if stage == "update":
            return (self._run.update(iteration).shard,)
        return self._run.shards(iteration, stage, self._config.run.num_shards)

    def seconds_per_iteration(self, end: int) -> float | None:
        """Return the mean wall time of the complete iterations before `end`, the last `RECENT`; None without any."""
        numbers = [number for number in range(end) if self._run.update(number).manifest.exists()][-RECENT:]
        stages = self._config.stages()
        costs = [read_complete_iteration(self._run, number, stages)[0] for number in numbers]
        return fmean(each.wall_seconds for each in costs) if costs else None

    def _seconds_left_at_least(
        self, states: Mapping[str, StageState], seconds: float, num_iterations: int
    ) -> float | None:
        """Return the time left if every iteration took only what the first one has taken and its stage still takes.

        `seconds` is the time of its complete shards. None before a block is kept.
        """
        shards = [(stage, each) for stage, state in states.items() for each in state.in_progress]
        left = [each.seconds_left(self._blocks_of(stage, each.shard)) for stage, each in shards]
        known = [each for each in left if each is not None]
        if not known:
            return None
        spent = seconds + max(each.seconds or 0.0 for _, each in shards)
        return (spent + max(known)) * num_iterations - spent

    def _state(self, iteration: int, stage: str) -> StageState:
        if stage == "update":
            return update_state(self._run.update(iteration))
        return stage_state(self.paths_of_stage(iteration, stage))

    def _stage(self, stage: str, state: StageState) -> dict[str, Any]:
        return {
            "done": state.done,
            "total": state.total,
            "missing": format_shards(state.missing),
            "damaged": format_shards(state.damaged),
            "under_way": [
                {
                    "shard": each.shard,
                    "done": each.done,
                    "claimed": each.claimed,
                    "total": self._blocks_of(stage, each.shard),
                    "last_change": each.last_change.isoformat(),
                    "seconds_left": each.seconds_left(self._blocks_of(stage, each.shard)),
                }
                for each in state.in_progress
            ],
        }

    def _blocks_of(self, stage: str, shard: int) -> int:
        config = self._config.latest
        if stage == "update":
            return config.update.num_minibatches * config.update.num_epochs
        return len(config.blocks().of_shard(shard))

    def _scores(self, iteration: int, stage: str) -> dict[str, dict[str, int]]:
        rollouts = self.paths_of_stage(iteration, stage)
        found = {}
        for name in self._run.score_sets(iteration, stage):
            done = sum(self._run.scores(path, name).manifest.exists() for path in rollouts)
            found[name] = {"done": done, "total": len(rollouts)}
        return found

    def _read_costs(self, complete: list[int]) -> dict[int, IterationCosts]:
        """Return the costs of all iterations that have a directory. Complete ones are read once."""
        costs = {}
        for number in self._run.iterations():
            stages = self._config.at(number).stages()
            if number in complete and number not in self._complete:
                self._complete[number], self._curves[number] = read_complete_iteration(self._run, number, stages)
            costs[number] = self._complete.get(number) or iteration_costs(self._run, number, stages)
        return costs

    def _read_curves(self, complete: list[int]) -> dict[str, list[float]]:
        found = {name: [self._curves[k][name] for k in complete if name in self._curves[k]] for name in CURVES}
        return {name: values for name, values in found.items() if values}


def findings(curves: Mapping[str, Sequence[float]], settings: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each sign that drafts do not help as they could, from the last iterations of `CURVES`.

    docs/when-drafts-help.md says what to set then. Nothing is said of a run with fewer than three iterations, of copies
    that are right, or of a run that has these settings already (`settings` are {section.key: value}).
    """
    recent = {name: fmean(values[-RECENT:]) for name, values in curves.items() if len(values) >= 3}
    copied, varied = recent.get("refine/copy_rate"), recent.get("refine/groups_with_gradient")
    drafts, refined = recent.get("draft/accuracy_mean"), recent.get("refine/accuracy_mean")
    found = []
    is_solved = refined is not None and refined >= 0.9
    learns_alone = settings.get("update.refinement_prompt") == "without_draft"
    is_set = learns_alone or (settings.get("select.strategy") != "best" and settings.get("update.train_on") == "both")
    if copied is not None and varied is not None and copied >= 0.5 >= varied and not (is_solved or is_set):
        found.append(
            f"{copied:.0%} of refinements repeat their draft, and {varied:.0%} of their groups have reward variance"
        )
    if drafts is None or refined is None or learns_alone:
        is_apart = False
    else:
        is_apart = drafts < 0.5 and refined >= max(2 * drafts, 0.05)
    if is_apart:
        found.append(f"{refined:.1%} of refinements are right, but {drafts:.1%} of samples without draft")
    return [f"{each}: see docs/when-drafts-help.md" for each in found]


def read_complete_iteration(
    run: RunDirectory, iteration: int, stages: Sequence[str]
) -> tuple[IterationCosts, Mapping[str, float]]:
    """Return the costs and the metrics `CURVES` of a complete iteration, from the manifest of its update.

    A long run has tens of thousands of manifests, so those of the other stages are not read again. Where the update is
    damaged, their costs are, and there are no metrics.
    """
    update = run.update(iteration).shard
    try:
        figures = read_update_figures(update)
        if sha256_file(update.data) != figures.data.sha256:
            raise DamagedFileError(f"{update.data} is damaged: its SHA-256 is not the one in {update.manifest.name}")
    except (IgrpoError, OSError) as error:
        costs = iteration_costs(run, iteration, [stage for stage in stages if stage != "update"])
        costs.stages["update"] = Spent()
        costs.unreadable.append(error.message if isinstance(error, IgrpoError) else f"{update.data}: {error}")
        return costs, {}
    spent = {stage: figures.spent.get(stage, Spent()) for stage in stages}
    spent["update"] = Spent(figures.tokens, figures.seconds, figures.gpu_seconds)
    started, finished = _time_span(figures.started, figures.finished)
    return IterationCosts(spent, figures.wall_seconds + finished - started), figures.metrics


def iteration_costs(run: RunDirectory, iteration: int, stages: Iterable[str]) -> IterationCosts:
    """Return what the shards of an iteration took that have a manifest."""
    costs, spans = IterationCosts({}), []
    for stage in stages:
        costs.stages[stage] = Spent()
        for path in _shards_with_manifest(run, iteration, stage):
            try:
                manifest = read_manifest(path)
            except IgrpoError as error:
                costs.unreadable.append(error.message)
                continue
            costs.stages[stage] += Spent(manifest.tokens, manifest.seconds, manifest.gpu_seconds)
            spans.append(_time_span(manifest.started, manifest.finished))
    costs.wall_seconds = _seconds_covered(spans)
    return costs


def project(complete: Sequence[IterationCosts], unfinished: int) -> Projection | None:
    """Return the costs of the whole run from the mean of its complete iterations.

    None when no iteration is complete, or all are.
    """
    if not complete or not unfinished:
        return None
    number = len(complete)
    total = sum((spent for costs in complete for spent in costs.stages.values()), Spent())
    wall = sum(costs.wall_seconds for costs in complete) / number
    return Projection(number, total * ((number + unfinished) / number), wall, wall * unfinished)


def read_policy_chain(run: RunDirectory) -> PolicyChain:
    """Return all policies of a run. A policy that was removed to save space is no fault."""
    chain = PolicyChain({}, [], [])
    for iteration in run.policy_iterations():
        try:
            policy = chain.policies[iteration] = read_policy(run, iteration)
        except IgrpoError as error:
            chain.faults.append(error.message)
            continue
        parent = chain.policies.get(iteration - 1)
        if parent is not None and policy.parent != parent.id:
            chain.faults.append(f"{run.policy(iteration)} was not made from policy {iteration - 1}")
    chain.waiting.extend(unpromoted_policies(run))
    return chain


def _shards_with_manifest(run: RunDirectory, iteration: int, stage: str) -> list[ShardPath]:
    if stage == "update":
        update = run.update(iteration).shard
        return [update] if update.manifest.exists() else []
    found = shards_in(run.stage(iteration, stage))
    return [run.shard(iteration, stage, *shard) for shard, suffixes in found.items() if "json" in suffixes]


def _time_span(started: str, finished: str) -> tuple[float, float]:
    """Return start and end of the work on a shard, in seconds since 1970."""
    return datetime.fromisoformat(started).timestamp(), datetime.fromisoformat(finished).timestamp()


def _seconds_covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of the time spans."""
    covered, end = 0.0, -math.inf
    for started, finished in sorted(spans):
        if finished > end:
            covered += finished - max(started, end)
            end = finished
    return covered


def _spent_on(stage: str, costs: dict[int, IterationCosts]) -> Spent:
    return sum((each.stages.get(stage, Spent()) for each in costs.values()), Spent())


def _evaluation(each: EvaluationState) -> dict[str, Any]:
    return {
        "bench": each.bench,
        "model": each.model,
        "conditioned": each.selection,
        "done": each.shards.done,
        "total": each.shards.total,
        "under_way": format_shards(shard.shard for shard in each.shards.in_progress),
        "avg_at_k": each.accuracy,
        "ci95": None if each.ci95 is None else list(each.ci95),
    }
