"""Compute updates again from their rollouts: to verify them, and to restore an optimiser state that was removed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from igrpo_cli.errors import ConflictError, MissingInputError
from igrpo_cli.pipeline import update_artifacts as artifacts
from igrpo_cli.pipeline.provenance import environment_differences, recorded_config
from igrpo_cli.pipeline.session import Session, StageRequest
from igrpo_cli.pipeline.stage_shards import StageShards
from igrpo_cli.pipeline.step_checkpoints import StepCheckpoints
from igrpo_cli.pipeline.update_steps import ONLY_SHARD, plan, read_minibatches, take_steps
from igrpo_cli.pipeline.update_trainer import load_trainer, updates_to_recompute
from igrpo_cli.store.atomic import copy_content, publish_directory, staging_directory
from igrpo_cli.store.checksummed_json import RECORD, recorded_files
from igrpo_cli.store.conflicts import require_same
from igrpo_cli.store.layout import UpdatePath
from igrpo_cli.store.manifest import FileHash, Identity, Manifest, read_manifest
from igrpo_cli.store.policies import Policy, policy_id, read_policy
from igrpo_cli.training.ranks import Ranks
from igrpo_cli.training.step import PolicyTrainer


@dataclass(frozen=True)
class Recomputation:
    """An update that was computed again, in a directory of its own."""

    is_equal: dict[str, bool]
    """True for each file of the update whose hash is the recorded one."""
    environment: list[str]
    """What differs between this environment and that of the update."""


def recompute(session: Session, iteration: int, restore_to: Path | None = None) -> Recomputation:
    """Take the steps of a complete update again and compare the hashes of its files with those of its manifest.

    Everything is written into a temporary directory. If all hashes are equal, the optimiser state is also published as
    `restore_to`, and the session keeps the trainer for the next update.

    Raises MissingInputError, ConflictError and DamagedFileError where an input is missing, another one, or damaged.
    """
    update = session.run.update(iteration)
    manifest = read_manifest(update.shard)
    session.enter(iteration)
    session.config = recorded_config(session.run, iteration, session.config)
    policy = read_policy(session.run, iteration)
    request = StageRequest(iteration, ONLY_SHARD)
    identity = StageShards(session, request, plan(session, iteration, policy)).identity_of(update.shard)
    require_same(manifest.identity, identity, update.shard.overwrite_command)
    if session.warm_trainer is not None and session.warm_trainer[1].config != session.config.update:
        session.warm_trainer = None
    with tempfile.TemporaryDirectory(prefix="igrpo-replay-") as folder:
        scratch = UpdatePath(Path(folder), iteration, Path(tempfile.mkdtemp(dir=folder)))
        outputs, trainer = _take_steps_again(session, policy, scratch, identity)
        is_equal = dict(_compared(manifest, outputs, update, scratch))
        if restore_to is not None and all(is_equal.values()):
            with staging_directory(restore_to) as staged, suppress(ConflictError):  # Another task was faster.
                copy_content(scratch.optimizer, staged)
                publish_directory(staged, restore_to)
    if all(is_equal.values()) and session.config.update.optimizer_state == "carry":
        # The next update continues from this state, which may have been removed from the run.
        made = {Path(file.path).name: file.sha256 for file in outputs if file.path.startswith("policies/")}
        session.warm_trainer = (policy_id(made), trainer)
    return Recomputation(is_equal, environment_differences(manifest, f"{trainer.ranks.describe()}, {trainer.dtype}"))


def restore_optimizer_state(session: Session, policy: Policy, iteration: int, ranks: Ranks) -> None:
    """Make the optimiser state again that an update continues from, if it was removed or not written.

    The updates since the last state that is left are computed again from their rollouts. Does nothing under torchrun,
    where the state has another form, and where the trainer of `policy` is in memory.

    Raises ConflictError where the hashes differ from those that the run has recorded, and as `recompute`.
    """
    is_warm = session.warm_trainer is not None and session.warm_trainer[0] == policy.id
    missing = range(0) if is_warm or ranks.size > 1 else updates_to_recompute(session, iteration)
    if not missing:
        return
    last = iteration - 1
    which = f"updates {missing[0]} to {last}" if len(missing) > 1 else f"update {last}"
    session.console.note(f"the optimiser state of iteration {last} does not exist; computing {which} again")
    fresh = "--set update.optimizer_state=from_policy starts from the published weights, without moments"
    reader = Session(session.run, session.run_config, session.console)
    for each in missing:
        try:
            found = recompute(reader, each, session.run.update(each).optimizer if each == last else None)
        except MissingInputError as error:
            stored = [policy for policy in missing if session.run.delta(policy).is_dir()]
            raise MissingInputError(
                f"the optimiser state of iteration {last} does not exist, and cannot be computed again: "
                f"{error.message}",
                hint=error.hint if stored else fresh,
            ) from error
        if differing := [file for file, is_equal in found.is_equal.items() if not is_equal]:
            why = "; ".join(found.environment) or "another number of CPU threads"
            raise ConflictError(
                f"the optimiser state of iteration {last} does not exist, and update {each}, computed again, has "
                f"another {differing[0]}: {why}",
                hint=f"continue where the run was made, or: {fresh}",
            )


def _take_steps_again(
    session: Session, policy: Policy, scratch: UpdatePath, identity: Identity
) -> tuple[list[FileHash], PolicyTrainer]:
    """Take the steps of an update and write its files to `scratch`; return them under their final names."""
    iteration, staged = scratch.iteration, scratch.directory
    trainer = load_trainer(session, policy, iteration, Ranks())
    observations, minibatches = read_minibatches(session, iteration, policy)
    checkpoints = StepCheckpoints(scratch, identity, session.console)
    steps = take_steps(session, trainer, minibatches, iteration, checkpoints)
    artifacts.stage_trainer(session, trainer, policy, iteration, staged, with_optimizer=True)
    update = session.run.update(iteration)
    outputs = artifacts.record_policy(session, policy, iteration, staged)
    outputs.append(artifacts.stage_advantages(update, staged, steps))
    metrics = artifacts.stage_metrics(update, staged, observations.metrics(), steps)
    return [*outputs, FileHash(update.relative(update.metrics), metrics.sha256)], trainer


def _compared(
    manifest: Manifest, outputs: Sequence[FileHash], update: UpdatePath, scratch: UpdatePath
) -> Iterator[tuple[str, bool]]:
    """Yield each file of an update with True if its hash is the recorded one.

    The manifest has one hash for all files of an optimiser state. They are named one by one if they are still there. An
    update that wrote no state (`update.save_optimizer_every`) has none to compare.
    """
    then = {file.path: file.sha256 for file in manifest.outputs}
    then[update.relative(update.metrics)] = manifest.data.sha256
    state = update.relative(update.optimizer / RECORD)
    now = {file.path: file.sha256 for file in outputs if file.path != state or state in then}
    for path in sorted({*then, *now}):
        is_equal = then.get(path) == now.get(path)
        name = Path(path).parent.name
        kept, made = update.directory / name, scratch.directory / name
        if Path(path).parent.parent != Path(update.relative(update.directory)) or not kept.is_dir() or is_equal:
            yield path, is_equal
            continue
        before, after = recorded_files(kept), recorded_files(made)
        for file in sorted({*before, *after}):
            yield path.replace(RECORD, file), before.get(file) == after.get(file)
