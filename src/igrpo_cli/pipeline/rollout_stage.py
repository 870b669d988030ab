"""From plans of rollouts to finished shards: what draft, refine and eval do around `roll_out`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Literal

from igrpo_cli.config import RunConfig
from igrpo_cli.config.sections import GenerationSection
from igrpo_cli.errors import IgrpoError, MissingInputError
from igrpo_cli.pipeline.rollout_shard import OpenShard, ShardedRollouts
from igrpo_cli.pipeline.session import Session, StageRequest
from igrpo_cli.pipeline.shard_work import ShardWork, StageLedger
from igrpo_cli.prompts import template_hash
from igrpo_cli.records import SamplingSettings, StageReport
from igrpo_cli.rollouts import BlockJob, RolloutPlan, RolloutTask, roll_out
from igrpo_cli.store.completion import completed
from igrpo_cli.store.layout import ShardPath, block_range
from igrpo_cli.store.lineage import require_current
from igrpo_cli.store.manifest import Identity
from igrpo_cli.store.policies import Policy
from igrpo_cli.ui.progress import Progress

if TYPE_CHECKING:
    from igrpo_cli.engines.tokenization import PolicyTokenizer


def training_plan(
    config: RunConfig,
    stage: Literal["draft", "refine"],
    iteration: int,
    generation: GenerationSection,
    tasks: Callable[[range, PolicyTokenizer], list[RolloutTask]],
) -> RolloutPlan:
    """The plan of a stage of training: one group for each problem of the iteration."""
    return RolloutPlan(
        stage=stage,
        iteration=iteration,
        seed=config.run.seed,
        seed_names=(stage, iteration),
        sampling=SamplingSettings(
            temperature=generation.temperature,
            top_p=generation.top_p,
            top_k=generation.top_k,
            max_completion_length=generation.max_completion_length,
        ),
        num_groups=config.data.problems_sampled,
        groups_per_block=config.engine.groups_per_block,
        tasks=tasks,
    )


def make_rollout_shards(session: Session, work: ShardedRollouts, request: StageRequest) -> StageReport:
    """Make those of the requested shards that are not finished; with `request.take_over` take part in the rest.

    Raises as `StageLedger.take`, and IgrpoError when too many completions could not be graded.
    """
    making = RolloutShards(session, work, request)
    if request.dry_run:
        for shard in request.shards:
            making.ledger.take(shard)
        return making.ledger.report()
    title = work.path_of(0).data.parent.relative_to(session.run.root).as_posix()
    with session.console.progress(title, making.num_blocks, "blocks") as progress:
        roll_out_in(session, work.policy, making.jobs(progress))
    return making.finish()


def roll_out_in(session: Session, policy: Policy, jobs: Iterator[BlockJob | None]) -> None:
    """`roll_out` on the session's engine and graders, which are started only if there is anything to sample."""
    first = next(jobs, None)
    if first is not None:
        # The scorer first: a reward function that cannot be called is said before minutes of loading.
        scorer = session.scorer()
        roll_out(chain([first], jobs), session.engine(policy), scorer)


class RolloutShards:
    """The requested shards of one rollout stage, from their plans to their files."""

    def __init__(self, session: Session, work: ShardedRollouts, request: StageRequest) -> None:
        self._session = session
        self._work = work
        self._request = request
        self._open: dict[int, OpenShard] = {}
        self._finished: set[int] = set()
        shard_work = ShardWork(work.stage, work.path_of, self._identity_of)
        self.ledger = StageLedger(shard_work, request, session.console.note)

    @property
    def num_blocks(self) -> int:
        """Blocks of the requested shards."""
        return sum(len(self._blocks_of(shard)) for shard in self._request.shards)

    def jobs(self, progress: Progress) -> Iterator[BlockJob]:
        """The blocks that are still to be sampled; with `take_over` then those that nobody has begun elsewhere."""
        for shard in self._request.shards:
            yield from self.jobs_of(shard, progress)
            for earlier in self._open:
                self.publish(earlier)
        if self._request.take_over:
            num_shards = self._session.config.run.num_shards
            for shard in sorted(set(range(num_shards)) - set(self._request.shards)):
                yield from self._jobs_for_others(shard, progress)

    def jobs_of(self, shard: int, progress: Progress) -> Iterator[BlockJob]:
        """The blocks of one shard that are still to be sampled; none when it is finished."""
        todo = self.ledger.take(shard)
        if todo is None:
            progress.skip(len(self._blocks_of(shard)))
            self._finished.add(shard)
            return
        making = self._open[shard] = OpenShard(
            self._session, self._work, *todo, self._blocks_of(shard), self._request.overwrite
        )
        yield from making.jobs(progress)

    def publish(self, shard: int) -> bool:
        """Publish a shard if all its blocks are done by now; whether it is finished."""
        if shard in self._finished:
            return True
        making = self._open.get(shard)
        if making is None or not making.is_complete:
            return False
        self._publish(shard)
        return True

    def finish(self) -> StageReport:
        """Publish what is not published yet, and report."""
        for shard in self._open.keys() - self._finished:
            self._publish(shard)
        report = self.ledger.report()
        refuse_ungraded(report, self._session.config.reward.max_ungraded_share)
        return report

    def _publish(self, shard: int) -> None:
        self.ledger.add(self._open[shard].publish())
        self._finished.add(shard)

    def _jobs_for_others(self, shard: int, progress: Progress) -> Iterator[BlockJob]:
        path = self._work.path_of(shard)
        try:
            identity = self._identity_of(path)
        except MissingInputError:
            return  # its owner cannot have begun either
        if completed(path, identity) is None:
            require_current(self._session.run, identity.inputs)
            making = OpenShard(self._session, self._work, path, identity, self._blocks_of(shard), overwrite=False)
            yield from making.jobs_nobody_has_begun(progress)

    def _blocks_of(self, shard: int) -> range:
        num_blocks = -(-self._work.num_groups // self._session.config.engine.groups_per_block)
        return block_range(num_blocks, shard, self._session.config.run.num_shards)

    def _identity_of(self, path: ShardPath) -> Identity:
        config = self._session.config
        return Identity(
            stage=path.stage,
            iteration=path.iteration,
            shard=path.shard,
            num_shards=path.num_shards,
            config=self._session.stage_identity(self._work.reads or path.stage),
            policy=self._work.policy.id,
            template_sha256=template_hash(config.prompts),
            inputs=self._work.inputs_of(path.shard),
        )


def refuse_ungraded(report: StageReport, threshold: float) -> None:
    """Raise IgrpoError where more than the share `threshold` of a stage's rows could not be graded."""
    ungraded = report.details.get("verdict_ungraded", 0)
    assert isinstance(ungraded, int)
    share = ungraded / max(report.rows, 1)
    if share > threshold:
        raise IgrpoError(
            f"{ungraded} of {report.rows} completions of {report.stage} could not be graded "
            f"({share:.1%}, more than reward.max_ungraded_share = {threshold:.1%})",
            hint="the lines above say why; mend that and use --overwrite, or raise the threshold with --set",
        )
