"""The shards of draft, refine and eval: which blocks are to be sampled, and from rows to complete files.

A block that is done is kept as a part file, so an interrupted shard is completed and not begun again. Several tasks
may work on one shard: a task claims the blocks that it samples, and takes the others' parts as they come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from igrpo_cli.config.blocks import Blocks
from igrpo_cli.config.sections import GenerationSection
from igrpo_cli.errors import ConflictError, DamagedFileError, IgrpoError, MissingInputError
from igrpo_cli.pipeline.session import Session, StageRequest
from igrpo_cli.pipeline.stage_shards import StagePlan, StageShards, UnfinishedShard
from igrpo_cli.pipeline.ungraded import UngradedNotes, refuse_ungraded
from igrpo_cli.prompts import template_hash
from igrpo_cli.records import Rollout, StageReport
from igrpo_cli.rollouts import BlockJob, RolloutTask, Sampler, SamplingPlan
from igrpo_cli.store.completion import commit_shard, completed, open_input
from igrpo_cli.store.layout import ShardPath
from igrpo_cli.store.lineage import require_current
from igrpo_cli.store.manifest import Manifest
from igrpo_cli.store.policies import Policy
from igrpo_cli.ui.progress import Progress

if TYPE_CHECKING:
    from igrpo_cli.engines.base import Engine
    from igrpo_cli.engines.tokenization import PolicyTokenizer
    from igrpo_cli.rewards.scorer import Scorer
    from igrpo_cli.store.manifest import DataFile
    from igrpo_cli.store.parts import RowId


@dataclass(frozen=True)
class RolloutPlan:
    """Describes what a stage of rollouts samples, from which policy, and where the rows go."""

    shards: StagePlan
    policy: Policy
    sampling: SamplingPlan
    blocks: Blocks


def training_plan(
    session: Session,
    stage: Literal["draft", "refine"],
    iteration: int,
    inputs_of: Callable[[ShardPath], Sequence[ShardPath]],
) -> RolloutPlan:
    """Return the plan of a stage of training: one group for each problem of the iteration."""
    config, policy = session.config, session.sampling_policy(stage, iteration)
    generation: GenerationSection = getattr(config, stage)
    return RolloutPlan(
        shards=StagePlan(
            stage=stage,
            path_of=lambda shard: session.run.shard(iteration, stage, shard, config.run.num_shards),
            inputs_of=inputs_of,
            policy_id=policy.id,
            template_sha256=template_hash(config.prompts),
        ),
        policy=policy,
        sampling=SamplingPlan(
            stage=stage,
            iteration=iteration,
            sampling=generation,
            seed=config.run.seed,
            seed_names=(stage, iteration),
        ),
        blocks=config.blocks(),
    )


@contextmanager
def open_rollouts(session: Session, request: StageRequest, plan: RolloutPlan) -> Iterator[RolloutStage]:
    """Open a stage of rollouts with a sampler and a progress bar of its own; at the end everything is committed."""
    num_blocks = 0 if request.dry_run else sum(len(plan.blocks.of_shard(shard)) for shard in request.shards)
    title = plan.shards.path_of(0).data.parent.relative_to(session.run.root).as_posix()
    with (
        session.console.progress(title, num_blocks, "blocks") as progress,
        open_sampler(session, plan.policy, progress) as sampler,
    ):
        stage = RolloutStage(session, request, plan, sampler, progress)
        yield stage
        stage.finish()


def open_sampler(session: Session, policy: Policy, progress: Progress) -> Sampler:
    """Return a sampler on the session's engine and graders, which start with the first block."""

    def start() -> tuple[Engine, Scorer]:
        # The scorer first: a reward function that cannot be called fails before minutes of loading.
        scorer = session.scorer()
        return session.engine(policy), scorer

    return Sampler(start, progress)


