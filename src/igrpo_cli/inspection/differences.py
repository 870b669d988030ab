"""The differences between two iterations of one or two runs: by problem, in settings and in evaluations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from igrpo_cli.algo.estimates import PairedDifference, paired_difference
from igrpo_cli.inspection.run_config import Settings, differing_values, flat_settings
from igrpo_cli.inspection.shard_states import EvaluationState, read_evaluations
from igrpo_cli.inspection.stories import complete_shards, read_stories
from igrpo_cli.records import Problem
from igrpo_cli.store.layout import STAGES, RunDirectory, shards_in
from igrpo_cli.store.manifest import Manifest, read_manifest

SAMPLED_STAGES = ("draft", "refine")


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison: a policy of a run, by its number, and the iteration that it sampled."""

    run: RunDirectory
    iteration: int


@dataclass(frozen=True, slots=True)
class Flip:
    """A problem that only one side solved."""

    problem: Problem
    a: float
    """The share of correct completions of side A, and in `b` of side B."""
    b: float


@dataclass
class Transitions:
    """The problems that both sides sampled. A problem is solved when more than half of its completions are correct."""

    num_shared: int = 0
    num_solved: int = 0
    """Problems solved by both sides."""
    num_unsolved: int = 0
    """Problems solved by neither side."""
    gained: list[Flip] = field(default_factory=list)
    """Problems solved only by B, the largest difference first."""
    lost: list[Flip] = field(default_factory=list)
    """Problems solved only by A, the largest difference first."""
    difference: PairedDifference | None = None
    """Accuracy of B minus accuracy of A on the shared problems; None when there are none."""


def read_transitions(a: Side, b: Side) -> dict[str, Transitions]:
    """Return the transitions by stage: `draft` (without draft) and `refine` (with draft). Raises as `read_stories`."""
    first, second = _read_accuracies(a), _read_accuracies(b)
    return {stage: transitions(first[stage], second[stage]) for stage in SAMPLED_STAGES}


Accuracies = Mapping[tuple[str, str], tuple[Problem, Sequence[float]]]
"""Each problem with 1.0 (correct) or 0.0 for each completion. Keys are text and answer, because ids may differ."""


def transitions(a: Accuracies, b: Accuracies) -> Transitions:
    """Return the transitions of the problems that are in both."""
    found = Transitions()
    flips = [Flip(a[key][0], float(np.mean(a[key][1])), float(np.mean(b[key][1]))) for key in a if key in b]
    for flip in flips:
        solved = (flip.a > 0.5, flip.b > 0.5)
        found.num_solved += solved == (True, True)
        found.num_unsolved += solved == (False, False)
        if solved == (False, True):
            found.gained.append(flip)
        elif solved == (True, False):
            found.lost.append(flip)
    for changed in (found.gained, found.lost):
        changed.sort(key=lambda flip: (-abs(flip.b - flip.a), flip.problem.problem_id))
    found.num_shared = len(flips)
    if flips:
        found.difference = paired_difference([flip.a for flip in flips], [flip.b for flip in flips])
    return found


def changed_settings(a: Side, b: Side, of_runs: Sequence[Settings]) -> dict[str, tuple[Any, Any]]:
    """Return the settings, versions and devices that differ, by name, as (value of A, value of B).

    Values come from the manifests of both iterations, and from `of_runs`, the settings of both runs, for keys that no
    manifest records. A key that is missing on one side is None there. When the values of a key differ between stages,
    the name of the stage follows the name of the key.
    """
    changed: dict[str, tuple[Any, Any]] = {}
    recorded: set[str] = set()
    for stage in STAGES:
        both = [_recorded(side, stage) for side in (a, b)]
        if not all(both):
            continue
        for name, values in differing_values(*both).items():
            changed[name if changed.get(name, values) == values else f"{name} ({stage})"] = values
        recorded.update(both[0], both[1])
    unrecorded = differing_values(*map(flat_settings, of_runs)).items()
    return changed | {name: values for name, values in unrecorded if name not in recorded}


def evaluations_of_both(a: Side, b: Side, *, newest: bool) -> Iterator[tuple[EvaluationState, EvaluationState]]:
    """Yield pairs of evaluations of the policies of both sides, on the same benchmark and with the same `selection`.

    With `newest`, the pairs are of the newest policy by number that both runs have evaluated.
    """
    first, second = _evaluations(a), _evaluations(b)
    for key in [key for key in first if key in second]:
        pair = (a.iteration, b.iteration)
        if newest:
            pair = (max(first[key].keys() & second[key].keys(), default=-1),) * 2
        if pair[0] in first[key] and pair[1] in second[key]:
            yield first[key][pair[0]], second[key][pair[1]]


def _read_accuracies(side: Side) -> dict[str, dict[tuple[str, str], tuple[Problem, list[float]]]]:
    found: dict[str, dict[tuple[str, str], tuple[Problem, list[float]]]] = {stage: {} for stage in SAMPLED_STAGES}
    for story in read_stories(side.run, side.iteration):
        for rollout in story.completions:
            key = (story.problem.problem, story.problem.answer)
            if rollout.verdict != "ungraded":
                _, correct = found[rollout.stage].setdefault(key, (story.problem, []))
                correct.append(float(rollout.verdict == "correct"))
    return found


def _recorded(side: Side, stage: str) -> dict[str, Any]:
    """Return the settings and versions in the manifest of the first complete shard of a stage; {} without one."""
    update = side.run.update(side.iteration)
    if stage == "update":
        shards = [update.shard] if update.manifest.exists() else []
    else:
        shards = complete_shards(side.run, side.iteration, stage)
    if not shards:
        return {}
    return recorded_settings(read_manifest(shards[0]))


def recorded_settings(manifest: Manifest) -> dict[str, Any]:
    """Return the settings, the versions and the device that a shard was made with."""
    versions = {f"versions.{name}": version for name, version in manifest.versions.items()}
    return {**flat_settings(manifest.identity.config), **versions, "device": manifest.device}


def changed_evaluation(a: Side, b: Side, pair: tuple[EvaluationState, EvaluationState]) -> dict[str, tuple[Any, Any]]:
    """Return what differs in the settings of two evaluations, as `changed_settings`. Without shards it is unknown."""
    both = [_recorded_evaluation(side.run, each) for side, each in zip((a, b), pair, strict=True)]
    return differing_values(*both) if all(both) else {}


def _recorded_evaluation(run: RunDirectory, state: EvaluationState) -> dict[str, Any]:
    directory = run.eval(state.bench, state.model, conditioned=state.selection)
    known = [number for number, suffixes in shards_in(directory).items() if "json" in suffixes]
    return recorded_settings(read_manifest(run.eval_shard_in(directory, *known[0]))) if known else {}


def _evaluations(side: Side) -> dict[tuple[str, str | None], dict[int, EvaluationState]]:
    """Return the evaluations of the policies of a run by (benchmark, selection), then by policy."""
    found: defaultdict[tuple[str, str | None], dict[int, EvaluationState]] = defaultdict(dict)
    for each in read_evaluations(side.run, num_shards=1):
        if isinstance(each.model, int) and each.accuracy is not None:
            found[each.bench, each.selection][each.model] = each
    return found
