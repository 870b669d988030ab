"""`igrpo update`: train the policy on the rollouts of one iteration with the GRPO loss, and publish the next policy.

This is the last stage of iGRPO (arXiv 2602.09000). It trains on the refinements, unless `update.train_on` names the
drafts too. Each optimiser step is `training.step.PolicyTrainer.step`: the clipped loss of `algo.losses`, with the KL
term of `update.beta`, gradient clipping and AdamW, whose state continues from the update before. With one step per
iteration every ratio is 1 and the clip has no effect. The log-probs of the sampler are used for metrics and for
`update.importance_sampling_correction`, and never as old log-probs.
"""

from __future__ import annotations

from dataclasses import replace

from igrpo_cli.errors import MissingInputError
from igrpo_cli.pipeline.session import Session, StageRequest
from igrpo_cli.pipeline.stage_shards import StageShards, UnfinishedShard
from igrpo_cli.pipeline.update_steps import ONLY_SHARD, plan, read_minibatches, take_steps
from igrpo_cli.records import StageReport
from igrpo_cli.store.atomic import clear_directory, remove_directory, remove_stale_temporaries
from igrpo_cli.store.completion import completed_update
from igrpo_cli.store.layout import CHECKPOINT_DIRECTORIES, bench_name
from igrpo_cli.store.manifest import Manifest
from igrpo_cli.store.policies import Policy, promote_policy
from igrpo_cli.torchrun import rank_and_size

# numpy, pyarrow and torch are imported where they are needed, so that a command with nothing to do starts fast.


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
    from igrpo_cli.pipeline.recomputation import restore_optimizer_state
    from igrpo_cli.pipeline.step_checkpoints import StepCheckpoints
    from igrpo_cli.pipeline.update_artifacts import publish_update
    from igrpo_cli.pipeline.update_trainer import keep_warm, load_trainer
    from igrpo_cli.training.ranks import joined_ranks

    iteration = shard.path.iteration
    observations, minibatches = read_minibatches(session, iteration, policy)
    with joined_ranks(f"update {iteration}") as ranks:
        restore_optimizer_state(session, policy, iteration, ranks)
        trainer = load_trainer(session, policy, iteration, ranks)
        checkpoints = StepCheckpoints(session.run.update(iteration), shard.identity, session.console)
        steps = take_steps(session, trainer, minibatches, iteration, checkpoints)
        manifest, is_ours = publish_update(session, shard, trainer, policy, observations, steps)
        if is_ours:
            keep_warm(session, trainer, iteration)
    return manifest


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
    """Remove the policies that `policy.keep` does not keep after the update of `iteration`.

    Those since the newest optimiser state stay: the updates after it may have to be computed again. With `deltas`, the
    difference of a policy from the one before is written while both are there.
    """
    section, run = session.config.policy, session.run
    newest = iteration + 1
    if section.num_kept is None or not run.policy(newest).is_dir():
        return
    states = [each for each in run.iterations() if each <= iteration and run.update(each).optimizer.is_dir()]
    last = min(newest - section.num_kept, max(states, default=0))
    for policy in run.policy_iterations():
        if not 0 < policy <= last or _is_to_be_evaluated(session, policy):
            continue
        if section.keep == "deltas":
            from igrpo_cli.store.deltas import write_delta

            write_delta(run, policy)
            if run.policy(policy + 1).is_dir():
                write_delta(run, policy + 1)
        remove_directory(run.policy(policy))


def _is_to_be_evaluated(session: Session, policy: int) -> bool:
    """Return True for a policy of the schedule of `run.eval_every` that lacks an evaluation."""
    config = session.run_config.latest
    if config.run.eval_every is None or policy % config.run.eval_every:
        return False
    name = bench_name(config.run.eval_bench or "")
    summaries = [session.run.eval_summary(name, policy, conditioned=kind) for kind in config.evaluations]
    return not all(summary.exists() for summary in summaries)