class RolloutStage:
    """The requested shards of draft, refine or eval.

    `unfinished` yields the shards that are to be sampled. Their blocks go to the sampler, and a shard is committed
    once all of its blocks are kept, which may be while later shards are being sampled.
    """

    def __init__(
        self, session: Session, request: StageRequest, plan: RolloutPlan, sampler: Sampler, progress: Progress
    ) -> None:
        self.session = session
        self.plan = plan
        self.sampler = sampler
        self.progress = progress
        self._request = request
        self._shards = StageShards(session, request, plan.shards)
        self._open: dict[int, RolloutShard] = {}
        self._complete: set[int] = set()

    @property
    def iteration(self) -> int:
        """The iteration of the rollouts."""
        return self._request.iteration

    @property
    def tokenizer(self) -> PolicyTokenizer:
        """The tokenizer of the policy, which starts the engine."""
        return self.session.engine(self.plan.policy).tokenizer

    def unfinished(self, shards: Iterable[int] | None = None) -> Iterator[RolloutShard]:
        """Yield each requested shard that is not complete. Raises as `StageShards.unfinished`.

        `shards` are some of the requested ones, and None means all. With None and `request.take_over`, the shards of
        other tasks follow, as far as they have blocks that no task has begun.
        """
        for number in self._request.shards if shards is None else shards:
            shard = next(self._shards.unfinished([number]), None)
            if shard is None:
                self._complete.add(number)
                self.progress.skip(len(self.plan.blocks.of_shard(number)))
                continue
            self._open[number] = RolloutShard(self, shard, self.plan.blocks.of_shard(number))
            yield self._open[number]
            for earlier in self._open:
                self._commit_if_complete(earlier)
        if shards is None and self._request.take_over and not self._request.dry_run:
            yield from self._shards_of_other_tasks()

    def wait_for(self, shards: Iterable[int]) -> None:
        """Sample until these shards are complete, and commit them."""
        for number in shards:
            self.sampler.sample_until(partial(self._commit_if_complete, number))

    def finish(self) -> None:
        """Sample what was submitted, commit every shard, and refuse the stage if too many rows are ungraded."""
        self.sampler.finish()
        for number in self._open:
            assert self._commit_if_complete(number), "a shard has blocks that nobody samples"
        self.require_graded()

    def require_graded(self) -> None:
        """Raise IgrpoError if too many rows of the complete shards are ungraded."""
        if not self._request.dry_run:
            first = self.plan.shards.path_of(self._request.shards[0])
            shard = "" if first.num_shards == 1 else " --shard SHARD"
            command = first.overwrite_command.replace(f" --shard {first.shard}", shard)
            refuse_ungraded(self.report(), self.session.config.reward.max_ungraded_share, command)

    def report(self) -> StageReport:
        """Return what the stage adds up to so far."""
        return self._shards.report()

    def _commit_if_complete(self, number: int) -> bool:
        if number in self._complete:
            return True
        if not self._open[number].is_complete:
            return False
        self._shards.add(self._open[number].commit())
        self._complete.add(number)
        return True

    def _shards_of_other_tasks(self) -> Iterator[RolloutShard]:
        for number in sorted(set(range(self.session.config.run.num_shards)) - set(self._request.shards)):
            path = self.plan.shards.path_of(number)
            try:
                identity = self._shards.identity_of(path)
                if completed(path, identity) is not None:
                    continue
                require_current(self.session.run, identity.inputs)
            except (MissingInputError, ConflictError, DamagedFileError):
                continue  # The task of that shard reports it.
            shard = UnfinishedShard(path, identity, overwrite=False)
            yield RolloutShard(self, shard, self.plan.blocks.of_shard(number), is_own=False)


@dataclass(frozen=True)
class Block:
    """A batch of groups: the unit of sampling and of resumption."""

    shard: RolloutShard
    number: int
    groups: range
    """Ids of the groups."""
    is_done: bool

    def sample_and_grade(self, tasks: Sequence[RolloutTask]) -> None:
        """Hand the prompts of the block's groups to the sampler, in order, unless the block is done."""
        self.shard.sample_and_grade(self, tasks)


