"""Tokens and time that a run has taken, stage by stage, and what it will have taken at its end."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from igrpo_cli.errors import DamagedFileError
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.manifest import Cost, read_cost

READING_THREADS = 8
"""A network file system answers many at once, each slowly."""


@dataclass
class Spent:
    """Sums over shards, which may have been made at the same time."""

    tokens: int = 0
    seconds: float = 0.0
    gpu_seconds: float = 0.0

    def add(self, other: Spent | Cost) -> None:
        """Add what something else took; seconds to three decimals, as manifests have them."""
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
    """Time in which at least one shard of it was being made; whole seconds, as manifests say."""
    unreadable: list[str] = field(default_factory=list)
    """Manifests that do not say what their shards took, and why."""


@dataclass(frozen=True)
class Projection:
    """What a run will have taken if the iterations to come are like the finished ones on average."""

    finished_iterations: int
    spent: Spent
    """Of all iterations."""
    wall_seconds_per_iteration: float
    wall_seconds_left: float


def iteration_costs(run: RunDirectory, iteration: int, stages: Sequence[str]) -> IterationCosts:
    """What the shards of an iteration took that have a manifest."""
    found, costs = IterationCosts(), list[Cost]()
    for stage in stages:
        spent = found.stages[stage] = Spent()
        for path in _manifests(run, iteration, stage):
            try:
                cost = read_cost(path)
            except DamagedFileError as error:
                found.unreadable.append(error.message)
            else:
                spent.add(cost)
                costs.append(cost)
    found.wall_seconds = _seconds_covered(costs)
    return found


def costs_of_iterations(
    run: RunDirectory, iterations: Iterable[int], stages: Sequence[str]
) -> dict[int, IterationCosts]:
    """The same of several iterations."""
    numbers = list(iterations)
    with ThreadPoolExecutor(READING_THREADS) as threads:
        found = threads.map(lambda iteration: iteration_costs(run, iteration, stages), numbers)
        return dict(zip(numbers, found, strict=True))


def project(finished: Sequence[IterationCosts], unfinished: int) -> Projection | None:
    """The whole run by the mean of its finished iterations; None where there is none, or nothing left to do."""
    if not finished or not unfinished:
        return None
    number, total = len(finished), Spent()
    for costs in finished:
        for spent in costs.stages.values():
            total.add(spent)
    wall = sum(costs.wall_seconds for costs in finished) / number
    return Projection(number, total * ((number + unfinished) / number), wall, wall * unfinished)


def _manifests(run: RunDirectory, iteration: int, stage: str) -> list[str]:
    if stage == "update":
        manifest = run.update(iteration).manifest
        return [str(manifest)] if manifest.exists() else []
    directory = run.stage(iteration, stage)
    if not directory.is_dir():
        return []
    with os.scandir(directory) as entries:
        return sorted(each.path for each in entries if each.name.startswith("shard-") and each.name.endswith(".json"))


def _seconds_covered(costs: Sequence[Cost]) -> float:
    """Length of the union of the spans from start to finish."""
    covered, end = 0.0, None
    for cost in sorted(costs, key=lambda cost: cost.started):
        start = cost.started if end is None else max(cost.started, end)
        covered += max((cost.finished - start).total_seconds(), 0.0)
        end = cost.finished if end is None else max(end, cost.finished)
    return covered
