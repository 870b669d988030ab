"""`igrpo update`: the gradient step of iGRPO on the rollouts of one iteration, and the policy that comes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from igrpo_cli.algo.schedules import learning_rate_at
from igrpo_cli.config import stage_identity
from igrpo_cli.config.sections import UpdateSection
from igrpo_cli.errors import MissingInputError, UsageError
from igrpo_cli.pipeline.observations import input_shards, read_observations
from igrpo_cli.pipeline.provenance import Provenance
from igrpo_cli.pipeline.shard_work import ShardWork, work_through
from igrpo_cli.records import StageReport, TrainingGroup
from igrpo_cli.seeds import derive_seed
from igrpo_cli.session import Session, StageRequest
from igrpo_cli.shards.identity import Identity
from igrpo_cli.shards.layout import ShardPath, UpdatePath
from igrpo_cli.shards.manifest import Manifest
from igrpo_cli.shards.policies import Policy, settle_update
from igrpo_cli.shards.publish import remove_stale_temporaries, withdraw_directory

if TYPE_CHECKING:
    from igrpo_cli.pipeline.step_checkpoints import StepCheckpoints
    from igrpo_cli.pipeline.update_files import Step
    from igrpo_cli.training.adapters import LoraSettings
    from igrpo_cli.training.progress import UpdateProgress
    from igrpo_cli.training.ranks import Ranks
    from igrpo_cli.training.step import PolicyTrainer, TrainingSettings

ONLY_SHARD = (0,)
"""An update is one piece of work, whatever the number of shards it reads."""


def run(session: Session, request: StageRequest) -> StageReport:
    """Train on the iteration's rollouts and publish `policies/k+1`."""
    update = session.run.update(request.iteration)
    policy = session.policy(request.iteration)
    settle_update(session.run, request.iteration)
    if not request.dry_run:
        # Of a finished update too: it may have been killed while it cleared away its checkpoints.
        remove_stale_temporaries(update.directory.parent)

    def identity_of(path: ShardPath) -> Identity:
        return _identity(session, path, policy)

    def make(path: ShardPath, identity: Identity, *, overwrite: bool) -> Manifest:
        return _make_update(session, update, policy, identity, overwrite=overwrite)

    work = ShardWork("update", lambda _: update.shard, identity_of)
    once = StageRequest(request.iteration, ONLY_SHARD, request.overwrite, request.dry_run)
    report = work_through(work, make, once, session.console.note)
    if update.checkpoints.exists() and not request.dry_run:
        withdraw_directory(update.checkpoints)
    # The rows of its manifest are metrics; what a reader of the report asks is how much was trained on.
    report.rows, report.groups = (int(report.details.get(name, 0)) for name in ("completions", "groups"))
    return report


def _identity(session: Session, shard: ShardPath, policy: Policy) -> Identity:
    inputs = session.inputs(*input_shards(session, shard.iteration))
    if _previous(session, shard.iteration) is not None:
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


def _previous(session: Session, iteration: int) -> UpdatePath | None:
    """The update whose optimiser directory this iteration goes on from; None where it needs nothing of it.

    A fresh optimiser still needs the weights: those in float32 where the policy was published as their rounding, and
    adapters, which the policy holds merged.
    """
    section = session.config.update
    needs_weights = session.config.policy.dtype != "float32" or section.lora_r > 0
    fresh = section.optimizer_state == "fresh" and not needs_weights
    return None if iteration == 0 or fresh else session.run.update(iteration - 1)


