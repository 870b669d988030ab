"""`igrpo update`: the gradient step of iGRPO on the rollouts of one iteration, and the policy that comes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from igrpo_cli.algo.schedules import learning_rate_at
from igrpo_cli.config import stage_identity
from igrpo_cli.errors import MissingInputError, UsageError
from igrpo_cli.pipeline.optimizer_states import prune_optimizer_states
from igrpo_cli.pipeline.provenance import Provenance
from igrpo_cli.pipeline.session import Session, StageRequest
from igrpo_cli.pipeline.shard_work import ShardWork, work_through
from igrpo_cli.pipeline.training_groups import input_shards, read_observations
from igrpo_cli.pipeline.update_trainer import previous_update
from igrpo_cli.records import StageReport, TrainingGroup
from igrpo_cli.seeds import derive_seed
from igrpo_cli.store.atomic import remove_directory, remove_stale_temporaries
from igrpo_cli.store.completion import completed_update
from igrpo_cli.store.layout import ShardPath, UpdatePath
from igrpo_cli.store.manifest import Identity, Manifest
from igrpo_cli.store.policies import Policy, promote_policy
from igrpo_cli.torchrun import rank_and_size

if TYPE_CHECKING:
    from igrpo_cli.pipeline.step_checkpoints import StepCheckpoints
    from igrpo_cli.pipeline.update_artifacts import Step
    from igrpo_cli.training.progress import UpdateProgress
    from igrpo_cli.training.step import PolicyTrainer

ONLY_SHARD = (0,)
"""An update is one piece of work, whatever the number of shards it reads."""


def run(session: Session, request: StageRequest) -> StageReport:
    """Train on the iteration's rollouts and publish `policies/k+1`."""
    update = session.run.update(request.iteration)
    policy = session.policy(request.iteration)
    promote_policy(session.run, request.iteration)
    if not request.dry_run:
        # Of a finished update too: it may have been killed while it cleared away what nobody needs any more.
        for directory in (session.run.policies, update.directory.parent):
            remove_stale_temporaries(directory)

    def identity_of(path: ShardPath) -> Identity:
        return _identity(session, path, policy)

    def make(path: ShardPath, identity: Identity, *, overwrite: bool) -> Manifest:
        try:
            return _make_update(session, update, policy, identity, overwrite=overwrite)
        except (MissingInputError, FileNotFoundError):
            # A task that has finished the same update clears away what this one was still reading.
            theirs = None if overwrite or rank_and_size()[1] > 1 else completed_update(session.run, update, identity)
            if theirs is None:
                raise
            return theirs

    work = ShardWork("update", lambda _: update.shard, identity_of)
    once = StageRequest(request.iteration, ONLY_SHARD, request.overwrite, request.dry_run)
    report = work_through(work, make, once, session.console.note)
    if update.checkpoints.exists() and not request.dry_run:
        remove_directory(update.checkpoints)
    if not request.dry_run:
        prune_optimizer_states(session, request.iteration)
    # The rows of its manifest are metrics; what a reader of the report asks is how much was trained on.
    report.rows, report.groups = (int(report.details.get(name, 0)) for name in ("completions", "groups"))
    return report


def _identity(session: Session, shard: ShardPath, policy: Policy) -> Identity:
    inputs = session.inputs(*input_shards(session, shard.iteration))
    if previous_update(session, shard.iteration) is not None:
        # The optimiser state that is carried on follows from the previous update and nothing else.
        inputs += session.inputs(session.run.update(shard.iteration - 1).shard)
    return Identity(
        stage="update",
        iteration=shard.iteration,
        shard=0,
        num_shards=1,
        config=stage_identity(session.config, "update"),
        policy=policy.id,
        inputs=inputs,
    )


