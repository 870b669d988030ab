"""Check that policies and shards still descend from what is on disk, and find the newest policy."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from igrpo_cli.errors import ConflictError, IgrpoError, MissingInputError
from igrpo_cli.store.checksummed_json import (
    STRICT,
    Count,
    PolicyId,
    Text,
    publish_checksummed,
    read_checksummed,
    validated,
)
from igrpo_cli.store.completion import input_hashes, require_completed
from igrpo_cli.store.conflicts import require_same
from igrpo_cli.store.layout import STAGES, RunDirectory, ShardPath, eval_iteration, shards_in
from igrpo_cli.store.manifest import FileHash, Manifest, read_manifest
from igrpo_cli.store.policies import Policy, read_policy

_VERSION = "fork_version", 1


@dataclass(config=STRICT, frozen=True)
class Fork:
    """Where a run was forked from: all before this stage of this iteration is shared."""

    parent: Text
    """Directory of the run, absolute."""
    iteration: Count
    stage: Text
    """The first stage of the run's own."""
    policy: PolicyId
    """Id of the policy of the iteration."""


_FORK = TypeAdapter(Fork)


def write_fork(run: RunDirectory, fork: Fork) -> None:
    """Publish where a run was forked from."""
    key, version = _VERSION
    publish_checksummed(run.fork, {key: version, **asdict(fork)})


def read_fork(run: RunDirectory) -> Fork | None:
    """Return where a run was forked from; None for a run that `igrpo init` made. Raises as `read_checksummed`."""
    if not run.fork.exists():
        return None
    return validated(run.fork, _FORK, read_checksummed(run.fork, *_VERSION))


def shared_policies(a: RunDirectory, b: RunDirectory) -> int | None:
    """Return the last policy up to which two runs have the same ones; None where none or all are the same."""
    shared = None
    for iteration in sorted({*a.policy_iterations()} & {*b.policy_iterations()}):
        try:
            if read_policy(a, iteration).id != read_policy(b, iteration).id:
                return shared
        except IgrpoError:
            return shared
        shared = iteration
    return None


def changed_parent(run: RunDirectory, fork: Fork) -> str | None:
    """Return in one sentence how the parent of a forked run differs by now; None where it does not, or is gone."""
    parent = RunDirectory(Path(fork.parent))
    if not parent.run_toml.exists():
        return None
    try:
        now = read_policy(parent, fork.iteration).id
    except MissingInputError:
        return None
    except IgrpoError as error:
        return error.message
    return None if now == fork.policy else f"policy {fork.iteration} of {fork.parent} is another one now"


def require_lineage(run: RunDirectory, policy: Policy, known: Collection[str] = ()) -> None:
    """Raise ConflictError where an ancestor of `policy` was replaced since.

    Ancestors that were removed to save space are skipped. The ancestors of the policies in `known` are not read again.
    """
    after: Policy | None = policy
    for iteration in reversed(range(policy.iteration)):
        if after is not None and after.id in known:
            return
        try:
            before = read_policy(run, iteration)
        except MissingInputError:
            after = None
            continue
        if after is not None and after.parent != before.id:
            parent = "no policy" if after.parent is None else f"{after.parent[:15]}…"
            raise ConflictError(
                f"{after.directory} was not made from the policy that is in {before.directory} now "
                f"({parent} then, {before.id[:15]}… now)",
                hint=f"{run.update(iteration).shard.overwrite_command} makes it again; then make what follows from it",
            )
        after = before


def unpromoted_policies(run: RunDirectory) -> list[int]:
    """Return the policies that still lie in the update that made them, because a command was killed."""
    return [iteration + 1 for iteration in run.iterations() if run.update(iteration).policy.is_dir()]


def newest_policy(run: RunDirectory) -> int:
    """Return the number of the newest policy, promoted or not; 0 where there is none."""
    return max([*run.policy_iterations(), *unpromoted_policies(run)], default=0)


_SHARD = re.compile(r"(.+)/shard-([0-9]{5,9})-of-([0-9]{5,9})\.parquet")
_OF_ITERATION = re.compile(r"iteration_([0-9]{4,9})/(draft|select|refine|update)")
_OF_BENCH = re.compile(r"eval/([^/]+)")


def require_current(run: RunDirectory, inputs: Iterable[FileHash]) -> None:
    """Raise ConflictError for a stale shard among `inputs` and their ancestors: one whose own input was replaced.

    The error names the stale shard that the others follow from. Each manifest is read once, and no data. Files that
    were removed are skipped, and so are sets of scores, which `open_scores` compares. The inputs of an update among
    `inputs` are checked; of earlier updates only the hash is compared.
    """
    walk = _Walk(run)
    for file in inputs:
        walk.follow(file.path)


def first_stale(run: RunDirectory, num_iterations: int, num_ahead: int) -> tuple[int, ConflictError] | None:
    """Return the first complete iteration that does not follow from what is on disk, and the error about it.

    `num_ahead` is `run.staleness`.

    A file that was written after those that follow from it is a reason to look; what decides is the hashes. So a run
    of hundreds of iterations takes no time, unless its files have other times because they were copied.
    """
    before = 0
    for iteration in range(num_iterations):
        update = run.update(iteration)
        if not update.manifest.exists():
            return None
        stages = [_times(run.stage(iteration, stage)) for stage in STAGES]
        # Drafts and selections may be older than the update before (`run.staleness`).
        ahead = 2 if num_ahead and iteration else 0
        times = [each for each in (*stages[:ahead], [before], *stages[ahead:]) if each]
        if any(max(earlier) >= min(later) for earlier, later in pairwise(times)):
            try:
                require_updated_from(run, iteration)
            except ConflictError as error:
                return iteration, error
            except IgrpoError:
                pass  # Damaged and missing files are found by those who read them.
        before = max(times[-1])
    return None


