"""`igrpo update`: train the policy on the rollouts of one iteration with the GRPO loss, and publish the next policy.

This is the last stage of iGRPO (arXiv 2602.09000). It trains on the refinements, unless `update.train_on` names the
drafts too. Each optimiser step is `training.step.PolicyTrainer.step`: the clipped loss of `algo.losses`, with the KL
term of `update.beta`, gradient clipping and AdamW, whose state continues from the update before. With one step per
iteration every ratio is 1 and the clip has no effect. The log-probs of the sampler are used for metrics and for
`update.importance_sampling_correction`, and never as old log-probs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from igrpo_cli.errors import IgrpoError, MissingInputError, UsageError
from igrpo_cli.pipeline.session import Session, StageRequest
from igrpo_cli.pipeline.stage_shards import StagePlan, StageShards, UnfinishedShard
from igrpo_cli.records import StageReport, TrainingGroup
from igrpo_cli.seeds import derive_seed
from igrpo_cli.store.atomic import clear_directory, remove_directory, remove_stale_temporaries
from igrpo_cli.store.completion import completed_update
from igrpo_cli.store.layout import CHECKPOINT_DIRECTORIES, ShardPath, bench_name
from igrpo_cli.store.manifest import Manifest
from igrpo_cli.store.policies import Policy, promote_policy
from igrpo_cli.torchrun import rank_and_size

if TYPE_CHECKING:
    from igrpo_cli.config import RunConfig
    from igrpo_cli.pipeline.step_checkpoints import StepCheckpoints
    from igrpo_cli.pipeline.training_groups import Observations
    from igrpo_cli.pipeline.update_artifacts import Step
    from igrpo_cli.training.restore import UpdateProgress
    from igrpo_cli.training.step import PolicyTrainer

# numpy, pyarrow and torch are imported where they are needed, so that a command with nothing to do starts fast.

ONLY_SHARD = (0,)
"""An update has one shard, and reads all shards of the stages before it."""


def run(session: Session, request: StageRequest) -> StageReport:
    """Train on the rollouts of one iteration and publish `policies/k+1`."""
    policy = session.policy(request.iteration)
    # A command that was killed may have left a complete update whose policy is not in policies/ yet.
    promote_policy(session.run, request.iteration)
    if not request.dry_run:
        _remove_temporaries(session, request.iteration)
    stage = StageShards(session, replace(request, shards=ONLY_SHARD), plan(session, request.iteration, policy))
    for shard in stage.unfinished():
        stage.add(_train_or_accept(session, shard, policy))
    if not request.dry_run:
        _remove_checkpoints(session, request.iteration)
        _remove_policies(session, request.iteration)
    report = stage.report()
    # The manifest counts the rows of metrics.parquet. The report counts the completions and groups trained on.
    report.rows = int(report.details.get("completions", 0))
    report.groups = int(report.details.get("groups", 0))
    return report


def train(session: Session, shard: UnfinishedShard, policy: Policy) -> Manifest:
    """Compute advantages, take the optimiser steps and publish the next policy; return the manifest of the update.

    Policy, optimiser state, metrics and manifest are written into a hidden directory, which then becomes the directory
    of the update in one rename. A second rename moves the policy to `policies/k+1`. A kill before the first leaves
    nothing but checkpoints, and after a kill between both the next command makes the second.

    Under torchrun all processes call this together.
    """
    from igrpo_cli.pipeline.step_checkpoints import StepCheckpoints
    from igrpo_cli.pipeline.training_groups import read_observations
    from igrpo_cli.pipeline.update_artifacts import publish_update
    from igrpo_cli.pipeline.update_trainer import keep_warm, load_trainer
    from igrpo_cli.training.ranks import joined_ranks

    iteration, config = shard.path.iteration, session.config
    observations = read_observations(session, iteration, policy)
    groups = groups_with_advantages(observations, config)
    minibatches = split_into_minibatches(groups, config.update.num_minibatches, config.run.seed, iteration)
    with joined_ranks() as ranks:
        trainer = load_trainer(session, policy, iteration, ranks)
        checkpoints = StepCheckpoints(session.run.update(iteration), shard.identity, session.console)
        steps = take_steps(session, trainer, minibatches, iteration, checkpoints)
        manifest, is_ours = publish_update(session, shard, trainer, policy, observations, steps)
        if is_ours:
            keep_warm(session, trainer, iteration)
    return manifest


def groups_with_advantages(observations: Observations, config: RunConfig) -> list[TrainingGroup]:
    """Return the groups to train on, with an advantage for each completion, normalised within its group.

    `update.baseline` names the rewards that a refinement is compared with instead, for example those of the drafts.

    A_j = (R(o_j) - mean) / (std + 1e-4) over the G completions of a group, with the sample standard deviation (ddof 1)
    as in TRL; `update.scale_rewards` names the other choices. If all rewards are equal, the advantages are 0.
    Completions that could not be graded have no advantage and count in neither mean nor std (`reward.ungraded`).

    With `update.dynamic_sampling` the groups whose completions are all correct or all wrong are left out.
    """
    import numpy as np

    from igrpo_cli.algo.advantages import group_advantages
    from igrpo_cli.pipeline.training_groups import with_reward_variance

    section, scale_rewards = config.update, config.update.constants().scale_rewards
    groups = []
    for group in observations.groups(section, config.reward):
        rewards_G, is_graded_G = np.array(group.rewards), np.array(group.is_graded)
        advantages_G = group_advantages(rewards_G, scale_rewards, is_graded=is_graded_G, baseline=group.baseline)
        groups.append(replace(group, advantages=advantages_G.tolist()))
    if not section.dynamic_sampling:
        return groups
    return with_reward_variance(groups, config.data.problems_per_iteration, section.num_minibatches)


def split_into_minibatches(
    groups: list[TrainingGroup], num_minibatches: int, seed: int, iteration: int
) -> list[list[TrainingGroup]]:
    """Return the groups in `num_minibatches` lists of nearly equal length, in an order that follows from `seed`.

    A single minibatch keeps the order of the groups.

    Raises UsageError for fewer groups than minibatches, and IgrpoError for no groups.
    """
    if not groups:
        raise IgrpoError(
            f"iteration {iteration} has no groups to train on: all were dropped, because no draft has a reward above 0",
            hint="igrpo select and igrpo refine with --overwrite --set select.all_zero=keep, then igrpo update again",
        )
    if num_minibatches > len(groups):
        raise UsageError(
            f"update.num_minibatches = {num_minibatches}, but iteration {iteration} has only {len(groups)} groups",
            hint=f"--set update.num_minibatches={len(groups)}",
        )
    if num_minibatches == 1:
        return [groups]
    shuffled = sorted(groups, key=lambda g: derive_seed(seed, "minibatch", iteration, g.stage, g.group_id))
    return [shuffled[first::num_minibatches] for first in range(num_minibatches)]


def take_steps(
    session: Session,
    trainer: PolicyTrainer,
    minibatches: list[list[TrainingGroup]],
    iteration: int,
    checkpoints: StepCheckpoints,
) -> list[Step]:
    """Take the optimiser steps of an iteration: `update.num_epochs` passes over the minibatches, one step on each.

    An update that was stopped continues after its newest checkpoint.
    """
    from igrpo_cli.pipeline.update_artifacts import Step

    section = session.config.update
    num_steps = section.num_epochs * len(minibatches)
    with session.console.activity(f"update of iteration {iteration}: preparing"):
        progress = checkpoints.load(trainer) or initial_progress(trainer, minibatches, num_steps)
    with _progress_bar(session, trainer, minibatches, iteration, progress) as advance:
        for index in range(len(progress.results), num_steps):
            number = index % len(minibatches)
            rate = _learning_rate(session, iteration * num_steps + index)
            progress.results.append(trainer.step(minibatches[number], rate, progress.old_logprobs[number], advance))
            is_due = section.save_steps and (index + 1) % section.save_steps == 0
            if is_due and index + 1 < num_steps:
                checkpoints.save(trainer, progress)
    return [
        Step(iteration * num_steps + index, minibatches[index % len(minibatches)], result)
        for index, result in enumerate(progress.results)
    ]


def initial_progress(trainer: PolicyTrainer, minibatches: list[list[TrainingGroup]], num_steps: int) -> UpdateProgress:
    """Return the progress of a new update: the old log-probs of each minibatch, under the policy that sampled.

    A single step needs none. The policy in training is still the one that sampled, so its own detached log-probs are
    the old ones.
    """
    from igrpo_cli.training.restore import UpdateProgress

    if num_steps == 1:
        return UpdateProgress(old_logprobs=[None])
    return UpdateProgress(old_logprobs=[trainer.compute_old_logprobs(minibatch) for minibatch in minibatches])


def plan(session: Session, iteration: int, policy: Policy) -> StagePlan:
    """Return the plan of an update.

    Its inputs are the shards of the iteration, and the previous update, which determines the optimiser state.
    """
    from igrpo_cli.pipeline.training_groups import input_shards
    from igrpo_cli.pipeline.update_trainer import previous_update

    def inputs_of(_: ShardPath) -> list[ShardPath]:
        before = previous_update(session, iteration)
        return [*input_shards(session, iteration), *([] if before is None else [before.shard])]

    return StagePlan("update", lambda _: session.run.update(iteration).shard, inputs_of, policy_id=policy.id)


def _train_or_accept(session: Session, shard: UnfinishedShard, policy: Policy) -> Manifest:
    """Return the manifest of `train`, or that of another task that completes the same update meanwhile."""
    try:
        return train(session, shard, policy)
    except (MissingInputError, FileNotFoundError):
        # The other task removes optimiser states that its own update has replaced, and this one may be reading them.
        # Under torchrun the other ranks would wait for this one, and with --overwrite the update is to be made again.
        _, num_ranks = rank_and_size()
        if shard.overwrite or num_ranks > 1:
            raise
        manifest = completed_update(session.run, session.run.update(shard.path.iteration), shard.identity)
        if manifest is None:
            raise
        return manifest


def _remove_temporaries(session: Session, iteration: int) -> None:
    """Remove what commands that were killed have left, also where the update itself is complete."""
    for directory in (session.run.policies, session.run.update(iteration).directory.parent):
        remove_stale_temporaries(directory)


def _remove_checkpoints(session: Session, iteration: int) -> None:
    """Remove the checkpoints of a complete update, and the optimiser states that are not kept."""
    from igrpo_cli.pipeline.update_trainer import prune_optimizer_states

    checkpoints = session.run.update(iteration).checkpoints
    for of_identity in checkpoints.glob("*"):
        clear_directory(of_identity, CHECKPOINT_DIRECTORIES)
    clear_directory(checkpoints, CHECKPOINT_DIRECTORIES)
    prune_optimizer_states(session, iteration)


def _remove_policies(session: Session, iteration: int) -> None:
    """Remove the policies that `policy.keep` does not keep after the update of `iteration`."""
    keep, run = session.config.policy.keep, session.run
    newest = iteration + 1
    if keep == "all" or not run.policy(newest).is_dir():
        return
    for policy in run.policy_iterations():
        if 0 < policy <= newest - keep and not _is_to_be_evaluated(session, policy):
            remove_directory(run.policy(policy))


def _is_to_be_evaluated(session: Session, policy: int) -> bool:
    """Return True for a policy of the schedule of `run.eval_every` that lacks an evaluation."""
    config = session.run_config.latest
    if config.run.eval_every is None or policy % config.run.eval_every:
        return False
    name = bench_name(config.run.eval_bench or "")
    summaries = [session.run.eval_summary(name, policy, conditioned=kind) for kind in config.evaluations]
    return not all(summary.exists() for summary in summaries)


@contextmanager
def _progress_bar(
    session: Session,
    trainer: PolicyTrainer,
    minibatches: list[list[TrainingGroup]],
    iteration: int,
    progress: UpdateProgress,
) -> Iterator[Callable[[int], None]]:
    """Show the completion tokens that were trained on; yield a function that adds the tokens of this rank."""
    num_tokens = sum(len(ids) for minibatch in minibatches for group in minibatch for ids in group.completion_ids)
    total = session.config.update.num_epochs * num_tokens
    with session.console.progress(f"update of iteration {iteration}", total, "tokens") as bar:
        bar.skip(sum(result.metrics["num_tokens"] for result in progress.results))

        def advance(num_tokens: int) -> None:
            # All ranks have nearly equal work. The metric above already counts all of them.
            on_all_ranks = num_tokens * trainer.ranks.size
            bar.advance(on_all_ranks, tokens=on_all_ranks)

        yield advance


def _learning_rate(session: Session, step: int) -> float:
    """Return the learning rate of a step, counted from 0 over the whole run."""
    from igrpo_cli.algo.schedules import learning_rate_at

    section = session.config.update
    total = session.num_scheduled() * section.num_minibatches * section.num_epochs
    return learning_rate_at(
        step, total, section.learning_rate, section.lr_scheduler_type, section.warmup_ratio, section.min_lr_rate
    )
