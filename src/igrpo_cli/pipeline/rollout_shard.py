"""One shard of rollouts that is being made: which of its blocks are to be sampled, and from their rows to its file.

A block that is done is kept as a part file, so an interrupted shard is completed and not begun again. Several tasks
may work on one shard: a task claims the blocks that it samples, and takes the others' parts as they come.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from igrpo_cli.errors import ConflictError, DamagedFileError, IgrpoError, MissingInputError
from igrpo_cli.pipeline.stage_shards import UnfinishedShard
from igrpo_cli.pipeline.ungraded import UngradedNotes
from igrpo_cli.records import Proposals, Rollout
from igrpo_cli.rollouts import BlockJob, RolloutTask
from igrpo_cli.store.completion import commit_shard, completed, open_input
from igrpo_cli.store.manifest import Manifest

if TYPE_CHECKING:
    from igrpo_cli.pipeline.rollout_stage import RolloutStage
    from igrpo_cli.store.manifest import DataFile
    from igrpo_cli.store.parts import RowId

SECONDS_BETWEEN_LOOKS = 0.2
"""How often a rank of torchrun looks for what other ranks have sampled."""


@dataclass(frozen=True)
class Block:
    """A batch of groups: the unit of sampling and of resumption."""

    shard: RolloutShard
    number: int
    groups: range
    """Ids of the groups."""
    is_done: bool = False
    is_elsewhere: bool = False
    """True where another rank of torchrun samples it."""

    def sample_and_grade(self, tasks: Sequence[RolloutTask]) -> None:
        """Hand the prompts of the block's groups to the sampler, in order, unless the block is done."""
        self.shard.sample_and_grade(self, tasks)


