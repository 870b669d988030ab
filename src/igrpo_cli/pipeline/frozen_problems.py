"""Keep the problems of a run or an evaluation in a file of their own, so that the source may change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from igrpo_cli.pipeline.provenance import Provenance
from igrpo_cli.records import Problem
from igrpo_cli.store.atomic import remove_stale_temporaries
from igrpo_cli.store.completion import commit_shard, write_problems
from igrpo_cli.store.layout import ShardPath
from igrpo_cli.store.manifest import Identity


def freeze_problems(
    path: ShardPath,
    problems: Sequence[Problem],
    made_from: Mapping[str, Mapping[str, Any]],
    counts: Mapping[str, int],
    *,
    policy: str | None = None,
    revision: str | None = None,
    overwrite: bool = False,
) -> None:
    """Publish `problems`, unless they exist already.

    `made_from` names their source, and `policy` the policy whose tokenizer selected them. `revision` is the commit of a
    Hub dataset; it is recorded but does not decide the file, since a later commit with the same problems is no
    conflict.

    Raises ConflictError where the file was made from another source.
    """
    provenance = Provenance()
    remove_stale_temporaries(path.data.parent)
    read_from = {} if revision is None else {"problems": revision}
    identity = Identity("problems", path.iteration, path.shard, path.num_shards, made_from, policy)
    commit_shard(
        path,
        identity,
        lambda replace: write_problems(path, problems, replace=replace),
        lambda data: provenance.manifest(identity, data, engine_versions=read_from, counts=counts),
        overwrite=overwrite,
    )
