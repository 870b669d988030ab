"""From a plan of rollouts to finished shards: what draft, refine and eval do around `roll_out`.

A block that is done is kept as a part file, so an interrupted shard is finished, not begun again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from igrpo_cli.config import GenerationSection, RunConfig, stage_identity
from igrpo_cli.errors import IgrpoError
from igrpo_cli.prompts import template_hash
from igrpo_cli.provenance import Provenance
from igrpo_cli.records import RolloutStage, SamplingSettings, StageReport
from igrpo_cli.rollouts import RolloutPlan, RolloutTask, roll_out
from igrpo_cli.session import Session, StageRequest
from igrpo_cli.shard_work import ShardWork, work_through
from igrpo_cli.shards.finishing import finished, publish_shard
from igrpo_cli.shards.identity import FileHash, Identity
from igrpo_cli.shards.layout import ShardPath, block_range
from igrpo_cli.shards.manifest import Manifest
from igrpo_cli.shards.policies import Policy

if TYPE_CHECKING:
    from igrpo_cli.engines.tokenization import PolicyTokenizer
    from igrpo_cli.shards.manifest import DataFile


@dataclass(frozen=True)
class ShardedRollouts:
    """The rollouts of one stage and where they go."""

    stage: RolloutStage
    policy: Policy
    path_of: Callable[[int], ShardPath]
    inputs_of: Callable[[int], Sequence[FileHash]]
    """What a shard is made from, as recorded on disk; raises MissingInputError where it is not there yet."""
    plan_of: Callable[[int], RolloutPlan]
    """The plan of a shard, its inputs opened and checked."""


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
        reward_weights=config.reward.weights,
        num_groups=config.data.problems_per_iteration,
        groups_per_block=config.engine.groups_per_block,
        tasks=tasks,
    )


def make_rollout_shards(session: Session, work: ShardedRollouts, request: StageRequest) -> StageReport:
    """Make those of the requested shards that are not finished.

    Raises as `work_through`, and IgrpoError when too many completions could not be graded.
    """

    def identity_of(path: ShardPath) -> Identity:
        return Identity(
            stage=path.stage,
            iteration=path.iteration,
            shard=path.shard,
            num_shards=path.num_shards,
            config=stage_identity(session.config, path.stage),
            policy=work.policy.id,
            template_sha256=template_hash(session.config.prompts),
            inputs=work.inputs_of(path.shard),
        )

    def make(path: ShardPath, identity: Identity, *, overwrite: bool) -> Manifest:
        return _make_shard(session, work, path, identity, overwrite=overwrite)

    report = work_through(ShardWork(work.stage, work.path_of, identity_of, make), request, session.console.note)
    if not request.dry_run:
        _refuse_ungraded(report, session.config.reward.max_ungraded_share)
    return report


def _make_shard(
    session: Session, work: ShardedRollouts, path: ShardPath, identity: Identity, *, overwrite: bool
) -> Manifest:
    from igrpo_cli.shards.parts import PartStore

    provenance = Provenance()
    plan = work.plan_of(path.shard)
    blocks = block_range(plan.num_blocks, path.shard, path.num_shards)
    parts = PartStore(path.parts, identity.sha256())
    if overwrite:
        parts.clear()
    engine = session.engine(work.policy)
    todo = [block for block in blocks if not parts.has(block)]
    with session.console.progress(path.name, len(blocks), "blocks") as progress:
        progress.advance(len(blocks) - len(todo))
        for block, rows in roll_out(plan, todo, engine, session.grader()):
            parts.write(block, rows)
            progress.advance(tokens=sum(len(row.completion_ids) for row in rows))
            if not overwrite and finished(path, identity):
                break  # another task has finished this very shard: what is left to sample is there already

    def describe(data: DataFile) -> Manifest:
        counts = _counts(path)
        tasks = (task for block in blocks for task in plan.tasks(plan.groups_of(block), engine.tokenizer))
        counts["truncated_drafts"] = sum(task.draft_truncated for task in tasks)
        return provenance.manifest(
            identity,
            data,
            device=f"{engine.device}, {engine.dtype}",
            engine_versions=engine.versions,
            sampling=plan.sampling,
            tokens=counts.pop("tokens"),
            counts=counts,
        )

    manifest = publish_shard(
        path,
        identity,
        lambda replace: parts.assemble(path.data, blocks, replace),
        describe,
        overwrite=overwrite,
    )
    parts.clear()
    return manifest


def _counts(path: ShardPath) -> Counter[str]:
    """Tokens, verdicts and finish reasons of a shard, from its file: a shard that was resumed counts all its rows."""
    from igrpo_cli.shards.schema import ROLLOUTS
    from igrpo_cli.shards.tables import iterate_blocks

    counts: Counter[str] = Counter(tokens=0)
    for block in iterate_blocks(path.data, ROLLOUTS, ("completion_ids", "verdict", "finish_reason")):
        counts["tokens"] += sum(map(len, block["completion_ids"].to_pylist()))
        counts.update(f"verdict_{verdict}" for verdict in block["verdict"].to_pylist())
        counts.update(f"finish_{reason}" for reason in block["finish_reason"].to_pylist())
    return counts


def _refuse_ungraded(report: StageReport, threshold: float) -> None:
    ungraded = report.details.get("verdict_ungraded", 0)
    assert isinstance(ungraded, int)
    share = ungraded / max(report.rows, 1)
    if share > threshold:
        raise IgrpoError(
            f"{ungraded} of {report.rows} completions of {report.stage} could not be graded "
            f"({share:.1%}, more than reward.max_ungraded_share = {threshold:.1%})",
            hint="raise reward.cpu_seconds or reward.memory_mb and use --overwrite, or raise the threshold with --set",
        )