def _make_update(
    session: Session, path: UpdatePath, policy: Policy, identity: Identity, *, overwrite: bool
) -> Manifest:
    """The update by this process, or by all that torchrun started: then the first one writes what is not sharded."""
    from igrpo_cli.pipeline import update_files
    from igrpo_cli.pipeline.step_checkpoints import StepCheckpoints, shared_staging_directory
    from igrpo_cli.training.ranks import joined_ranks

    provenance = Provenance()
    observations = read_observations(session, path.iteration, policy)
    groups = observations.training_groups(session.config.update, session.config.data.problems_per_iteration)
    with joined_ranks() as ranks:
        with session.console.activity(f"update of iteration {path.iteration}: loading the policy"):
            trainer = _restore(session, policy, path.iteration, ranks)
        steps = _train(session, trainer, groups, path.iteration, StepCheckpoints(path, identity, session.console))
        standing = manifest = None
        with shared_staging_directory(path.directory, ranks) as staged:
            with session.console.activity(f"update of iteration {path.iteration}: writing policy and optimiser"):
                update_files.stage_trainer(session, trainer, policy, path.iteration, staged)
            if ranks.is_first:
                outputs = update_files.record_policy(session, policy, path.iteration, staged)
                outputs.append(update_files.stage_advantages(path, staged, steps))
                manifest = provenance.manifest(
                    identity,
                    update_files.stage_metrics(path, staged, observations, steps),
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
                standing = update_files.publish_update(session, path, staged, manifest, overwrite=overwrite)
        if standing is manifest and ranks.size == 1:
            _keep_warm(session, trainer, path.iteration)
        found = ranks.share(standing)
    assert found is not None
    return found


def _keep_warm(session: Session, trainer: PolicyTrainer, iteration: int) -> None:
    """Let the next update of this process go on with the trainer in memory, which is what it would restore.

    Not on a GPU, whose memory the sampling needs meanwhile.
    """
    if trainer.policy.device.type == "cpu" and session.config.update.optimizer_state == "carry":
        session.warm_trainer = (session.policy(iteration + 1).id, trainer)


def _restore(session: Session, policy: Policy, iteration: int, ranks: Ranks) -> PolicyTrainer:
    """The trainer of `policy`, with the optimiser as the previous update left it and the reference if beta > 0."""
    from igrpo_cli.shards.hashed_directory import verify_directory
    from igrpo_cli.shards.policies import read_policy, verify_policy
    from igrpo_cli.training.restore import restore_trainer

    warm, session.warm_trainer = session.warm_trainer, None
    if warm is not None and warm[0] == policy.id:
        return warm[1]
    verify_policy(policy)
    reference = read_policy(session.run, 0) if session.config.update.beta > 0 else None
    if reference is not None:
        verify_policy(reference)
    previous = _previous(session, iteration)
    if previous is not None:
        if not previous.optimizer.is_dir():
            raise MissingInputError(
                f"the optimiser state of iteration {iteration - 1} is gone: {previous.optimizer} does not exist",
                hint="--set update.optimizer_state=fresh starts without it",
            )
        verify_directory(previous.optimizer)
    base = read_policy(session.run, 0) if session.config.update.lora_r else policy
    if base is not policy:
        verify_policy(base)
    return restore_trainer(
        base.directory,
        _training_settings(session.config.update),
        policy_dtype=session.config.policy.dtype,
        previous=None if previous is None else previous.optimizer,
        carry_optimizer=session.config.update.optimizer_state == "carry",
        reference=None if reference is None else reference.directory,
        trust_remote_code=session.config.policy.trust_remote_code,
        ranks=ranks,
        lora=_lora_settings(session),
    )


def _lora_settings(session: Session) -> LoraSettings | None:
    from igrpo_cli.training.adapters import LoraSettings

    section = session.config.update
    if not section.lora_r:
        return None
    targets = tuple(section.lora_target_modules)
    return LoraSettings(section.lora_r, section.lora_alpha, targets, derive_seed(session.config.run.seed, "lora"))


def _training_settings(section: UpdateSection) -> TrainingSettings:
    from igrpo_cli.algo.losses import LossSettings
    from igrpo_cli.training.optimizer import OptimizerSettings
    from igrpo_cli.training.restore import compute_dtype
    from igrpo_cli.training.step import TrainingSettings

    return TrainingSettings(
        loss=LossSettings(
            loss_type=section.loss_type,
            epsilon=section.epsilon,
            epsilon_high=section.epsilon_high,
            beta=section.beta,
            importance_cap=section.importance_cap if section.old_logprobs == "sampler" else None,
        ),
        optimizer=OptimizerSettings(
            adam_beta1=section.adam_beta1,
            adam_beta2=section.adam_beta2,
            adam_epsilon=section.adam_epsilon,
            weight_decay=section.weight_decay,
            max_grad_norm=section.max_grad_norm,
        ),
        dtype=compute_dtype(section.dtype),
        gradient_checkpointing=section.gradient_checkpointing,
        max_tokens_per_batch=section.max_tokens_per_batch,
    )


def _train(
    session: Session,
    trainer: PolicyTrainer,
    groups: list[TrainingGroup],
    iteration: int,
    checkpoints: StepCheckpoints,
) -> list[Step]:
    """All optimiser steps of the iteration: `num_epochs` passes over `num_minibatches` parts of the groups."""
    from igrpo_cli.pipeline.update_files import Step

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
