"""Check the rows of shards: whole groups, and each stage to the stages before it.

`require_…` raise, for a stage that publishes or reads a shard. The others report all that is wrong, for `igrpo verify`:
they read files block by block, and keep ids, rewards and a digest per draft in memory, never text or tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, zip_longest
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from igrpo_cli.errors import ConflictError, DamagedFileError, IgrpoError
from igrpo_cli.records import EXTERNAL_GROUP, Problem, Rollout, Selection
from igrpo_cli.store.hints import command_line
from igrpo_cli.store.layout import ShardPath
from igrpo_cli.store.manifest import Manifest
from igrpo_cli.store.schema import METRICS, PROBLEMS, ROLLOUTS, SCORES, SELECTIONS
from igrpo_cli.store.tables import iterate_blocks

if TYPE_CHECKING:
    from igrpo_cli.store.parts import RowId

_ROLLOUT = (
    "iteration",
    "stage",
    "problem_id",
    "group_id",
    "sample_id",
    "draft_sample_id",
    "completion",
    "reward",
)


@dataclass
class Chosen:
    """Holds the selection of one group."""

    problem_id: str
    action: str
    draft_sample_id: int
    num_refinements: int | None


@dataclass
class IterationRows:
    """Holds what was read of one iteration or evaluation so far."""

    problem_ids: set[str] | None = None
    """None where the problems file could not be read. Ids are not checked then."""
    groups: dict[str, dict[int, str]] = field(default_factory=dict)
    """{stage: {group_id: problem_id}} in the order of the files."""
    num_samples: dict[str, int] = field(default_factory=dict)
    drafts: dict[tuple[int, int], tuple[bytes, float]] = field(default_factory=dict)
    """{(group_id, sample_id): (digest of the completion, reward)}."""
    scores: dict[str, dict[tuple[int, int], float]] = field(default_factory=dict)
    """{set of scores of the drafts: {(group_id, sample_id): reward}}."""
    selections: dict[int, Chosen] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)
    """Stages with a missing or unreadable shard. Other stages are not compared with these."""


def read_problem_ids(path: ShardPath, manifest: Manifest, ids: set[str]) -> Iterator[str]:
    """Read the problems file into `ids` and yield what is wrong with it."""
    rows = 0
    for block in iterate_blocks(path.data, PROBLEMS):
        rows += block.num_rows
        ids.update(block.column("problem_id").to_pylist())
        if not all(block.column("answer").to_pylist()):
            yield "a problem has an empty answer"
    if len(ids) != rows:
        yield f"{rows - len(ids)} of {rows} problem ids stand twice"
    yield from _count("rows", rows, manifest.data.rows)


def read_rollouts(path: ShardPath, manifest: Manifest, known: IterationRows) -> Iterator[str]:
    """Read a shard of rollouts into `known` and yield what is wrong with it."""
    groups = known.groups.setdefault(path.stage, {})
    rows, before = 0, len(groups)
    for block in iterate_blocks(path.data, ROLLOUTS):
        rows += block.num_rows
        for group_id, members in groupby(_cells(block, _ROLLOUT), key=lambda row: row["group_id"]):
            yield from _check_group(path, group_id, list(members), known)
    yield from _count("rows", rows, manifest.data.rows)
    yield from _count("groups", len(groups) - before, manifest.data.groups)


def read_scores(path: ShardPath, manifest: Manifest, *, stage: str, known: IterationRows) -> Iterator[str]:
    """Read scores of drafts or refinements into `known` and yield what is wrong with them."""
    groups, rows = known.groups.get(stage, {}), 0
    rewards = known.scores.setdefault(path.data.parent.name, {}) if stage == "draft" else {}
    for block in iterate_blocks(path.data, SCORES):
        rows += block.num_rows
        for row in _cells(block, ("iteration", "stage", "problem_id", "group_id", "sample_id", "reward")):
            which = f"sample {row['sample_id']} of group {row['group_id']}"
            if (row["iteration"], row["stage"]) != (path.iteration, stage):
                yield f"{which} is of {row['stage']} in iteration {row['iteration']}"
            if stage not in known.unread and groups.get(row["group_id"]) != row["problem_id"]:
                yield f"{which} is of the problem {row['problem_id']}, which its completion is not"
            rewards[row["group_id"], row["sample_id"]] = row["reward"]
    yield from _count("rows", rows, manifest.data.rows)


def read_selections(path: ShardPath, manifest: Manifest, known: IterationRows) -> Iterator[str]:
    """Read a shard of selections into `known` and yield what is wrong with it."""
    groups = known.groups.setdefault(path.stage, {})
    scores = manifest.identity.config.get("select", {}).get("scores")
    rows = 0
    for block in iterate_blocks(path.data, SELECTIONS):
        for row in _cells(block, SELECTIONS.names):
            rows += 1
            group_id = row["group_id"]
            if group_id in groups:
                yield f"group {group_id} stands twice"
            if row["iteration"] != path.iteration:
                yield f"group {group_id} is of iteration {row['iteration']}"
            groups[group_id] = row["problem_id"]
            known.selections[group_id] = Chosen(
                row["problem_id"], row["action"], row["draft_sample_id"], row["num_refinements"]
            )
            if "draft" not in known.unread:
                yield from _check_selection(row, known, scores)
    yield from _count("rows", rows, manifest.data.rows)


def read_metrics(path: ShardPath, manifest: Manifest) -> Iterator[str]:
    """Read the metrics of an update, for their checksums, and yield what is wrong with them."""
    rows = sum(block.num_rows for block in iterate_blocks(path.data, METRICS))
    yield from _count("rows", rows, manifest.data.rows)


def read_shard(path: ShardPath, manifest: Manifest, known: IterationRows) -> Iterator[str]:
    """Read the data file of any stage and yield what is wrong with it."""
    if path.stage == "update":
        return read_metrics(path, manifest)
    read = read_selections if path.stage == "select" else read_rollouts
    return read(path, manifest, known)


def check_stage(stage: str, known: IterationRows) -> Iterator[str]:
    """Yield what is wrong with a stage as a whole, after all of its shards are read."""
    groups = list(known.groups.get(stage, {}))
    if stage in ("draft", "eval"):
        if groups != list(range(len(groups))):
            wrong = next(place for place, group_id in enumerate(groups) if place != group_id)
            yield f"its groups do not count on from 0: group {groups[wrong]} stands in place {wrong}"
        return
    source = "draft" if stage == "select" else "select"
    if source in known.unread or source not in known.groups:
        return
    expected = [
        group_id
        for group_id in known.groups[source]
        if stage == "select" or known.selections[group_id].action != "drop"
    ]
    if groups != expected:
        missing, further = sorted(set(expected) - set(groups)), sorted(set(groups) - set(expected))
        yield f"its groups are not those of {source}" + (
            f": group {missing[0]} is missing" if missing else f": group {further[0]} is one more" if further else ""
        )


def _check_group(path: ShardPath, group_id: int, rows: list[dict[str, Any]], known: IterationRows) -> Iterator[str]:
    stage, first = path.stage, rows[0]
    if group_id in known.groups[stage]:
        yield f"group {group_id} stands twice"
    known.groups[stage][group_id] = first["problem_id"]
    chosen = known.selections.get(group_id) if stage == "refine" else None
    allocated = None if chosen is None else chosen.num_refinements
    num_samples = known.num_samples.setdefault(stage, len(rows)) if allocated is None else allocated
    samples = [row["sample_id"] for row in rows]
    if samples != list(range(num_samples)):
        yield f"group {group_id} has the samples {_listed(samples)} instead of 0 to {num_samples - 1}"
    for key, wanted in (("iteration", path.iteration), ("stage", stage), ("problem_id", first["problem_id"])):
        strange = next((row[key] for row in rows if row[key] != wanted), wanted)
        if strange != wanted:
            yield f"group {group_id} has a row with {key} {strange} instead of {wanted}"
    if known.problem_ids is not None and first["problem_id"] not in known.problem_ids:
        yield f"group {group_id} is of the problem {first['problem_id']}, which is not in the problems file"
    if stage == "draft":
        known.drafts.update({(group_id, row["sample_id"]): (_digest(row["completion"]), row["reward"]) for row in rows})
    if stage == "refine" and "select" not in known.unread:
        yield from _check_refinements(group_id, rows, known)


def _check_refinements(group_id: int, rows: list[dict[str, Any]], known: IterationRows) -> Iterator[str]:
    chosen = known.selections.get(group_id)
    if chosen is None or chosen.action == "drop":
        yield f"group {group_id} is not one that was selected to be refined"
        return
    if rows[0]["problem_id"] != chosen.problem_id:
        yield f"group {group_id} is of another problem than its selection, {chosen.problem_id}"
    wanted = chosen.draft_sample_id if chosen.action == "condition" else None
    strange = [row["draft_sample_id"] for row in rows if row["draft_sample_id"] != wanted]
    if strange:
        yield f"group {group_id} was refined from draft {strange[0]}, its selection says {wanted}"


def _check_selection(row: dict[str, Any], known: IterationRows, scores: str | None) -> Iterator[str]:
    group_id, source = row["group_id"], (row["draft_group_id"], row["draft_sample_id"])
    what = f"group {group_id} selects draft {source[1]} of group {source[0]}"
    if known.groups.get("draft", {}).get(group_id) != row["problem_id"]:
        yield f"group {group_id} is of the problem {row['problem_id']}, which its drafts are not"
    draft = known.drafts.get(source)
    if source[0] == EXTERNAL_GROUP:
        return
    if draft is None:
        yield f"{what}, which does not exist"
    elif (draft[0], _reward_of(source, known, scores)) != (_digest(row["draft"]), row["draft_reward"]):
        yield f"{what}, but its text or reward is another"


def _reward_of(draft: tuple[int, int], known: IterationRows, scores: str | None) -> float | None:
    """Return the reward of a draft that its selection used; None where it is not known."""
    return known.drafts[draft][1] if scores is None else known.scores.get(scores, {}).get(draft)


def _cells(block: pa.Table, columns: tuple[str, ...] | list[str]) -> Iterator[dict[str, Any]]:
    values = [block.column(name).to_pylist() for name in columns]
    return (dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]


def _count(what: str, found: int, said: int) -> Iterator[str]:
    if found != said:
        yield f"it has {found} {what}, its manifest says {said}"


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (", …" if len(numbers) > 8 else "")


def require_groups(path: ShardPath, found: Sequence[int], expected: Collection[int]) -> None:
    """Raise DamagedFileError, naming shard and group, unless `found` are the groups `expected`, in order."""
    for group_id, wanted in zip_longest(found, expected):
        if wanted is None:
            raise _damaged(path, f"group {group_id} does not belong there, or stands twice")
        if group_id != wanted:
            raise _damaged(path, f"group {wanted} is missing, or not in its place")


def require_problems(path: ShardPath, selections: Sequence[Selection], problems: Sequence[Problem]) -> None:
    """Raise ConflictError, naming shard and group, where a selection is not of the problem of its group.

    `problems` are those of the iteration, at the positions that are their group ids.
    """
    for selection in selections:
        problem_id = problems[selection.group_id].problem_id
        if selection.problem_id != problem_id:
            raise ConflictError(
                f"{path.name} ({path.data}): group {selection.group_id} is of problem {selection.problem_id!r} there, "
                f"and of {problem_id!r} by run.seed and the problems of the run",
                hint="`igrpo verify` says what changed; restore that, or make draft and select again with --overwrite",
            )


def require_whole(path: ShardPath, rows: Sequence[Rollout], expected: Mapping[int, int]) -> None:
    """Raise DamagedFileError unless each group has the `expected` number of samples, in order, and no other."""
    wanted = ((group_id, sample) for group_id, number in expected.items() for sample in range(number))
    what = _first_difference(((row.group_id, row.sample_id) for row in rows), wanted)
    if what is not None:
        raise _damaged(path, what)


def require_planned(path: ShardPath, block: int, found: Iterable[RowId], requested: Iterable[RowId]) -> None:
    """Raise IgrpoError, naming shard and sample, unless the rows of a block are the requested ones, in order.

    For a shard that is not published yet.
    """
    what = _first_difference(found, requested)
    if what is not None:
        raise IgrpoError(
            f"{path.name} is not published, block {block} is not what was asked for: {what}",
            hint=f"`{path.command}` samples that block again and goes on; finished blocks are kept",
        )


def _first_difference(found: Iterable[RowId], wanted: Iterable[RowId]) -> str | None:
    """Return what is wrong with the rows; None where they are the expected ones, in order."""
    for row, which in zip_longest(found, wanted):
        if which is None:
            return f"a row too many in group {row[0]}"
        if row != which:
            return f"sample {which[1]} of group {which[0]} is missing"
    return None


def _damaged(path: ShardPath, what: str) -> DamagedFileError:
    return DamagedFileError(
        f"{path.data}: {what}",
        hint=f"`{path.overwrite_command}` makes the shard again; `{command_line(path.root, 'verify')}` checks all",
    )
