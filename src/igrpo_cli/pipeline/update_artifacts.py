"""Write and publish the results of an update: the next policy, the optimiser state, metrics and an audit copy."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from igrpo_cli.errors import ConflictError, DamagedFileError, MissingInputError
from igrpo_cli.inspection.run_state import CURVES, iteration_costs
from igrpo_cli.pipeline.session import Session
from igrpo_cli.pipeline.stage_shards import UnfinishedShard
from igrpo_cli.pipeline.step_checkpoints import shared_staging_directory
from igrpo_cli.pipeline.training_groups import Observations
from igrpo_cli.pipeline.update_trainer import writes_optimizer_state
from igrpo_cli.records import Metric, TrainingGroup
from igrpo_cli.store.atomic import flush_files, publish_directory, remove_directory
from igrpo_cli.store.checksummed_json import RECORD, record_directory
from igrpo_cli.store.completion import completed_update
from igrpo_cli.store.hashing import sha256_file
from igrpo_cli.store.layout import UpdatePath
from igrpo_cli.store.manifest import DataFile, FileHash, Manifest, publish_manifest
from igrpo_cli.store.policies import (
    Policy,
    promote_policy,
    read_policy,
    verify_policy,
    write_policy_manifest,
)
from igrpo_cli.store.schema import ADVANTAGES, METRICS
from igrpo_cli.store.tables import write_rows
from igrpo_cli.training.restore import TrainerPlaces, save_trainer
from igrpo_cli.training.step import PolicyTrainer, StepResult


@dataclass(frozen=True)
class Step:
    """Represents one optimiser step of the iteration."""

    number: int
    """Number of the step, counted from 0 over the whole run."""
    groups: Sequence[TrainingGroup]
    result: StepResult


def stage_trainer(
    session: Session, trainer: PolicyTrainer, policy: Policy, iteration: int, staged: Path, *, with_optimizer: bool
) -> None:
    """Write the new policy and the optimiser state into the staging directory; every rank must call this."""
    names = UpdatePath(session.run.root, iteration, staged)
    places = TrainerPlaces(names.policy, names.optimizer if with_optimizer else None, names.adapter)
    save_trainer(trainer, policy.directory, places, session.config.policy)


def record_policy(session: Session, policy: Policy, iteration: int, staged: Path) -> list[FileHash]:
    """Write the records of policy, optimiser state and adapter into the staging directory.

    Returns the files of the policy and the records of optimiser state and adapter, all under their final names.
    """
    names = UpdatePath(session.run.root, iteration, staged)
    written = [path for path in staged.rglob("*") if path.is_file()]
    # Hashing gigabytes leaves the disk idle, so the files are flushed at the same time.
    with ThreadPoolExecutor() as executor:
        others = [executor.submit(record_directory, each) for each in (names.optimizer, names.adapter) if each.is_dir()]
        others.append(executor.submit(flush_files, written))
        made = write_policy_manifest(names.policy, iteration + 1, parent=policy.id)
        for other in others:
            other.result()
    place = session.run.policy(iteration + 1).relative_to(session.run.root)
    files = [FileHash((place / name).as_posix(), sha256) for name, sha256 in sorted(made.files.items())]
    return files + _recorded_states(session.run.update(iteration), names)


def _recorded_states(update: UpdatePath, staged: UpdatePath) -> list[FileHash]:
    """Return the records of the staged optimiser state and adapter under their final names."""
    places = ((staged.optimizer, update.optimizer), (staged.adapter, update.adapter))
    return [
        FileHash(update.relative(place / RECORD), sha256_file(made / RECORD)) for made, place in places if made.is_dir()
    ]


def stage_metrics(path: UpdatePath, staged: Path, whole: Mapping[str, float], steps: list[Step]) -> DataFile:
    """Write the metrics of the iteration (step -1) and of each step. Without times, so that inputs decide the bytes."""
    found = [(-1, whole), *((step.number, step.result.metrics) for step in steps)]
    rows = [Metric(path.iteration, number, name, value) for number, values in found for name, value in values.items()]
    return write_rows(staged / path.metrics.name, METRICS, [rows])


def stage_advantages(path: UpdatePath, staged: Path, steps: list[Step]) -> FileHash:
    """Write the audit copy: what each completion contributed to each step."""
    blocks = [_audit_rows(path.iteration, step) for step in steps]
    data = write_rows(staged / path.advantages.name, ADVANTAGES, blocks)
    return FileHash(path.relative(path.advantages), data.sha256)


def _audit_rows(iteration: int, step: Step) -> list[dict[str, object]]:
    audit = step.result.audit
    samples = [(group, sample) for group in step.groups for sample in range(len(group.completion_ids))]
    return [
        {
            "iteration": iteration,
            "step": step.number,
            "stage": group.stage,
            "problem_id": group.problem_id,
            "group_id": group.group_id,
            "sample_id": sample,
            "reward": group.rewards[sample],
            "advantage": group.advantages[sample],
            "num_tokens": int(audit.num_tokens[row]),
            "old_logprob_mean": float(audit.old_logprob[row]),
            "policy_entropy_mean": float(audit.entropy[row]),
        }
        for row, (group, sample) in enumerate(samples)
    ]


def publish_update(
    session: Session,
    shard: UnfinishedShard,
    trainer: PolicyTrainer,
    policy: Policy,
    observations: Observations,
    steps: list[Step],
) -> tuple[Manifest, bool]:
    """Write policy, optimiser state, metrics and audit copy, and publish them; every rank must call this.

    Returns the manifest of the update that exists then, and True where this process alone made it. Where another task
    completed the same update first, that update is kept.
    """
    ranks, update = trainer.ranks, session.run.update(shard.path.iteration)
    existing = manifest = None
    with shared_staging_directory(update.directory, ranks) as staged:
        with session.console.activity(f"update of iteration {update.iteration}: writing policy and optimiser"):
            with_optimizer = writes_optimizer_state(session, trainer, update.iteration)
            stage_trainer(session, trainer, policy, update.iteration, staged, with_optimizer=with_optimizer)
        if ranks.is_first:
            outputs = record_policy(session, policy, update.iteration, staged)
            outputs.append(stage_advantages(update, staged, steps))
            whole = observations.metrics()
            before = iteration_costs(session.run, update.iteration, session.config.stages()[:-1])
            groups = {(group.stage, group.group_id): group for step in steps for group in step.groups}.values()
            manifest = shard.provenance.manifest(
                shard.identity,
                stage_metrics(update, staged, whole, steps),
                device=f"{ranks.describe()}, {trainer.dtype}",
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
                metrics={name: whole[name] for name in CURVES if math.isfinite(whole.get(name, math.nan))},
                spent=before.stages,
                wall_seconds=before.wall_seconds,
            )
            existing = _publish(session, update, staged, manifest, overwrite=shard.overwrite)
    found = ranks.broadcast(existing)
    assert found is not None
    return found, ranks.size == 1 and existing is manifest


def _publish(session: Session, path: UpdatePath, staged: Path, manifest: Manifest, *, overwrite: bool) -> Manifest:
    """Publish the staged update in one rename, then promote its policy; return the manifest that exists then.

    An update that exists already was completed by another task and is kept, or it is damaged or to be overwritten.
    """
    publish_manifest(staged / path.manifest.name, manifest)
    if path.directory.exists():
        theirs = None if overwrite else completed_update(session.run, path, manifest.identity)
        if theirs is not None:
            return theirs
        remove_directory(path.directory)
    if overwrite or _is_damaged(session, path.iteration + 1):
        remove_directory(session.run.policy(path.iteration + 1))
        remove_directory(session.run.delta(path.iteration + 1))
    try:
        publish_directory(staged, path.directory)
    except ConflictError:
        theirs = completed_update(session.run, path, manifest.identity)
        if theirs is None:
            raise
        return theirs
    promote_policy(session.run, path.iteration)
    return manifest


def _is_damaged(session: Session, iteration: int) -> bool:
    """Return True where the place of a policy holds something other than an intact policy."""
    try:
        verify_policy(read_policy(session.run, iteration))
    except DamagedFileError:
        return True
    except MissingInputError:
        return os.path.lexists(session.run.policy(iteration))  # A broken link counts, too.
    return False
