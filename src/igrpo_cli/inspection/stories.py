"""The story of a problem in one iteration: its drafts, the selected draft, the refinements and what they changed."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from heapq import merge
from itertools import groupby
from operator import attrgetter
from typing import Any, Literal

from igrpo_cli.errors import ConflictError, DamagedFileError
from igrpo_cli.records import Problem, Rollout, Selection, Verdict
from igrpo_cli.store.completion import open_input, read_problems
from igrpo_cli.store.layout import RunDirectory, ShardPath, shards_in
from igrpo_cli.store.manifest import read_manifest
from igrpo_cli.store.schema import ADVANTAGES, ROLLOUTS
from igrpo_cli.store.tables import iterate_records, read_table

SampleKey = tuple[str, int]
"""(stage, sample_id) of a completion of a group."""
Change = tuple[Literal["same", "removed", "added"], str]
"""A piece of text, and whether it is in both texts, only in the first or only in the second."""
MAX_WORDS = 10_000
"""Longer texts are not compared: the time can grow with the square of the length."""
_WORD = re.compile(r"\s*(?:</?\w+>|\\?\w+|[^\w\s])|\s+")


@dataclass(frozen=True)
class GroupStory:
    """One problem in one iteration, up to the stage that is complete."""

    iteration: int
    group_id: int
    problem: Problem
    drafts: list[Rollout]
    selection: Selection | None
    """None in plain GRPO, and while the selection is missing."""
    refinements: list[Rollout]
    advantages: dict[SampleKey, float]
    """Advantages of the last optimiser step. Empty without a complete update, or when it did not train on the group."""
    draft_verdict: Verdict | None = None
    """The verdict on the draft in the prompt of the refinements, or None without draft.

    With the strategy `shuffled`, the draft belongs to another group.
    """
    has_verifications: bool = False
    """True if the refinements are rewarded for the verdict on their draft, and not for their answer."""

    @property
    def completions(self) -> list[Rollout]:
        """Drafts, then refinements."""
        return [*self.drafts, *self.refinements]

    @property
    def draft_shown(self) -> str | None:
        """The whole text of the draft in the prompt of the refinements; None without draft."""
        return self.selection.draft if self.selection is not None and self.selection.action == "condition" else None

    @property
    def critique(self) -> str | None:
        """The critique in the prompt of the refinements; None in a run without critiques, and without draft."""
        return self.refinements[0].critique if self.refinements and self.draft_shown is not None else None

    @property
    def is_fixed(self) -> bool:
        """True if the draft in the prompt is graded and not correct, and some refinement is correct."""
        was_wrong = self.draft_verdict not in (None, "correct", "ungraded") and not self.has_verifications
        return was_wrong and any(refinement.verdict == "correct" for refinement in self.refinements)

    @property
    def is_broken(self) -> bool:
        """True if the draft in the prompt is correct and some graded refinement is not."""
        was_right = self.draft_verdict == "correct" and not self.has_verifications
        return was_right and any(refinement.verdict not in ("correct", "ungraded") for refinement in self.refinements)

    @property
    def has_reward_variance(self) -> bool:
        """True if the rewards of the refinements differ, or those of the drafts when there are no refinements."""
        return len({rollout.reward for rollout in self.refinements or self.drafts}) > 1


def problems_by_id(run: RunDirectory) -> dict[str, Problem]:
    """Return the problems of the run. Raises MissingInputError or DamagedFileError when their file cannot be read."""
    return {problem.problem_id: problem for problem in read_problems(run.problems())}


def read_stories(
    run: RunDirectory, iteration: int, problems: Mapping[str, Problem] | None = None
) -> Iterator[GroupStory]:
    """Yield the stories of an iteration in order of group id, with one block of groups in memory at a time.

    Groups whose draft shard is missing are left out. A stage that is missing for a group leaves its fields empty.
    Give `problems` (from `problems_by_id`) to read many iterations.

    Raises DamagedFileError for a file that changed, ConflictError when a stage has two numbers of shards,
    MissingInputError when the problems are missing.
    """
    problems = problems_by_id(run) if problems is None else problems
    shards = {stage: complete_shards(run, iteration, stage) for stage in ("draft", "select", "refine")}
    verdicts = _verdicts(shards["draft"])
    advantages = _advantages(run, iteration)
    has_verifications = any(read_manifest(shard).holds_verifications for shard in shards["refine"])
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
            has_verifications=has_verifications,
        )


def complete_shards(run: RunDirectory, iteration: int, stage: str) -> list[ShardPath]:
    """Return the shards of a stage that have a manifest, in order. Raises ConflictError for two numbers of shards."""
    directory = run.stage(iteration, stage)
    found = [key for key, suffixes in shards_in(directory).items() if "json" in suffixes]
    totals = sorted({num_shards for _, num_shards in found})
    if len(totals) > 1:
        what = f"{directory} holds shards of {totals[0]} and shards of {totals[1]}"
        raise ConflictError(what, hint="remove those that do not belong there")
    return [run.shard(iteration, stage, shard, num_shards) for shard, num_shards in found]


def selection_settings(run: RunDirectory, iteration: int) -> Mapping[str, Any]:
    """Return the section `[select]` that the iteration was selected with; {} when no selection is complete."""
    shards = complete_shards(run, iteration, "select")
    return read_manifest(shards[0]).identity.config.get("select", {}) if shards else {}


def word_changes(before: str, after: str) -> list[Change] | None:
    """Return how `before` became `after`; None when one of them has more than `MAX_WORDS` words.

    A word is a run of letters and digits, a tag, a LaTeX command or a single other sign, with the white space before
    it. The pieces `same` and `removed` joined are `before`. The pieces `same` and `added` joined are `after`.
    """
    first, second = _WORD.findall(before), _WORD.findall(after)
    if max(len(first), len(second)) > MAX_WORDS:
        return None
    return [piece for piece in _pieces(first, second) if piece[1]]


_RECORDS: Mapping[str, type[Any]] = {"draft": Rollout, "select": Selection, "refine": Rollout}


def _rows(shards: list[ShardPath], record: type[Any]) -> Iterator[Any]:
    for shard in shards:
        open_input(shard)
        for block in iterate_records(shard.data, record):
            yield from block


def _verdicts(drafts: list[ShardPath]) -> dict[tuple[int, int], Verdict]:
    """Return the verdict of every draft of the iteration by (group_id, sample_id)."""
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
    """Return the advantages of the last optimiser step by group; {} when the update is not complete."""
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
        what = f"{shard.data.parent} holds drafts of {draft.problem_id!r}, which is not a problem of the run"
        raise DamagedFileError(what, hint="igrpo verify") from None


def _pieces(first: list[str], second: list[str]) -> Iterator[Change]:
    for operation, a, b, c, d in SequenceMatcher(None, first, second).get_opcodes():
        if operation == "equal":
            yield "same", "".join(first[a:b])
        else:
            yield "removed", "".join(first[a:b])
            yield "added", "".join(second[c:d])