class RolloutShard:
    """Represents a shard of rollouts that is being made. Its blocks are kept as parts, and all parts make the file.

    The shard of another task (`is_own` False) yields the blocks that no task has begun, and is not committed here.
    Where the shard adds to one on disk, rows that are there are not sampled again, and are scored again only for
    reward functions of whole groups. Each part has all rows of its block: it is complete without the old file.

    The ranks of torchrun claim blocks in its store (`Launch.claim`), where no claim is left of a launch that failed. A
    rank waits for the blocks of the others, and one of them commits the shard.
    """

    def __init__(self, stage: RolloutStage, shard: UnfinishedShard, blocks: range, *, is_own: bool = True) -> None:
        from igrpo_cli.store.parts import PartStore

        self.path = shard.path
        self._stage, self._shard, self._blocks, self._is_own = stage, shard, blocks, is_own
        self._parts = PartStore(shard.path.parts, shard.identity.sha256())
        self._missing = set(blocks)
        self._in_progress: set[int] = set()
        self._elsewhere: set[int] = set()
        """Missing blocks that other ranks sample."""
        self._looked_at = 0.0
        self._launch = stage.session.launch
        self._expected: dict[int, list[tuple[int, Sequence[int]]]] = {}
        """The group and the sample ids of each task of a block."""
        self._num_truncated = 0
        self._note_ungraded = UngradedNotes(shard.path, stage.session.console.note)

    @property
    def is_complete(self) -> bool:
        """True where every block is kept, or another task has completed the shard."""
        if self._elsewhere and self._may_look():
            self._look_elsewhere()
        return not self._missing

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks whose prompts are needed: first those that no other task has claimed, then the others."""
        if not self._is_own:
            yield from self._blocks_nobody_has_begun()
            return
        if self._shard.overwrite:
            # A scorer or engine that cannot start must not cost anything that exists.
            self._stage.session.scorer()
            self._stage.session.engine(self._stage.plan.policy)
            if self._is_made_again():
                self._parts.clear()
        claimed_by_others = []
        for number in self._blocks:
            self._stage.make_room()
            if self._stop_if_complete_elsewhere():
                return
            if self._parts.has(number):
                yield self._block(number, is_done=True)
            elif not self._claim(number):
                claimed_by_others.append(number)
            elif self._launch and self._stop_if_complete_elsewhere():
                return  # Its parts were there before this launch, and were removed since `has` looked.
            else:
                yield self._block(number)
        for number in claimed_by_others:
            if self._launch:
                yield self._block(number, is_elsewhere=True)
                continue
            self._stage.make_room()
            if self._stop_if_complete_elsewhere():
                return
            yield self._block(number, is_done=self._parts.has(number))

    def sample_and_grade(self, block: Block, tasks: Sequence[RolloutTask]) -> None:
        """Sample a block of this shard, unless it is done."""
        self._expected[block.number] = [(task.group_id, task.sample_ids) for task in tasks]
        self._num_truncated += sum(task.draft_truncated for task in tasks)
        if block.is_elsewhere:
            self._elsewhere.add(block.number)
            return
        if block.is_done:
            self._missing.discard(block.number)
            was_done_before = self._launch is None or not self._launch.is_claimed(self._name_of(block.number))
            (self._stage.progress.skip if was_done_before else self._stage.progress.advance)()
            return
        self._in_progress.add(block.number)
        existing = self._existing_rows(block, tasks) if self._shard.adds_to else {}
        # A function that is called with whole groups may value every completion by the new ones.
        is_batched = bool(existing) and any(
            each.is_batched for each in self._stage.session.grader().signatures.values()
        )
        missing = [task.without(existing, score_again=is_batched) for task in tasks] if existing else tasks
        keep = partial(self._keep, block.number, existing)
        self._stage.sampler.submit(BlockJob(self._stage.plan.sampling, missing, keep, self._note_ungraded))

    def commit(self) -> Manifest | None:
        """Make the file of the shard from its parts; return the manifest that exists then, maybe another task's.

        Returns None while another rank makes it. Raises IgrpoError where a part holds other rows than were requested.
        Then nothing is published and the part is removed.
        """
        if self._launch and not self._launch.claim(self.path.relative):
            return self._complete_elsewhere() if self._may_look() else None
        # Before anything is removed: an engine that cannot start must not cost a shard that exists.
        self._stage.session.engine(self._stage.plan.policy)

        def write(replace: bool) -> DataFile:
            return self._parts.assemble(self.path.data, self._blocks, replace, self._require_requested)

        shard = self._shard
        replaces = shard.overwrite or (shard.adds_to and not self._is_complete_elsewhere())
        manifest = commit_shard(shard.path, shard.identity, write, self._describe, overwrite=replaces)
        self._parts.clear()
        return manifest

    def _blocks_nobody_has_begun(self) -> Iterator[Block]:
        """Yield blocks from the end of the shard, which its own task reaches last."""
        for number in reversed(self._blocks):
            self._stage.make_room()
            if self._is_complete_elsewhere():
                return
            if not self._parts.has(number) and self._parts.claim(number):
                yield self._block(number)

    def _block(self, number: int, *, is_done: bool = False, is_elsewhere: bool = False) -> Block:
        return Block(self, number, self._stage.plan.blocks.groups(number), is_done, is_elsewhere)

    def _name_of(self, number: int) -> str:
        return f"{self.path.relative} block {number}"

    def _claim(self, number: int) -> bool:
        return self._parts.claim(number) if self._launch is None else self._launch.claim(self._name_of(number))

    def _may_look(self) -> bool:
        """Return True at most every `SECONDS_BETWEEN_LOOKS`, as the engine may take a step in a millisecond."""
        now = time.monotonic()
        if now - self._looked_at < SECONDS_BETWEEN_LOOKS:
            return False
        self._looked_at = now
        return True

    def _look_elsewhere(self) -> None:
        is_complete = self._stop_if_complete_elsewhere()
        done = {number for number in self._elsewhere if is_complete or self._parts.path(number).exists()}
        self._elsewhere -= done
        self._missing -= done
        self._stage.progress.advance(len(done))

    def _existing_rows(self, block: Block, tasks: Sequence[RolloutTask]) -> dict[RowId, Rollout]:
        """Return the requested rows of a block that the shard on disk has, of the same prompt."""
        from igrpo_cli.store.tables import iterate_records

        encode = self._stage.tokenizer.encode_prompt
        try:
            open_input(self.path)
            (rows,) = iterate_records(self.path.data, Rollout, [block.number - self._blocks.start])
        except MissingInputError:
            return {}  # Another task is replacing the file.
        prompts = {
            (task.group_id, sample_id): (task.draft_sample_id, prompt_ids)
            for task, prompt_ids in [(task, encode(task.prompt)[1]) for task in tasks]
            for sample_id in task.sample_ids
        }
        found = {(row.group_id, row.sample_id): row for row in rows}
        return {
            key: row for key, row in found.items() if prompts.get(key) == (row.draft_sample_id, list(row.prompt_ids))
        }

    def _keep(self, number: int, existing: Mapping[RowId, Rollout], rows: list[Rollout], proposals: Proposals) -> None:
        all_rows = {**existing, **{(row.group_id, row.sample_id): row for row in rows}}
        requested = [(group, sample) for group, sample_ids in self._expected[number] for sample in sample_ids]
        self._parts.write(number, [all_rows[each] for each in requested], proposals)
        if not self._is_own and self._is_complete_elsewhere():
            self._parts.clear()
        self._in_progress.discard(number)
        self._missing.discard(number)
        self._stage.progress.advance()

    def _require_requested(self, number: int, found: Iterable[RowId]) -> None:
        from igrpo_cli.store.row_checks import require_planned

        expected = self._expected.get(number)
        if expected is None:
            what = f"{self.path.name} was complete, and was removed while this task worked on it"
            raise IgrpoError(what, hint=f"`{self.path.command}` makes it; the blocks that are done are kept")
        try:
            require_planned(self.path, number, found, ((group, sample) for group, ids in expected for sample in ids))
        except IgrpoError:
            self._parts.discard(number)
            raise

    def _stop_if_complete_elsewhere(self) -> bool:
        """Return True where another task has completed the shard, which then waits only for blocks in progress."""
        if not self._is_complete_elsewhere():
            return False
        self._missing &= self._in_progress
        return True

    def _is_made_again(self) -> bool:
        """Return False where no shard, or one with another identity, is to be replaced.

        Parts of this identity are then the work of the same command, which was stopped. They are kept.
        """
        try:
            return completed(self.path, self._shard.identity) is not None
        except (ConflictError, DamagedFileError):
            return False

    def _is_complete_elsewhere(self) -> bool:
        return self._complete_elsewhere() is not None

    def _complete_elsewhere(self) -> Manifest | None:
        """Return the manifest of the shard if another task has completed it."""
        try:
            return None if self._shard.overwrite else completed(self.path, self._shard.identity)
        except ConflictError:
            if not self._shard.adds_to:
                raise
            return None

    def _describe(self, data: DataFile) -> Manifest:
        from igrpo_cli.store.tables import count_rollouts

        engine = self._stage.session.engine(self._stage.plan.policy)
        counts = count_rollouts(self.path.data)
        counts["truncated_drafts"] = self._num_truncated
        counts.update(self._parts.proposal_counts)
        return self._shard.provenance.manifest(
            self._shard.identity,
            data,
            device=f"{engine.device}, {engine.dtype}",
            engine_versions=engine.versions,
            sampling=engine.tokenizer.with_all_stops(self._stage.plan.sampling.sampling),
            tokens=counts.pop("tokens"),
            counts=counts,
        )
