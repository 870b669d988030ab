"""Where a run stands: the JSON object of `igrpo status`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from igrpo_cli.errors import DamagedFileError
from igrpo_cli.inspection.costs import IterationCosts, Spent, costs_of_iterations, project
from igrpo_cli.inspection.evaluations import EvaluationState, read_evaluations
from igrpo_cli.inspection.metrics import read_metrics
from igrpo_cli.inspection.policy_chain import read_policy_chain
from igrpo_cli.inspection.shard_states import StageState, stage_state, update_state
from igrpo_cli.pipeline.session import Session
from igrpo_cli.store.layout import ShardPath, block_range, format_shards

CURVES = ("draft/accuracy_mean", "refine/accuracy_mean", "draft/reward_mean", "refine/reward_mean")
"""Metrics of whole iterations: bare accuracy, conditioned accuracy, and the reward of both."""


def paths_of_stage(session: Session, iteration: int, stage: str) -> tuple[ShardPath, ...]:
    """The shards of a stage; an update is one."""
    if stage == "update":
        return (session.run.update(iteration).shard,)
    return session.run.shards(iteration, stage, session.config.run.num_shards)


class RunStatus:
    """Reads a run as often as it is asked; what finished iterations cost and measured is read once."""

    def __init__(self, session: Session, path: Path) -> None:
        self._session, self._run, self._path = session, session.run, path
        self._costs: dict[int, IterationCosts] = {}
        self._measured: dict[int, dict[str, float]] = {}
        self._unreadable: list[str] = []

    def read(self, iteration: int | None) -> dict[str, Any]:
        """The state now; `stages`, `scores` and their faults are of `iteration`, by default of the current one."""
        session, run = self._session, self._run
        shown, total = session.iteration_or_current(iteration), session.num_iterations()
        unfinished = [number for number in range(total) if not run.update(number).manifest.exists()]
        finished = sorted(set(range(total)).difference(unfinished))
        newest = max(run.policy_iterations(), default=None)
        states = {stage: self._state(shown, stage) for stage in session.config.stages()}
        chain = read_policy_chain(run)
        costs = self._costs_until(shown, finished)
        curves = self._curves_of(finished)
        faults = [why for state in states.values() for why in state.damaged.values()] + chain.faults
        faults += [why for number, each in costs.items() if number != shown for why in each.unreadable]
        projection = project([costs[number] for number in finished], len(unfinished))
        return {
            "run": str(self._path),
            "iteration": shown,
            "num_iterations": total,
            "num_shards": session.config.run.num_shards,
            "finished": total - 1 in finished,
            "unfinished": unfinished,
            "stages": {stage: self._stage(stage, state) for stage, state in states.items()},
            "policy": None if newest is None else str(run.policy(newest)),
            "policies": [
                {"policy": number, "id": policy.id, "made_from": policy.parent, "model": policy.model}
                for number, policy in chain.policies.items()
            ],
            "policies_waiting": chain.waiting,
            "scores": {stage: scores for stage in states if (scores := self._scores(shown, stage))},
            "evaluations": [_evaluation(each) for each in read_evaluations(run, session.config.run.num_shards)],
            "curves": curves,
            "spent": {stage: asdict(_spent_on(stage, costs)) for stage in states},
            "projection": None if projection is None else asdict(projection),
            "faults": faults + self._unreadable,
        }

    def _state(self, iteration: int, stage: str) -> StageState:
        if stage == "update":
            return update_state(self._run.update(iteration))
        return stage_state(paths_of_stage(self._session, iteration, stage))

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
                }
                for each in state.under_way
            ],
        }

    def _blocks_of(self, stage: str, shard: int) -> int:
        config = self._session.config
        if stage == "update":
            return config.update.num_minibatches * config.update.num_epochs
        num_blocks = -(-config.data.problems_sampled // config.engine.groups_per_block)
        return len(block_range(num_blocks, shard, config.run.num_shards))

    def _scores(self, iteration: int, stage: str) -> dict[str, dict[str, int]]:
        rollouts = paths_of_stage(self._session, iteration, stage)
        found = {}
        for name in self._run.score_sets(iteration, stage):
            done = sum(self._run.scores(path, name).manifest.exists() for path in rollouts)
            found[name] = {"done": done, "total": len(rollouts)}
        return found

    def _costs_until(self, shown: int, finished: list[int]) -> dict[int, IterationCosts]:
        """Of all iterations that have a directory; what is not finished, or is shown, is read anew."""
        settled = set(finished) - {shown}
        unread = [number for number in self._run.iterations() if number not in self._costs or number not in settled]
        self._costs |= costs_of_iterations(self._run, unread, self._session.config.stages())
        return self._costs

    def _curves_of(self, finished: list[int]) -> dict[str, list[float]]:
        for number in finished:
            if number in self._measured:
                continue
            try:
                metrics = read_metrics(self._run, number)
            except DamagedFileError as error:
                metrics = None
                self._unreadable.append(error.message)
            self._measured[number] = {} if metrics is None else metrics.whole
        found = {name: [self._measured[k][name] for k in finished if name in self._measured[k]] for name in CURVES}
        return {name: values for name, values in found.items() if values}


def _spent_on(stage: str, costs: dict[int, IterationCosts]) -> Spent:
    total = Spent()
    for each in costs.values():
        total.add(each.stages[stage])
    return total


def _evaluation(each: EvaluationState) -> dict[str, Any]:
    return {
        "bench": each.bench,
        "model": each.model,
        "conditioned": each.conditioned,
        "done": each.shards.done,
        "total": each.shards.total,
        "under_way": format_shards(shard.shard for shard in each.shards.under_way),
        "avg_at_k": each.accuracy,
        "ci95": None if each.ci95 is None else list(each.ci95),
    }
