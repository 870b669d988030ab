"""`igrpo update`: take the GRPO step of iGRPO on the rollouts of one iteration and publish the next policy."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from igrpo_cli.errors import MissingInputError, UsageError
from igrpo_cli.pipeline.session import Session, StageRequest
from igrpo_cli.pipeline.stage_shards import StagePlan, StageShards, UnfinishedShard
from igrpo_cli.records import StageReport, TrainingGroup
from igrpo_cli.seeds import derive_seed
from igrpo_cli.store.atomic import clear_directory, remove_stale_temporaries
from igrpo_cli.store.completion import completed_update
from igrpo_cli.store.layout import CHECKPOINT_DIRECTORIES, ShardPath
from igrpo_cli.store.manifest import Manifest
from igrpo_cli.store.policies import Policy, promote_policy
from igrpo_cli.torchrun import rank_and_size

if TYPE_CHECKING:
    from igrpo_cli.config.sections import UpdateSection
    from igrpo_cli.pipeline.step_checkpoints import StepCheckpoints
    from igrpo_cli.pipeline.training_groups import Observations
    from igrpo_cli.pipeline.update_artifacts import Step
    from igrpo_cli.training.restore import UpdateProgress
    from igrpo_cli.training.step import PolicyTrainer

ONLY_SHARD = (0,)
"""An update is one shard, whatever the number of shards that it reads."""


def run(session: Session, request: StageRequest) -> StageReport:
    """Train on the rollouts of one iteration and publish `policies/k+1`."""
    from igrpo_cli.pipeline.update_trainer import prune_optimizer_states

    update, policy = session.run.update(request.iteration), session.policy(request.iteration)
    promote_policy(session.run, request.iteration)
    if not request.dry_run:
        # Also after a complete update: it may have been killed while it removed what nobody needs any more.
        for directory in (session.run.policies, update.directory.parent):
            remove_stale_temporaries(directory)
    stage = StageShards(session, replace(request, shards=ONLY_SHARD), plan(session, request.iteration, policy))
    for shard in stage.unfinished():
        try:
            stage.add(train(session, shard, policy))
        except (MissingInputError, FileNotFoundError):
            # A concurrent task that completed the same update removes what this one was still reading.
            is_alone = request.overwrite or rank_and_size()[1] > 1
            manifest = None if is_alone else completed_update(session.run, update, shard.identity)
            if manifest is None:
                raise
            stage.add(manifest)
    if not request.dry_run:
        for directory in (*update.checkpoints.glob("*"), update.checkpoints):
            clear_directory(directory, CHECKPOINT_DIRECTORIES)
        prune_optimizer_states(session, request.iteration)
    report = stage.report()
    # The rows of the manifest are metrics. The report says how much was trained on.
    report.rows, report.groups = (int(report.details.get(name, 0)) for name in ("completions", "groups"))
    return report


def train(session: Session, shard: UnfinishedShard, policy: Policy) -> Manifest:
    """Compute advantages, take the optimiser steps and publish the next policy; return the manifest of the update.

    The update is made by this process, or by all processes that torchrun started.
    """
    from igrpo_cli.pipeline.step_checkpoints import StepCheckpoints
    from igrpo_cli.pipeline.training_groups import read_observations
    from igrpo_cli.pipeline.update_artifacts import publish_update
    from igrpo_cli.pipeline.update_trainer import keep_warm, load_trainer
    from igrpo_cli.training.ranks import joined_ranks

    iteration, config = shard.path.iteration, session.config
    observations = read_observations(session, iteration, policy)
    groups = groups_with_advantages(observations, config.update, config.data.problems_per_iteration)
    with joined_ranks() as ranks:
        trainer = load_trainer(session, policy, iteration, ranks)
        checkpoints = StepCheckpoints(session.run.update(iteration), shard.identity, session.console)
        steps = take_steps(session, trainer, groups, iteration, checkpoints)
        manifest, is_ours = publish_update(session, shard, trainer, policy, observations, steps)
        if is_ours:
            keep_warm(session, trainer, iteration)
    return manifest


def groups_with_advantages(
    observations: Observations, section: UpdateSection, problems_per_iteration: int
) -> list[TrainingGroup]:
    """Return the groups to train on, each completion with its advantage over the others of its group.

    A_j = (R(o_j) - mean) / std over the G completions of one group, and 0 where std is 0.
    """
    import numpy as np

    from igrpo_cli.algo.advantages import group_advantages
    from igrpo_cli.pipeline.training_groups import with_reward_variance

    scale = section.constants().scale_rewards
    groups = [
        replace(group, advantages=group_advantages(np.array(group.rewards), scale).tolist())
        for group in observations.groups(section)
    ]
    if not section.dynamic_sampling:
        return groups
    return with_reward_variance(groups, problems_per_iteration, section.num_minibatches)


def take_steps(
    session: Session,
    trainer: PolicyTrainer,
    groups: list[TrainingGroup],
    iteration: int,
    checkpoints: StepCheckpoints,
) -> list[Step]:
    """Take all optimiser steps of an iteration: `num_epochs` passes over `num_minibatches` parts of the groups."""
    from igrpo_cli.pipeline.update_artifacts import Step

    section = session.config.update
    minibatches = _minibatches(groups, section.num_minibatches, session.config.run.seed, iteration)
    num_steps = section.num_minibatches * section.num_epochs
    title, num_tokens = f"update of iteration {iteration}", section.num_epochs * _num_tokens(groups)
    with session.console.activity(f"{title}: log-probs before the first step"):
        progress = _begin(trainer, minibatches, num_steps, checkpoints)
    with session.console.progress(title, num_tokens, "tokens") as bar:

        def advance(num_tokens: int) -> None:
            on_all_ranks = num_tokens * trainer.ranks.size
            bar.advance(on_all_ranks, tokens=on_all_ranks)

        bar.skip(sum(result.metrics["num_tokens"] for result in progress.results))
        for index in range(len(progress.results), num_steps):
            part = index % section.num_minibatches
            rate = _learning_rate(session, iteration * num_steps + index)
            old_logprobs = progress.old_logprobs[part] if num_steps > 1 else None
            progress.results.append(trainer.step(minibatches[part], rate, old_logprobs, advance))
            is_due = section.save_steps and (index + 1) % section.save_steps == 0
            if is_due and index + 1 < num_steps:
                checkpoints.save(trainer, progress)
    return [
        Step(iteration * num_steps + index, minibatches[index % section.num_minibatches], result)
        for index, result in enumerate(progress.results)
    ]


def plan(session: Session, iteration: int, policy: Policy) -> StagePlan:
    """Return the plan of an update. Its inputs are the shards of the iteration and the update before."""
    from igrpo_cli.pipeline.training_groups import input_shards
    from igrpo_cli.pipeline.update_trainer import previous_update

    def inputs_of(_: ShardPath) -> list[ShardPath]:
        before = previous_update(session, iteration)
        # The optimiser state that is carried on follows from the previous update and nothing else.
        return [*input_shards(session, iteration), *([] if before is None else [before.shard])]

    return StagePlan("update", lambda _: session.run.update(iteration).shard, inputs_of, policy_id=policy.id)


def _num_tokens(groups: list[TrainingGroup]) -> int:
    return sum(len(completion_ids) for group in groups for completion_ids in group.completion_ids)


def _begin(
    trainer: PolicyTrainer,
    minibatches: list[list[TrainingGroup]],
    num_steps: int,
    checkpoints: StepCheckpoints,
) -> UpdateProgress:
    """Return the progress of a stopped update of the same identity, or that of a new one."""
    from igrpo_cli.training.restore import UpdateProgress

    if num_steps == 1:
        # The policy is still the one that sampled. Its own detached log-probs are the old ones, and every ratio is 1.
        return UpdateProgress([])
    found = checkpoints.load(trainer)
    return found or UpdateProgress([trainer.compute_old_logprobs(part) for part in minibatches])


def _learning_rate(session: Session, step: int) -> float:
    """Return the learning rate of a step, counted over the whole run."""
    from igrpo_cli.algo.schedules import learning_rate_at

    section = session.config.update
    total = session.num_iterations() * section.num_minibatches * section.num_epochs
    return learning_rate_at(
        step, total, section.learning_rate, section.lr_scheduler_type, section.warmup_ratio, section.min_lr_rate
    )


def _minibatches(
    groups: list[TrainingGroup], num_minibatches: int, seed: int, iteration: int
) -> list[list[TrainingGroup]]:
    """Split the groups into parts of nearly equal number, in an order that follows from the seed of the run."""
    if num_minibatches > len(groups):
        raise UsageError(
            f"update.num_minibatches = {num_minibatches}, but iteration {iteration} has only {len(groups)} groups",
            hint=f"--set update.num_minibatches={len(groups)}",
        )
    if num_minibatches == 1:
        return [groups]
    dealt = sorted(groups, key=lambda g: derive_seed(seed, "minibatch", iteration, g.stage, g.group_id))
    return [dealt[part::num_minibatches] for part in range(num_minibatches)]
