"""The loop over the shards of a stage: skip what is complete, yield what is to be made, report both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from igrpo_cli.errors import ConflictError, MissingInputError
from igrpo_cli.pipeline.provenance import Provenance
from igrpo_cli.pipeline.session import Session, StageRequest
from igrpo_cli.records import StageReport
from igrpo_cli.store.atomic import clear_directory, remove_stale_temporaries
from igrpo_cli.store.completion import adopt_shard, commit_shard, completed
from igrpo_cli.store.layout import PART_FILES, ShardPath, format_shards
from igrpo_cli.store.lineage import require_current
from igrpo_cli.store.manifest import DataFile, Identity, Manifest, read_manifest


@dataclass(frozen=True)
class StagePlan:
    """Describes where the shards of a stage lie, and what decides their rows."""

    stage: str
    path_of: Callable[[int], ShardPath]
    """Return the path of a shard by its number."""
    inputs_of: Callable[[ShardPath], Sequence[ShardPath]]
    """Return the input shards of a shard."""
    policy_id: str | None = None
    """The policy that is sampled from or trained; None where no policy takes part."""
    template_sha256: str | None = None
    config: Mapping[str, Mapping[str, Any]] | None = None
    """What the rows follow from besides the inputs; None means the settings of the stage (`config.STAGE_READS`)."""
    may_add_to: Callable[[Manifest, Identity], bool] = lambda manifest, identity: False
    """Return True if all rows of a complete shard are rows of the shard with this identity too."""


@dataclass(frozen=True)
class UnfinishedShard:
    """A shard to make: where it goes, what its rows follow from, and when the work on it began."""

    path: ShardPath
    identity: Identity
    overwrite: bool
    adds_to: bool = False
    """True where a complete shard has a part of the rows. It stays until it is replaced by all of them."""
    provenance: Provenance = field(default_factory=Provenance)


class StageShards:
    """The requested shards of one stage.

    `unfinished` yields the shards that are to be made, `add` counts those that are, and `report` says what all of
    them add up to.
    """

    def __init__(self, session: Session, request: StageRequest, plan: StagePlan) -> None:
        self.session = session
        self.request = request
        self.plan = plan
        self._missing: list[int] = []
        self._counts: Counter[str] = Counter()
        self._report = StageReport(plan.stage, request.iteration, shards=len(request.shards))

    def unfinished(self, shards: Iterable[int] | None = None) -> Iterator[UnfinishedShard]:
        """Yield each requested shard that is to be made, and count the others. A dry run yields none.

        `shards` are some of the requested ones; None means all.

        Raises ConflictError for a shard with another identity and for inputs that are stale, and MissingInputError
        where an input does not exist.
        """
        for number in self.request.shards if shards is None else shards:
            shard = self._open(number)
            if shard is not None:
                yield shard

    def commit(
        self, shard: UnfinishedShard, schema: Any, rows: Callable[[Counter[str]], Iterator[Sequence[Any]]]
    ) -> None:
        """Write the rows of a shard and its manifest, and count it.

        `schema` is one of `store.schema`. `rows` yields the rows group by group and fills the counts of the manifest.
        It is called again where another task published the same file first.
        """
        from igrpo_cli.store.tables import write_rows

        counts: Counter[str] = Counter()

        def write(replace: bool) -> DataFile:
            counts.clear()
            return write_rows(shard.path.data, schema, rows(counts), replace=replace)

        def describe(data: DataFile) -> Manifest:
            return shard.provenance.manifest(shard.identity, data, counts=counts)

        self.add(commit_shard(shard.path, shard.identity, write, describe, overwrite=shard.overwrite))

    def is_of_this_launch(self, number: int) -> bool:
        """Return True for a shard that a rank of this launch of torchrun has made."""
        launch = self.session.launch
        return launch is not None and launch.is_claimed(self.plan.path_of(number).relative)

    def add(self, manifest: Manifest) -> None:
        """Count a complete shard."""
        self._report.rows += manifest.data.rows
        self._report.groups += manifest.data.groups
        self._report.tokens += manifest.tokens
        self._counts.update({name: int(value) for name, value in manifest.counts.items()})

    def report(self) -> StageReport:
        """Return what the stage adds up to so far."""
        self._report.details = {"missing_shards": format_shards(self._missing), **self._counts}
        return self._report

    def identity_of(self, path: ShardPath) -> Identity:
        """Return the current identity of a shard. Raises MissingInputError where an input does not exist."""
        return Identity(
            stage=path.stage,
            iteration=path.iteration,
            shard=path.shard,
            num_shards=path.num_shards,
            config=self.plan.config or self.session.stage_identity(path.stage),
            policy=self.plan.policy_id,
            template_sha256=self.plan.template_sha256,
            inputs=self.session.inputs(*self.plan.inputs_of(path)),
        )

    def _open(self, number: int) -> UnfinishedShard | None:
        path = self.plan.path_of(number)
        try:
            identity = self.identity_of(path)
        except MissingInputError:
            if not self.request.dry_run:
                raise
            self._missing.append(number)
            return None
        manifest, adds_to = None, False
        if not self.request.overwrite:
            try:
                manifest = completed(path, identity, self.session.console.note)
            except ConflictError:
                adds_to = self.plan.may_add_to(read_manifest(path), identity)
                if not adds_to:
                    raise
        # After `completed`: where the shard itself was made from another input, that is the nearer cause.
        require_current(self.session.run, identity.inputs)
        may_adopt = not (self.request.overwrite or self.request.dry_run or adds_to)
        if manifest is None and may_adopt and path.iteration == 0:
            # Later policies of other runs are other policies.
            manifest = adopt_shard(path, identity, self.session.related_runs)
        if manifest is not None:
            if not self.request.dry_run:
                # A task that was killed, or that was late with its last block, may have left some.
                clear_directory(path.parts, PART_FILES)
            self._report.skipped += not self.is_of_this_launch(number)
            self.add(manifest)
            return None
        self._missing.append(number)
        if self.request.dry_run:
            return None
        remove_stale_temporaries(path.data.parent)
        return UnfinishedShard(path, identity, self.request.overwrite, adds_to)
