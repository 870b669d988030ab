"""The state of a run: the JSON object of `igrpo status`, read from directory listings, manifests and policies."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cache
from typing import Any

from igrpo_cli.config import RunConfig
from igrpo_cli.errors import DamagedFileError, IgrpoError
from igrpo_cli.inspection.shard_states import EvaluationState, StageState, read_evaluations, stage_state, update_state
from igrpo_cli.store.layout import RunDirectory, ShardPath, block_range, format_shards
from igrpo_cli.store.lineage import unpromoted_policies
from igrpo_cli.store.policies import Policy, read_policy

CURVES = ("draft/accuracy_mean", "refine/accuracy_mean", "draft/reward_mean", "refine/reward_mean")
"""Metrics of whole iterations: accuracy and reward without draft (`draft`) and with draft (`refine`) in the prompt."""
_COST = re.compile(
    rb'\n  "started": "([0-9T:-]+\+00:00)",\n  "finished": "([0-9T:-]+\+00:00)",'
    rb'\n  "seconds": ([0-9.e+-]+),\n  "tokens": ([0-9]{1,18}),\n  "gpu_seconds": ([0-9.e+-]+)'
)
"""The lines of a manifest that `Cost` holds, in the order of `Manifest`. A JSON text has no line break."""
_DATA_SHA256 = re.compile(rb'\n    "sha256": "([0-9a-f]{64})"')
_CURVE_VALUE = re.compile(rb'\n    "((?:draft|refine)/(?:accuracy|reward)_mean)": ([0-9.e+-]+)')
_READ_SIZE = 65_536


Cost = tuple[float, float, float, int, float]
"""What it took to make one shard: start and end in seconds since 1970, seconds, tokens, GPU seconds."""


@dataclass
class Spent:
    """Sums over shards. Several shards may have been made at the same time."""

    tokens: int = 0
    seconds: float = 0.0
    """To three decimals, as in manifests."""
    gpu_seconds: float = 0.0

    def add(self, other: Spent) -> None:
        """Add what something else took."""
        self.tokens += other.tokens
        self.seconds = round(self.seconds + other.seconds, 3)
        self.gpu_seconds = round(self.gpu_seconds + other.gpu_seconds, 3)

    def __mul__(self, factor: float) -> Spent:
        return Spent(round(self.tokens * factor), round(self.seconds * factor, 3), round(self.gpu_seconds * factor, 3))


@dataclass
class IterationCosts:
    """What one iteration has taken so far."""

    stages: dict[str, Spent] = field(default_factory=dict)
    wall_seconds: float = 0.0
    """Time in which at least one of its shards was being made."""
    unreadable: list[str] = field(default_factory=list)
    """A sentence for each manifest whose cost cannot be read."""


@dataclass(frozen=True)
class Projection:
    """What the run will have taken if the remaining iterations cost as much as the complete ones on average."""

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
        self._costs: dict[int, IterationCosts] = {}
        self._measured: dict[int, dict[str, float]] = {}
        self._unreadable: list[str] = []

    def read(self, shown: int, num_iterations: int) -> dict[str, Any]:
        """Return the state now. `stages`, `scores` and their faults describe the iteration `shown`."""
        run, num_shards = self._run, self._config.run.num_shards
        complete = [number for number in range(num_iterations) if os.path.exists(run.update(number).manifest)]
        unfinished = sorted(set(range(num_iterations)).difference(complete))
        newest = max(run.policy_iterations(), default=None)
        states = {stage: self._state(shown, stage) for stage in self._config.stages()}
        chain = read_policy_chain(run)
        costs = self._costs_until(shown, complete)
        curves = self._curves_of(complete)
        faults = [why for state in states.values() for why in state.damaged.values()] + chain.faults
        faults += [why for number, each in costs.items() if number != shown for why in each.unreadable]
        projection = project([costs[number] for number in complete], len(unfinished))
        return {
            "run": str(run.root),
            "iteration": shown,
            "num_iterations": num_iterations,
            "num_shards": num_shards,
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
            "curves": curves,
            "spent": {stage: asdict(_spent_on(stage, costs)) for stage in states},
            "projection": None if projection is None else asdict(projection),
            "faults": faults + self._unreadable,
        }

    def paths_of_stage(self, iteration: int, stage: str) -> tuple[ShardPath, ...]:
        """Return the shards of a stage. An update is one shard."""
        if stage == "update":
            return (self._run.update(iteration).shard,)
        return self._run.shards(iteration, stage, self._config.run.num_shards)

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
                }
                for each in state.in_progress
            ],
        }

    def _blocks_of(self, stage: str, shard: int) -> int:
        config = self._config
        if stage == "update":
            return config.update.num_minibatches * config.update.num_epochs
        num_blocks = -(-config.data.problems_sampled // config.engine.groups_per_block)
        return len(block_range(num_blocks, shard, config.run.num_shards))

    def _scores(self, iteration: int, stage: str) -> dict[str, dict[str, int]]:
        rollouts = self.paths_of_stage(iteration, stage)
        found = {}
        for name in self._run.score_sets(iteration, stage):
            done = sum(self._run.scores(path, name).manifest.exists() for path in rollouts)
            found[name] = {"done": done, "total": len(rollouts)}
        return found

    def _costs_until(self, shown: int, complete: list[int]) -> dict[int, IterationCosts]:
        """Return the costs of all iterations that have a directory. Only incomplete ones and `shown` are read again."""
        known = self._costs.keys() & (set(complete) - {shown})
        unread = (number for number in self._run.iterations() if number not in known)
        self._costs |= costs_of_iterations(self._run, unread, self._config.stages())
        return self._costs

    def _curves_of(self, complete: list[int]) -> dict[str, list[float]]:
        for number in complete:
            if number not in self._measured:
                try:
                    self._measured[number] = read_curve_values(self._run, number)
                except DamagedFileError as error:
                    self._measured[number] = {}
                    self._unreadable.append(error.message)
        found = {name: [self._measured[k][name] for k in complete if name in self._measured[k]] for name in CURVES}
        return {name: values for name, values in found.items() if values}


def read_cost(path: str, directory: int | None = None) -> Cost:
    """Return what the shard of the manifest at `path` took. Only the lines that say so are read.

    A long run has tens of thousands of manifests. Reading each as JSON would take ten times as long. A `path` relative
    to `directory`, an open descriptor, is found faster.

    Raises DamagedFileError when these lines are not as they were written.
    """
    content = _read(path, directory)
    found = _COST.match(content, max(content.rfind(b'\n  "started"'), 0))
    try:
        started, completed, seconds, tokens, gpu_seconds = found.groups() if found else ()
        cost = _timestamp(started), _timestamp(completed), float(seconds), int(tokens), float(gpu_seconds)
        if not (0 <= cost[2] < math.inf and 0 <= cost[4] < math.inf):
            raise ValueError
    except ValueError:
        raise DamagedFileError(f"{path} does not say what its shard took") from None
    return cost


def read_curve_values(run: RunDirectory, iteration: int) -> dict[str, float]:
    """Return the metrics `CURVES` of a complete iteration, from the manifest of its update.

    Raises DamagedFileError when `metrics.parquet` is missing, or is not the file that the manifest describes.
    """
    update = run.update(iteration)
    manifest, metrics = _read(str(update.manifest)), str(update.metrics)
    recorded = _DATA_SHA256.search(manifest)
    if recorded is None or recorded[1].decode() != hashlib.sha256(_read(metrics)).hexdigest():
        raise DamagedFileError(f"{metrics} is damaged: its SHA-256 is not the one in {update.manifest.name}")
    return {name.decode(): float(value) for name, value in _CURVE_VALUE.findall(manifest)}


def iteration_costs(run: RunDirectory, iteration: int, stages: Iterable[str]) -> IterationCosts:
    """Return what the shards of an iteration took that have a manifest."""
    found, of_all = IterationCosts(), list[Cost]()
    for stage in stages:
        costs = _costs_in(str(run.stage(iteration, stage)), found.unreadable)
        found.stages[stage] = Spent(
            sum(cost[3] for cost in costs),
            round(math.fsum(cost[2] for cost in costs), 3),
            round(math.fsum(cost[4] for cost in costs), 3),
        )
        of_all += costs
    found.wall_seconds = _seconds_covered(of_all)
    return found


def costs_of_iterations(
    run: RunDirectory, iterations: Iterable[int], stages: Sequence[str]
) -> dict[int, IterationCosts]:
    """Return `iteration_costs` of several iterations."""
    return {iteration: iteration_costs(run, iteration, stages) for iteration in iterations}


def project(complete: Sequence[IterationCosts], unfinished: int) -> Projection | None:
    """Return the costs of the whole run from the mean of its complete iterations.

    None when no iteration is complete, or all are.
    """
    if not complete or not unfinished:
        return None
    number, total = len(complete), Spent()
    for costs in complete:
        for spent in costs.stages.values():
            total.add(spent)
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


def _costs_in(directory: str, unreadable: list[str]) -> list[Cost]:
    """Return the costs in the manifests of a directory. A sentence for each that is damaged goes to `unreadable`."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return []
    costs = []
    try:
        for name in sorted(os.listdir(descriptor)):
            if name[-5:] == ".json" and (name[:6] == "shard-" or name == "manifest.json"):
                try:
                    costs.append(read_cost(name, descriptor))
                except DamagedFileError as error:
                    unreadable.append(f"{directory}/{error.message}")
    finally:
        os.close(descriptor)
    return costs


def _read(path: str, directory: int | None = None) -> bytes:
    try:
        # Not `open`: its further system calls take as long as these three.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        try:
            content = piece = os.read(descriptor, _READ_SIZE)
            while len(piece) == _READ_SIZE:
                piece = os.read(descriptor, _READ_SIZE)
                content += piece
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read: {error.strerror}") from error
    return content


@cache
def _timestamp(text: bytes) -> float:
    return datetime.fromisoformat(text.decode()).timestamp()


def _seconds_covered(costs: Iterable[Cost]) -> float:
    """Return the length of the union of the time spans."""
    covered, end = 0.0, -math.inf
    for started, completed, *_ in sorted(costs):
        if completed > end:
            covered += completed - max(started, end)
            end = completed
    return covered


def _spent_on(stage: str, costs: dict[int, IterationCosts]) -> Spent:
    total = Spent()
    for each in costs.values():
        total.add(each.stages[stage])
    return total


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
