"""A shard of rollouts while it is being made: its blocks come in as parts, in any order and from any task.

A block that is done is kept as a part file, so an interrupted shard is finished, not begun again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from igrpo_cli.errors import IgrpoError
from igrpo_cli.pipeline.provenance import Provenance
from igrpo_cli.pipeline.session import Session
from igrpo_cli.pipeline.shard_work import UngradedNotes
from igrpo_cli.pipeline.whole_groups import require_planned
from igrpo_cli.records import Rollout, RolloutStage
from igrpo_cli.rollouts import BlockJob, RolloutPlan
from igrpo_cli.store.completion import commit_shard, completed
from igrpo_cli.store.layout import ShardPath
from igrpo_cli.store.manifest import FileHash, Identity, Manifest
from igrpo_cli.store.policies import Policy
from igrpo_cli.ui.progress import Progress

if TYPE_CHECKING:
    from igrpo_cli.engines.tokenization import PolicyTokenizer
    from igrpo_cli.store.manifest import DataFile
    from igrpo_cli.store.parts import RowId


@dataclass(frozen=True)
class ShardedRollouts:
    """The rollouts of one stage and where they go."""

    stage: RolloutStage
    policy: Policy
    num_groups: int
    """Groups of all its shards."""
    path_of: Callable[[int], ShardPath]
    inputs_of: Callable[[int], Sequence[FileHash]]
    """What a shard is made from, as recorded on disk; raises MissingInputError where it is not there yet."""
    plan_of: Callable[[int], RolloutPlan]
    """The plan of a shard, its inputs opened and checked."""
    reads: str | None = None
    """The entry of `config.STAGE_READS` that says which settings decide it; None: that of its stage."""


class OpenShard:
    """A shard that is being made: blocks come in as parts, in any order, and make a file once all are there."""

    def __init__(
        self,
        session: Session,
        work: ShardedRollouts,
        path: ShardPath,
        identity: Identity,
        blocks: range,
        overwrite: bool,
    ) -> None:
        from igrpo_cli.store.parts import PartStore

        self._session, self._work = session, work
        self._path, self._identity, self._blocks, self._overwrite = path, identity, blocks, overwrite
        self._provenance = Provenance()
        self._plan = work.plan_of(path.shard)
        self._parts = PartStore(path.parts, identity.sha256())
        self._missing = set(blocks)
        self._truncated: dict[int, int] = {}
        """Drafts of each block that were cut, counted when its rows are checked: making the prompts takes long."""
        self._note = UngradedNotes(path.name, session.console.note)

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to sample: all blocks are there, or another task has finished the shard."""
        return not self._missing

    def jobs(self, progress: Progress) -> Iterator[BlockJob]:
        """The blocks without a part: first those that no task has claimed, then the rest, whoever works on them."""
        if self._overwrite:
            # What cannot begin must take nothing away that is there.
            self._session.scorer()
            self._session.engine(self._work.policy)
            self._parts.clear()
        claimed_by_others = []
        for block in self._blocks:
            if self._parts.has(block):
                self._missing.discard(block)
                progress.skip()
            elif self._parts.claim(block):
                yield self._job(block, progress)
            else:
                claimed_by_others.append(block)
            if self._is_finished_by_another():
                self._missing.clear()
                return
        for block in claimed_by_others:
            if self._parts.has(block):
                self._missing.discard(block)
                progress.skip()
            else:
                yield self._job(block, progress)

    def jobs_nobody_has_begun(self, progress: Progress) -> Iterator[BlockJob]:
        """Blocks of a shard that another task makes, from its end, where that task arrives last."""
        for block in reversed(self._blocks):
            if self._is_finished_by_another():
                return
            if not self._parts.has(block) and self._parts.claim(block):
                yield self._job(block, progress)

    def publish(self) -> Manifest:
        """Make the shard from its parts; the manifest that is on disk then, be it another task's.

        Raises IgrpoError where a part holds other rows than its plan asks for; nothing is published then, and the
        part is removed.
        """
        # Before anything is withdrawn: an engine that cannot start must not cost a shard that is there.
        tokenizer = self._session.engine(self._work.policy).tokenizer
        check = partial(self._require_planned, tokenizer)

        def write(replace: bool) -> DataFile:
            return self._parts.assemble(self._path.data, self._blocks, replace, check)

        manifest = commit_shard(self._path, self._identity, write, self._describe, overwrite=self._overwrite)
        self._parts.clear()
        return manifest

    def _job(self, block: int, progress: Progress) -> BlockJob:
        def keep(block: int, rows: list[Rollout]) -> None:
            self._parts.write(block, rows)
            self._missing.discard(block)
            progress.advance(tokens=sum(len(row.completion_ids) for row in rows))

        return BlockJob(self._plan, block, keep, self._note)

    def _require_planned(self, tokenizer: PolicyTokenizer, block: int, found: Iterable[RowId]) -> None:
        tasks = self._plan.tasks(self._plan.groups_of(block), tokenizer)
        self._truncated[block] = sum(task.draft_truncated for task in tasks)
        try:
            require_planned(self._path, block, found, tasks)
        except IgrpoError:
            self._parts.discard(block)
            raise

    def _is_finished_by_another(self) -> bool:
        return not self._overwrite and completed(self._path, self._identity) is not None

    def _describe(self, data: DataFile) -> Manifest:
        engine = self._session.engine(self._work.policy)
        counts = _counts(self._path)
        counts["truncated_drafts"] = sum(self._truncated.values())
        return self._provenance.manifest(
            self._identity,
            data,
            device=f"{engine.device}, {engine.dtype}",
            engine_versions=engine.versions,
            sampling=self._plan.sampling,
            tokens=counts.pop("tokens"),
            counts=counts,
        )


def _counts(path: ShardPath) -> Counter[str]:
    """Tokens, verdicts and finish reasons of a shard, from its file: a shard that was resumed counts all its rows."""
    from igrpo_cli.store.schema import ROLLOUTS
    from igrpo_cli.store.tables import iterate_blocks

    counts: Counter[str] = Counter(tokens=0)
    for block in iterate_blocks(path.data, ROLLOUTS, ("completion_ids", "verdict", "finish_reason")):
        counts["tokens"] += sum(map(len, block["completion_ids"].to_pylist()))
        counts.update(f"verdict_{verdict}" for verdict in block["verdict"].to_pylist())
        counts.update(f"finish_{reason}" for reason in block["finish_reason"].to_pylist())
    return counts