def require_updated_from(run: RunDirectory, iteration: int) -> None:
    """Raise ConflictError where the update of an iteration was made from another policy or other shards."""
    path = run.update(iteration).shard
    then = require_completed(path).identity
    policy = then.policy
    with suppress(MissingInputError):  # A policy may have been removed to save space.
        policy = read_policy(run, iteration).id
    require_same(then, replace(then, policy=policy), path.overwrite_command)
    require_current(run, [FileHash(path.relative, require_completed(path).data.sha256)])


def followers(run: RunDirectory, iteration: int, stage: str) -> list[Path]:
    """Return the directories of what follows from a stage: later stages, iterations, policies and their evaluations.

    The last ones come first, so that a run from which only some are removed is a shorter one.
    """
    later_stages = STAGES[STAGES.index(stage) + 1 :]
    first_policy = iteration + (2 if stage == "update" else 1)
    evaluated = [each for each in run.root.glob("eval/*/policy_*") if each.is_dir()]
    found = [each for each in evaluated if eval_iteration(each) > iteration]
    for later in (each for each in reversed(run.iterations()) if each > iteration):
        is_ahead = later == iteration + 1 and is_sampled_ahead(run, later)
        found += [run.stage(later, "update"), run.stage(later, "refine")] if is_ahead else [run.iteration(later)]
    found += [run.policy(each) for each in reversed(run.policy_iterations()) if each >= first_policy]
    found += [run.delta(each) for each in reversed(run.delta_iterations()) if each >= first_policy]
    found += [run.stage(iteration, each) for each in reversed(later_stages)]
    found += [run.update(iteration).checkpoints]
    return [each for each in found if each.is_dir()]


def is_sampled_ahead(run: RunDirectory, iteration: int) -> bool:
    """Return True where the drafts of an iteration come from the policy before (`run.staleness`)."""
    directory = run.stage(iteration, "draft")
    try:
        before = read_policy(run, iteration - 1).id
        paths = [run.shard(iteration, "draft", *shard) for shard in shards_in(directory)]
        sampled = {read_manifest(path).identity.policy for path in paths if path.manifest.exists()}
    except IgrpoError:  # Damaged and missing files are found by those who read them.
        return False
    return sampled <= {before} and directory.is_dir()


def stale_followers(run: RunDirectory, iteration: int, stage: str, num_shards: int) -> list[Path]:
    """Return `followers` of a stage that was made again, as far as they do not follow from it any more."""
    later_stages = STAGES[STAGES.index(stage) + 1 : -1]
    paths = [path for later in later_stages for path in run.shards(iteration, later, num_shards)]
    try:
        require_current(run, input_hashes(*(path for path in paths if path.manifest.exists())))
        if run.update(iteration).manifest.exists():
            require_updated_from(run, iteration)
            after = read_policy(run, iteration + 1)
            sampled = [
                (path.stage, read_manifest(path).identity.policy)
                for later in ("draft", "refine")
                for path in run.shards(iteration + 1, later, num_shards)
                if path.manifest.exists()
            ]
            # Drafts that were sampled ahead (`run.staleness`) are from the policy before.
            if any(policy not in (after.id, after.parent if each == "draft" else None) for each, policy in sampled):
                return followers(run, iteration, stage)
    except ConflictError:
        return followers(run, iteration, stage)
    except IgrpoError:
        pass
    return []


def _times(directory: Path) -> list[int]:
    """Return when the manifests of a stage were written, in nanoseconds."""
    if not directory.is_dir():
        return []
    with os.scandir(directory) as entries:
        return [entry.stat().st_mtime_ns for entry in entries if entry.name.endswith(".json")]


class _Walk:
    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._seen: dict[str, str | None] = {}

    def follow(self, relative: str, *, is_earlier: bool = False) -> str | None:
        """Return the hash of a file from its manifest, after checking the ancestors of the file.

        Returns None where there is no such shard. For an update with `is_earlier` only the hash is read.
        """
        if relative not in self._seen:
            path = _shard_at(self._run, relative)
            manifest = require_completed(path) if path is not None and path.manifest.exists() else None
            self._seen[relative] = None if manifest is None else manifest.data.sha256
            if path is not None and manifest is not None and not (is_earlier and path.stage == "update"):
                self._require_current(path, manifest)
        return self._seen[relative]

    def _require_current(self, path: ShardPath, manifest: Manifest) -> None:
        then = manifest.identity
        found = [(file, self.follow(file.path, is_earlier=True)) for file in then.inputs]
        now = [file if sha256 is None else FileHash(file.path, sha256) for file, sha256 in found]
        require_same(then, replace(then, inputs=now), path.overwrite_command)


def _shard_at(run: RunDirectory, relative: str) -> ShardPath | None:
    """Return the shard with this data file; None for sets of scores and for other files."""
    if relative == run.problems().relative:
        return run.problems()
    directory, _, name = relative.rpartition("/")
    of_iteration, of_bench = _OF_ITERATION.fullmatch(directory), _OF_BENCH.match(directory)
    if of_bench is not None and name == run.problems().data.name:
        return run.eval_problems(of_bench[1])
    if of_iteration is not None and of_iteration[2] == "update":
        return run.update(int(of_iteration[1])).shard
    shard = _SHARD.fullmatch(relative)
    if shard is None or int(shard[2]) >= int(shard[3]):
        return None
    if of_iteration is not None:
        return run.shard(int(of_iteration[1]), of_iteration[2], int(shard[2]), int(shard[3]))
    return None if of_bench is None else run.eval_shard_in(run.root / directory, int(shard[2]), int(shard[3]))
