"""The loop that every sharded stage goes through: skip what is finished, make what is not, report both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from igrpo_cli.errors import MissingInputError
from igrpo_cli.records import StageReport
from igrpo_cli.session import StageRequest
from igrpo_cli.shards.finishing import finished
from igrpo_cli.shards.identity import Identity
from igrpo_cli.shards.layout import ShardPath, format_shards
from igrpo_cli.shards.manifest import Manifest
from igrpo_cli.shards.publish import remove_stale_temporaries


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
    make: MakeShard


def work_through(work: ShardWork, request: StageRequest, note: Callable[[str], None]) -> StageReport:
    """Make those of the requested shards that are not finished; with `dry_run` only say which they are.

    Raises ConflictError for a shard made from something else, MissingInputError where an input is not there.
    """
    report = StageReport(work.stage, request.iteration, shards=len(request.shards))
    counts: Counter[str] = Counter()
    missing = []
    for shard in request.shards:
        manifest = _finished(work, work.path_of(shard), request, note)
        if manifest is not None:
            report.skipped += 1
        else:
            missing.append(shard)
            if request.dry_run:
                continue
            path = work.path_of(shard)
            remove_stale_temporaries(path.data.parent)
            manifest = work.make(path, work.identity_of(path), overwrite=request.overwrite)
        report.rows += manifest.data.rows
        report.groups += manifest.data.groups
        report.tokens += manifest.tokens
        counts.update({name: int(value) for name, value in manifest.counts.items()})
    report.details = {"missing_shards": format_shards(missing), **counts}
    return report


def _finished(work: ShardWork, path: ShardPath, request: StageRequest, note: Callable[[str], None]) -> Manifest | None:
    try:
        identity = work.identity_of(path)
    except MissingInputError:
        if request.dry_run:
            return None
        raise
    return None if request.overwrite else finished(path, identity, note)