def _make_update(
    session: Session, path: UpdatePath, policy: Policy, identity: Identity, *, overwrite: bool
) -> Manifest:
    """The update by this process, or by all that torchrun started: then the first one writes what is not sharded."""
    from igrpo_cli.pipeline import update_artifacts
    from igrpo_cli.pipeline.step_checkpoints import StepCheckpoints, shared_staging_directory
    from igrpo_cli.pipeline.update_trainer import keep_warm, trainer_of
    from igrpo_cli.training.ranks import joined_ranks

    provenance = Provenance()
    observations = read_observations(session, path.iteration, policy)
    groups = observations.training_groups(session.config.update, session.config.data.problems_per_iteration)
    with joined_ranks() as ranks:
        with session.console.activity(f"update of iteration {path.iteration}: loading the policy"):
            trainer = trainer_of(session, policy, path.iteration, ranks)
        steps = _train(session, trainer, groups, path.iteration, StepCheckpoints(path, identity, session.console))
        standing = manifest = None
        with shared_staging_directory(path.directory, ranks) as staged:
            with session.console.activity(f"update of iteration {path.iteration}: writing policy and optimiser"):
                update_artifacts.stage_trainer(session, trainer, policy, path.iteration, staged)
            if ranks.is_first:
                outputs = update_artifacts.record_policy(session, policy, path.iteration, staged)
                outputs.append(update_artifacts.stage_advantages(path, staged, steps))
                manifest = provenance.manifest(
                    identity,
                    update_artifacts.stage_metrics(path, staged, observations, steps),
                    device=f"{ranks.describe()}, {trainer.settings.dtype}",
                    num_devices=ranks.size,
                    tokens=sum(int(step.result.metrics["num_tokens"]) for step in steps),
                    counts={
                        "optimizer_steps": len(steps),
                        "trainable_parameters": trainer.num_trainable_parameters,
                        "groups": len(groups),
                        "groups_sampled": observations.num_groups(session.config.update.train_on),
                        "completions": sum(len(group.completion_ids) for group in groups),
                    },
                    outputs=outputs,
                )
                standing = update_artifacts.publish_update(session, path, staged, manifest, overwrite=overwrite)
        if standing is manifest and ranks.size == 1:
            keep_warm(session, trainer, path.iteration)
        found = ranks.share(standing)
    assert found is not None
    return found


def _train(
    session: Session,
    trainer: PolicyTrainer,
    groups: list[TrainingGroup],
    iteration: int,
    checkpoints: StepCheckpoints,
) -> list[Step]:
    """All optimiser steps of the iteration: `num_epochs` passes over `num_minibatches` parts of the groups."""
    from igrpo_cli.pipeline.update_artifacts import Step

    section = session.config.update
    minibatches = _minibatches(groups, section.num_minibatches, session.config.run.seed, iteration)
    per_iteration = section.num_minibatches * section.num_epochs
    title, num_tokens = f"update of iteration {iteration}", section.num_epochs * _num_tokens(groups)
    with session.console.activity(f"{title}: log-probs before the first step"):
        progress = _begin(trainer, minibatches, per_iteration, checkpoints)
    with session.console.progress(title, num_tokens, "tokens") as bar:

        def advance(num_tokens: int) -> None:
            on_all_ranks = num_tokens * trainer.ranks.size
            bar.advance(on_all_ranks, tokens=on_all_ranks)

        bar.skip(sum(result.metrics["num_tokens"] for result in progress.results))
        for index in range(len(progress.results), per_iteration):
            part = index % section.num_minibatches
            rate = _learning_rate(session, iteration * per_iteration + index)
            old_logprobs = progress.old_logprobs[part] if per_iteration > 1 else None
            progress.results.append(trainer.step(minibatches[part], rate, old_logprobs, advance))
            is_due = section.save_steps and (index + 1) % section.save_steps == 0
            if is_due and index + 1 < per_iteration:
                checkpoints.save(trainer, progress)
    return [
        Step(iteration * per_iteration + index, minibatches[index % section.num_minibatches], result)
        for index, result in enumerate(progress.results)
    ]


def _num_tokens(groups: list[TrainingGroup]) -> int:
    return sum(len(completion_ids) for group in groups for completion_ids in group.completion_ids)


def _begin(
    trainer: PolicyTrainer,
    minibatches: list[list[TrainingGroup]],
    num_steps: int,
    checkpoints: StepCheckpoints,
) -> UpdateProgress:
    """Where a stopped update of the same identity stood, else the beginning of one."""
    from igrpo_cli.training.progress import UpdateProgress

    if num_steps == 1:
        # The policy is still the one that sampled: its own detached log-probs are the old ones.
        return UpdateProgress([])
    found = checkpoints.load(trainer)
    return found or UpdateProgress([trainer.compute_old_logprobs(part) for part in minibatches])


def _learning_rate(session: Session, step: int) -> float:
    """Of a step counted over the whole run."""
    section = session.config.update
    total = session.num_iterations() * section.num_minibatches * section.num_epochs
    return learning_rate_at(
        step, total, section.learning_rate, section.lr_scheduler_type, section.warmup_ratio, section.min_lr_rate
    )


def _minibatches(
    groups: list[TrainingGroup], num_minibatches: int, seed: int, iteration: int
) -> list[list[TrainingGroup]]:
    """The groups dealt into parts of nearly equal number, in an order that follows from the run's seed."""
    if num_minibatches > len(groups):
        raise UsageError(
            f"update.num_minibatches = {num_minibatches}, but iteration {iteration} has only {len(groups)} groups",
            hint=f"--set update.num_minibatches={len(groups)}",
        )
    if num_minibatches == 1:
        return [groups]
    dealt = sorted(groups, key=lambda g: derive_seed(seed, "minibatch", iteration, g.stage, g.group_id))
    return [dealt[part::num_minibatches] for part in range(num_minibatches)]
