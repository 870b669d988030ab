"""The story of a problem in one iteration: its drafts, which one was selected, and what became of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from heapq import merge
from itertools import groupby
from operator import attrgetter
from typing import Any

from igrpo_cli.errors import ConflictError, DamagedFileError
from igrpo_cli.records import Problem, Rollout, Selection, Verdict
from igrpo_cli.store.completion import open_input, read_problems
from igrpo_cli.store.layout import RunDirectory, ShardPath, shards_in
from igrpo_cli.store.manifest import read_manifest
from igrpo_cli.store.schema import ADVANTAGES, ROLLOUTS
from igrpo_cli.store.tables import iterate_records, read_table

SampleKey = tuple[str, int]
"""(stage, sample_id) of a completion of a group."""


@dataclass(frozen=True)
class GroupStory:
    """One problem through one iteration, as far as that has come."""

    iteration: int
    group_id: int
    problem: Problem
    drafts: list[Rollout]
    selection: Selection | None
    """None where nothing was selected: in plain GRPO, or not yet."""
    refinements: list[Rollout]
    advantages: dict[SampleKey, float]
    """Of the latest optimiser step; empty where the update is not finished or did not train on the group."""
    draft_verdict: Verdict | None = None
    """Of the draft that the refinements see, which under `shuffled` is another group's; None where they see none."""

    @property
    def completions(self) -> list[Rollout]:
        """Drafts, then refinements."""
        return [*self.drafts, *self.refinements]

    @property
    def draft_shown(self) -> str | None:
        """The whole text of the draft that the refinements see; None where they see none."""
        return self.selection.draft if self.selection is not None and self.selection.action == "condition" else None

    @property
    def is_fixed(self) -> bool:
        """Whether some refinement of a draft that was not right is right."""
        was_wrong = self.draft_verdict not in (None, "correct")
        return was_wrong and any(refinement.verdict == "correct" for refinement in self.refinements)

    @property
    def is_broken(self) -> bool:
        """Whether some refinement of a right draft is not right."""
        was_right = self.draft_verdict == "correct"
        return was_right and any(refinement.verdict != "correct" for refinement in self.refinements)

    @property
    def has_gradient(self) -> bool:
        """Whether the rewards of the refinements differ; those of the drafts where there are no refinements."""
        return len({rollout.reward for rollout in self.refinements or self.drafts}) > 1


def problems_by_id(run: RunDirectory) -> dict[str, Problem]:
    """The run's problems. Raises MissingInputError where they are gone, DamagedFileError where they changed."""
    return {problem.problem_id: problem for problem in read_problems(run.problems())}


def read_stories(
    run: RunDirectory, iteration: int, problems: Mapping[str, Problem] | None = None
) -> Iterator[GroupStory]:
    """The stories of an iteration in order of its groups, one block of them in memory at a time.

    Whoever reads many iterations reads `problems_by_id` once.

    What is finished is told: groups whose draft shard is missing are left out, and a stage that has not come to
    a group yet leaves its part empty. Raises DamagedFileError for a file that is not what it was, ConflictError
    where a stage lies there in two numbers of shards, MissingInputError where the problems are gone.
    """
    problems = problems_by_id(run) if problems is None else problems
    shards = {stage: finished_shards(run, iteration, stage) for stage in ("draft", "select", "refine")}
    verdicts = _verdicts(shards["draft"])
    advantages = _advantages(run, iteration)
    streams = [_rows(shards[stage], record) for stage, record in _RECORDS.items()]
    for group_id, rows in groupby(merge(*streams, key=attrgetter("group_id")), attrgetter("group_id")):
        found: defaultdict[str, list[Any]] = defaultdict(list)
        for row in rows:
            found["select" if isinstance(row, Selection) else row.stage].append(row)
        if not found["draft"]:
            continue
        selection = next(iter(found["select"]), None)
        yield GroupStory(
            iteration=iteration,
            group_id=group_id,
            problem=_problem(problems, found["draft"][0], shards["draft"][0]),
            drafts=found["draft"],
            selection=selection,
            refinements=found["refine"],
            advantages=advantages.get(group_id, {}),
            draft_verdict=None if selection is None else _verdict_shown(selection, verdicts),
        )


def finished_shards(run: RunDirectory, iteration: int, stage: str) -> list[ShardPath]:
    """The shards of a stage that have their manifest, in order. Raises ConflictError for two numbers of shards."""
    directory = run.stage(iteration, stage)
    found = [key for key, suffixes in shards_in(directory).items() if "json" in suffixes]
    totals = sorted({num_shards for _, num_shards in found})
    if len(totals) > 1:
        what = f"{directory} holds shards of {totals[0]} beside shards of {totals[1]}"
        raise ConflictError(what, hint="remove those that do not belong there")
    return [run.shard(iteration, stage, shard, num_shards) for shard, num_shards in found]


def selection_settings(run: RunDirectory, iteration: int) -> Mapping[str, Any]:
    """The section `[select]` as the iteration's selections were made with it; {} where there are none yet."""
    shards = finished_shards(run, iteration, "select")
    return read_manifest(shards[0]).identity.config.get("select", {}) if shards else {}


_RECORDS: Mapping[str, type[Any]] = {"draft": Rollout, "select": Selection, "refine": Rollout}


def _rows(shards: list[ShardPath], record: type[Any]) -> Iterator[Any]:
    for shard in shards:
        open_input(shard)
        for block in iterate_records(shard.data, record):
            yield from block


def _verdicts(drafts: list[ShardPath]) -> dict[tuple[int, int], Verdict]:
    """The verdict of every draft of the iteration by (group_id, sample_id)."""
    columns = ("group_id", "sample_id", "verdict")
    tables = (read_table(shard.data, ROLLOUTS, columns) for shard in drafts)
    return {
        (group_id, sample_id): verdict
        for table in tables
        for group_id, sample_id, verdict in zip(*(table[name].to_pylist() for name in columns), strict=True)
    }


def _verdict_shown(selection: Selection, verdicts: Mapping[tuple[int, int], Verdict]) -> Verdict | None:
    if selection.action != "condition":
        return None
    return verdicts.get((selection.draft_group_id, selection.draft_sample_id))


def _advantages(run: RunDirectory, iteration: int) -> dict[int, dict[SampleKey, float]]:
    """What the latest optimiser step was given, by group; empty where the update is not finished."""
    update = run.update(iteration)
    if not update.manifest.exists():
        return {}
    columns = ("step", "group_id", "stage", "sample_id", "advantage")
    table = read_table(update.advantages, ADVANTAGES, columns)
    found: defaultdict[int, dict[SampleKey, float]] = defaultdict(dict)
    for _, group_id, stage, sample_id, advantage in sorted(zip(*(table[c].to_pylist() for c in columns), strict=True)):
        found[group_id][stage, sample_id] = advantage
    return found


def _problem(problems: Mapping[str, Problem], draft: Rollout, shard: ShardPath) -> Problem:
    try:
        return problems[draft.problem_id]
    except KeyError:
        what = f"{shard.data.parent} holds drafts of {draft.problem_id!r}, which is no problem of the run"
        raise DamagedFileError(what, hint="igrpo verify") from None
