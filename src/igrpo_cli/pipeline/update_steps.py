"""The optimiser steps of an update: what it reads, the groups with their advantages, the minibatches, and the steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from igrpo_cli.errors import IgrpoError, UsageError
from igrpo_cli.pipeline.session import Session
from igrpo_cli.pipeline.stage_shards import StagePlan
from igrpo_cli.records import TrainingGroup
from igrpo_cli.seeds import derive_seed
from igrpo_cli.store.layout import ShardPath
from igrpo_cli.store.policies import Policy

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


def read_minibatches(
    session: Session, iteration: int, policy: Policy
) -> tuple[Observations, list[list[TrainingGroup]]]:
    """Return the rollouts of an iteration, and the groups of each optimiser step of a pass over them."""
    from igrpo_cli.pipeline.training_groups import read_observations

    config = session.config
    observations = read_observations(session, iteration, policy)
    groups = groups_with_advantages(observations, config)
    return observations, split_into_minibatches(groups, config.update.num_minibatches, config.run.seed, iteration)


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
