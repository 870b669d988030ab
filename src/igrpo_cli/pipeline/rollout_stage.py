"""The shards of draft, refine and eval: what is sampled from which policy, and which shards are to be made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from igrpo_cli.config.blocks import Blocks
from igrpo_cli.config.sections import GenerationSection
from igrpo_cli.errors import ConflictError, DamagedFileError, MissingInputError
from igrpo_cli.pipeline.rollout_shard import RolloutShard
from igrpo_cli.pipeline.session import Session, StageRequest
from igrpo_cli.pipeline.stage_shards import StagePlan, StageShards, UnfinishedShard
from igrpo_cli.pipeline.ungraded import refuse_ungraded
from igrpo_cli.prompts import template_hash
from igrpo_cli.records import StageReport
from igrpo_cli.rollouts import Sampler, SamplingPlan
from igrpo_cli.store.completion import completed
from igrpo_cli.store.layout import ShardPath
from igrpo_cli.store.lineage import require_current
from igrpo_cli.store.policies import Policy
from igrpo_cli.ui.progress import Progress

if TYPE_CHECKING:
    from igrpo_cli.engines.base import Engine
    from igrpo_cli.engines.tokenization import PolicyTokenizer
    from igrpo_cli.rewards.scorer import Scorer


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
        self._share = None if session.launch is None else -(-self._count_missing() // session.launch.size)

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
                done = len(self.plan.blocks.of_shard(number))
                (self.progress.advance if self._shards.is_of_this_launch(number) else self.progress.skip)(done)
                continue
            self._open[number] = RolloutShard(self, shard, self.plan.blocks.of_shard(number))
            yield self._open[number]
            for earlier in self._open:
                self._commit_if_complete(earlier)
        if shards is None and self._request.take_over and not self._request.dry_run:
            yield from self._shards_of_other_tasks()

    def make_room(self) -> None:
        """Sample until the engine has room. A rank begins no more than its share of the blocks at a time.

        Otherwise one rank would fill its engine with blocks that others could sample at the same time.
        """
        self.sampler.make_room(self._share)

    def wait_for(self, shards: Iterable[int]) -> None:
        """Sample until these shards are complete, and commit them."""
        for number in shards:
            self.sample_until(partial(self._commit_if_complete, number))

    def wait_for_one(self, shards: Sequence[int]) -> int:
        """Sample until one of these shards is complete, and return its number.

        That is the first one, but with several ranks any: others may still sample the first one.
        """
        candidates = shards if self.session.launch else shards[:1]
        found: list[int] = []

        def is_reached() -> bool:
            found[:] = [number for number in candidates if self._commit_if_complete(number)]
            return bool(found)

        self.sample_until(is_reached)
        return found[0]

    def sample_until(self, is_reached: Callable[[], bool]) -> None:
        """Sample and grade submitted blocks until `is_reached()` is true. When none is left, wait for other ranks.

        Raises Interrupted if another rank is lost.
        """
        while not is_reached():
            if not self.sampler.advance():
                assert self.session.launch is not None, "a shard has blocks that nobody samples"
                self.session.launch.pause()

    def finish(self) -> None:
        """Sample what was submitted, commit every shard, and refuse the stage if too many rows are ungraded."""
        while self.sampler.advance():
            pass
        self.wait_for(self._open)
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
        manifest = self._open[number].commit() if self._open[number].is_complete else None
        if manifest is None:
            return False
        self._shards.add(manifest)
        self._complete.add(number)
        return True

    def _count_missing(self) -> int:
        """Return the number of blocks without a file, and at least 1."""
        paths = {shard: self.plan.shards.path_of(shard) for shard in self._request.shards}
        unfinished = [shard for shard, path in paths.items() if not path.manifest.exists()]
        blocks = sum(len(self.plan.blocks.of_shard(shard)) for shard in unfinished)
        return max(blocks - sum(len(list(paths[shard].parts.glob("*.parquet"))) for shard in unfinished), 1)

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
