"""What every sharded stage goes through: skip what is finished, make what is not, report both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from igrpo_cli.errors import MissingInputError
from igrpo_cli.pipeline.session import StageRequest
from igrpo_cli.records import Rollout, StageReport
from igrpo_cli.store.atomic import remove_stale_temporaries
from igrpo_cli.store.completion import completed
from igrpo_cli.store.layout import RunDirectory, ShardPath, format_shards
from igrpo_cli.store.lineage import require_current
from igrpo_cli.store.manifest import Identity, Manifest

NOTES_OF_A_KIND = 3
"""How often the same reason why a row is ungraded is told of one shard."""


class MakeShard(Protocol):
    """Makes and publishes one shard; with `overwrite` it takes the place of a finished one."""

    def __call__(self, path: ShardPath, identity: Identity, *, overwrite: bool) -> Manifest: ...


@dataclass(frozen=True)
class ShardWork:
    """One stage, cut into shards."""

    stage: str
    path_of: Callable[[int], ShardPath]
    identity_of: Callable[[ShardPath], Identity]
    """What a shard is made from now; raises MissingInputError where an input is not there yet."""


class UngradedNotes:
    """Says which rows of a shard could not be graded, and why; the manifest counts those that are not told."""

    def __init__(self, shard: str, note: Callable[[str], None]) -> None:
        self._shard = shard
        self._note = note
        self._told: Counter[str] = Counter()

    def __call__(self, row: Rollout, reason: str) -> None:
        """Tell of one row, unless the same reason was told `NOTES_OF_A_KIND` times."""
        self._told[reason] += 1
        if self._told[reason] <= NOTES_OF_A_KIND:
            which = f"sample {row.sample_id} of group {row.group_id} (problem {row.problem_id})"
            self._note(f"{self._shard}: {which} is ungraded: {reason}")


class StageLedger:
    """The requested shards of one stage: which are to be made, and what all of them come to."""

    def __init__(self, work: ShardWork, request: StageRequest, note: Callable[[str], None]) -> None:
        self._work = work
        self._request = request
        self._note = note
        self._missing: list[int] = []
        self._counts: Counter[str] = Counter()
        self._report = StageReport(work.stage, request.iteration, shards=len(request.shards))

    def take(self, shard: int) -> tuple[ShardPath, Identity] | None:
        """The shard to be made, or None: it is finished (and counted), or this is a dry run (and it is missing).

        Raises ConflictError for a shard made from something else and for inputs that are stale, MissingInputError
        where an input is not there.
        """
        path = self._work.path_of(shard)
        try:
            identity = self._work.identity_of(path)
        except MissingInputError:
            if not self._request.dry_run:
                raise
            self._missing.append(shard)
            return None
        manifest = None if self._request.overwrite else completed(path, identity, self._note)
        # After it: where the shard itself has an input too many or another one, that is the nearer cause.
        require_current(RunDirectory(path.root), identity.inputs)
        if manifest is not None:
            self._report.skipped += 1
            self.add(manifest)
            return None
        self._missing.append(shard)
        if self._request.dry_run:
            return None
        remove_stale_temporaries(path.data.parent)
        return path, identity

    def add(self, manifest: Manifest) -> None:
        """Count a finished shard."""
        self._report.rows += manifest.data.rows
        self._report.groups += manifest.data.groups
        self._report.tokens += manifest.tokens
        self._counts.update({name: int(value) for name, value in manifest.counts.items()})

    def report(self) -> StageReport:
        """What the stage came to so far."""
        self._report.details = {"missing_shards": format_shards(self._missing), **self._counts}
        return self._report


def work_through(work: ShardWork, make: MakeShard, request: StageRequest, note: Callable[[str], None]) -> StageReport:
    """Make those of the requested shards that are not finished, one by one; with `dry_run` only say which they are.

    Raises as `StageLedger.take`.
    """
    ledger = StageLedger(work, request, note)
    for shard in request.shards:
        todo = ledger.take(shard)
        if todo is not None:
            ledger.add(make(*todo, overwrite=request.overwrite))
    return ledger.report()