class RolloutShard:
    """Represents a shard of rollouts that is being made. Its blocks are kept as parts, and all parts make the file.

    The shard of another task (`is_own` False) yields the blocks that no task has begun, and is not committed here.
    Where the shard adds to one on disk, rows that are there are not sampled again, and are scored again only for
    reward functions of whole groups. Each part has all rows of its block: it is complete without the old file.
    """

    def __init__(self, stage: RolloutStage, shard: UnfinishedShard, blocks: range, *, is_own: bool = True) -> None:
        from igrpo_cli.store.parts import PartStore

        self.path = shard.path
        self._stage, self._shard, self._blocks, self._is_own = stage, shard, blocks, is_own
        self._parts = PartStore(shard.path.parts, shard.identity.sha256())
        self._missing = set(blocks)
        self._in_progress: set[int] = set()
        self._expected: dict[int, list[tuple[int, Sequence[int]]]] = {}
        """The group and the sample ids of each task of a block."""
        self._num_truncated = 0
        self._note_ungraded = UngradedNotes(shard.path, stage.session.console.note)

    @property
    def is_complete(self) -> bool:
        """True where every block is kept, or another task has completed the shard."""
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
            self._stage.sampler.make_room()
            if self._stop_if_complete_elsewhere():
                return
            if self._parts.has(number):
                yield self._block(number, is_done=True)
            elif self._parts.claim(number):
                yield self._block(number)
            else:
                claimed_by_others.append(number)
        for number in claimed_by_others:
            self._stage.sampler.make_room()
            if self._stop_if_complete_elsewhere():
                return
            yield self._block(number, is_done=self._parts.has(number))

    def sample_and_grade(self, block: Block, tasks: Sequence[RolloutTask]) -> None:
        """Sample a block of this shard, unless it is done."""
        self._expected[block.number] = [(task.group_id, task.sample_ids) for task in tasks]
        self._num_truncated += sum(task.draft_truncated for task in tasks)
        if block.is_done:
            self._missing.discard(block.number)
            self._stage.progress.skip()
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

    def commit(self) -> Manifest:
        """Make the file of the shard from its parts; return the manifest that exists then, maybe another task's.

        Raises IgrpoError where a part holds other rows than were requested. Then nothing is published and the part
        is removed.
        """
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
            self._stage.sampler.make_room()
            if self._is_complete_elsewhere():
                return
            if not self._parts.has(number) and self._parts.claim(number):
                yield self._block(number)

    def _block(self, number: int, *, is_done: bool = False) -> Block:
        return Block(self, number, self._stage.plan.blocks.groups(number), is_done)

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

    def _keep(self, number: int, existing: Mapping[RowId, Rollout], rows: list[Rollout]) -> None:
        all_rows = {**existing, **{(row.group_id, row.sample_id): row for row in rows}}
        requested = [(group, sample) for group, sample_ids in self._expected[number] for sample in sample_ids]
        self._parts.write(number, [all_rows[each] for each in requested])
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
        try:
            return not self._shard.overwrite and completed(self.path, self._shard.identity) is not None
        except ConflictError:
            if not self._shard.adds_to:
                raise
            return False

    def _describe(self, data: DataFile) -> Manifest:
        from igrpo_cli.store.tables import count_rollouts

        engine = self._stage.session.engine(self._stage.plan.policy)
        counts = count_rollouts(self.path.data)
        counts["truncated_drafts"] = self._num_truncated
        return self._shard.provenance.manifest(
            self._shard.identity,
            data,
            device=f"{engine.device}, {engine.dtype}",
            engine_versions=engine.versions,
            sampling=engine.tokenizer.with_all_stops(self._stage.plan.sampling.sampling),
            tokens=counts.pop("tokens"),
            counts=counts,
        )
