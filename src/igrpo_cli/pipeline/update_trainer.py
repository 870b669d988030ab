"""Load the trainer of an update from disk or from this process, and manage the optimiser states of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from igrpo_cli.config.update import UpdateSection
from igrpo_cli.errors import ConflictError, MissingInputError
from igrpo_cli.pipeline.provenance import recorded_config
from igrpo_cli.pipeline.session import Session
from igrpo_cli.records import TrainingGroup
from igrpo_cli.seeds import derive_seed
from igrpo_cli.store.atomic import remove_directory, remove_stale_temporaries
from igrpo_cli.store.checksummed_json import RECORD, verify_directory
from igrpo_cli.store.hashing import sha256_file
from igrpo_cli.store.layout import RunDirectory, UpdatePath
from igrpo_cli.store.manifest import Manifest, read_manifest
from igrpo_cli.store.policies import Policy, read_policy, verify_policy

if TYPE_CHECKING:
    from igrpo_cli.training.ranks import Ranks
    from igrpo_cli.training.step import PolicyTrainer


def previous_update(session: Session, iteration: int) -> UpdatePath | None:
    """Return the update whose optimiser directory this iteration continues from; None where it needs none.

    A fresh optimiser still needs the weights of that directory: float32 weights where the policy was published in
    another dtype, and LoRA adapters, which the policy holds merged.
    """
    section = session.config.update
    needs_weights = session.config.policy.dtype != "float32" or section.lora_r > 0
    needs_nothing = section.optimizer_state == "from_policy" or (
        section.optimizer_state == "fresh" and not needs_weights
    )
    return None if iteration == 0 or needs_nothing else session.run.update(iteration - 1)


def updates_to_recompute(session: Session, iteration: int) -> range:
    """Return the updates whose steps make the optimiser state that `iteration` continues from; none if it is there."""
    first = iteration
    reader = Session(session.run, session.run_config, session.console)
    while first > 0:
        reader.enter(first)
        if first < iteration:
            reader.config = recorded_config(session.run, first, reader.config)
        before = previous_update(reader, first)
        if before is None or before.optimizer.is_dir():
            break
        first -= 1
    return range(first, iteration)


def writes_optimizer_state(session: Session, trainer: PolicyTrainer, iteration: int) -> bool:
    """Return True if the update of `iteration` writes the optimiser state (`update.save_optimizer_every`)."""
    if session.last_iteration is None or not _stays_in_memory(session, trainer):
        return True
    return iteration >= session.last_iteration or (iteration + 1) % session.config.update.save_optimizer_every == 0


def _stays_in_memory(session: Session, trainer: PolicyTrainer) -> bool:
    """Return True if the next update of this process continues with `trainer` itself.

    A trainer on a GPU is not kept, because sampling needs the memory, unless its weights are in host memory
    (`update.offload_optimizer`). The memory of the GPU is freed then.
    """
    is_whole = trainer.ranks.size == 1 and trainer.is_on_host
    return is_whole and session.config.update.optimizer_state == "carry"


def keep_warm(session: Session, trainer: PolicyTrainer, iteration: int) -> None:
    """Keep the trainer in memory for the next update of this process, which would restore the same state."""
    if _stays_in_memory(session, trainer):
        trainer.release_device()
        session.warm_trainer = (session.policy(iteration + 1).id, trainer)


def load_trainer(session: Session, policy: Policy, iteration: int, ranks: Ranks) -> PolicyTrainer:
    """Return the trainer of `policy` with the optimiser of the previous update, and the reference if beta > 0."""
    with session.console.activity(f"update of iteration {iteration}: loading the policy"):
        return _load(session, policy, iteration, ranks)


def _load(session: Session, policy: Policy, iteration: int, ranks: Ranks) -> PolicyTrainer:
    from igrpo_cli.training.restore import restore_trainer

    warm, session.warm_trainer = session.warm_trainer, None
    if warm is not None and warm[0] == policy.id:
        return warm[1]
    verify_policy(policy)
    reference = read_policy(session.run, 0) if session.config.update.beta > 0 else None
    if reference is not None:
        verify_policy(reference)
    previous = previous_update(session, iteration)
    if previous is not None:
        verify_optimizer_state(previous, policy)
    base = read_policy(session.run, 0) if session.config.update.lora_r else policy
    if base is not policy:
        verify_policy(base)
    trainer = restore_trainer(
        base.directory,
        session.config.update,
        session.config.policy,
        previous=None if previous is None else previous.optimizer,
        reference=None if reference is None else reference.directory,
        adapter_seed=derive_seed(session.config.run.seed, "lora"),
        ranks=ranks,
    )
    if failure := trainer.policy.attention_failure:
        session.console.note(f"FlexAttention cannot be used ({failure}): attention takes more memory and time")
    return trainer


def gradient_cosines(
    session: Session, policy: Policy, variants: Sequence[tuple[UpdateSection, Sequence[TrainingGroup] | None]]
) -> list[float | None]:
    """Return the cosine of the gradient of each variant, at `policy`, with that of the first one.

    A variant is its settings and its groups with advantages. The gradient is that of the loss of all its groups. None
    without groups, and where one of the gradients is 0. A variant that is equal to the first one has the cosine 1.
    """
    from igrpo_cli.training.step import PolicyTrainer, cosine, objective_of

    (first_section, first), beta = variants[0], max(section.beta for section, _ in variants)
    if not first:
        return [None] * len(variants)
    base = _load_published(session, policy, {"beta": beta})
    cosines: list[float | None] = []
    own, own_key = None, (objective_of(first_section), _key(first))
    for section, groups in variants:
        if not groups:
            cosines.append(None)
            continue
        # The layers of the policy recompute their activations already, if they should.
        section = section.model_copy(update={"gradient_checkpointing": False, "offload_optimizer": False})
        gradient = own
        if own is None or (objective_of(section), _key(groups)) != own_key:
            gradient = PolicyTrainer(base.policy, section, base.reference).gradient(groups)
        own = own or gradient
        assert own is not None
        assert gradient is not None
        found = cosine(own, gradient)
        cosines.append(None if math.isnan(found) else found)
    return cosines


def sample_sizes(
    session: Session, policy: Policy, variants: Sequence[Sequence[TrainingGroup] | None]
) -> list[tuple[float, float] | tuple[None, None]]:
    """Return the effective sample sizes of groups under `policy`: as shares of their tokens and of their completions.

    The weight of a token is its probability under `policy` divided by that under the sampler, and the weight of a
    completion the product over its tokens. None without groups.
    """
    import numpy as np

    from igrpo_cli.algo.estimates import effective_sample_size

    trainer = _load_published(session, policy, {"beta": 0.0, "lora_r": 0})
    known: dict[object, tuple[float, float]] = {}
    sizes: list[tuple[float, float] | tuple[None, None]] = []
    for groups in variants:
        if not groups:
            sizes.append((None, None))
            continue
        key = tuple((group.stage, group.group_id, tuple(group.prompt_ids)) for group in groups)
        if key not in known:
            sampled = [np.asarray(each, np.float64) for group in groups for each in group.sampling_logprobs]
            log_weights = trainer.compute_old_logprobs(groups) - np.concatenate(sampled)
            of_token = np.repeat(np.arange(len(sampled)), [len(each) for each in sampled])
            of_sequence = np.bincount(of_token, log_weights, minlength=len(sampled))
            known[key] = effective_sample_size(log_weights), effective_sample_size(of_sequence)
        sizes.append(known[key])
    return sizes


def _key(groups: Sequence[TrainingGroup]) -> list[object]:
    """Return what two lists of groups of one iteration may differ in."""
    scalars = [(each.stage, each.group_id, each.loss_weight, each.shaping_gamma) for each in groups]
    lists = [(*each.prompt_ids, *each.advantages, *each.is_masked) for each in groups]
    return [scalars, lists]


def _load_published(session: Session, policy: Policy, changes: dict[str, float]) -> PolicyTrainer:
    """Return a trainer of a policy as it was published, for gradients and log-probs, with a new optimiser.

    With LoRA adapters (`lora_r`), which a published policy has merged, they come from the update that made it.
    """
    from igrpo_cli.training.ranks import Ranks

    config = session.config
    update = config.update.model_copy(update={**changes, "optimizer_state": "fresh", "offload_optimizer": False})
    dtype = config.policy.dtype if update.lora_r else "float32"
    changed = {"update": update, "policy": config.policy.model_copy(update={"dtype": dtype})}
    reader = Session(session.run, config.model_copy(update=changed), session.console)
    return load_trainer(reader, policy, policy.iteration, Ranks())


def verify_optimizer_state(update: UpdatePath, policy: Policy) -> None:
    """Check the optimiser state that `update` published together with `policy`.

    Raises MissingInputError where it does not exist, DamagedFileError where a file changed, and ConflictError where it
    belongs to another update, or where `update` made another policy or continued from another update.
    """
    if not update.optimizer.is_dir():
        raise MissingInputError(
            f"the optimiser state of iteration {update.iteration} is gone: {update.optimizer} does not exist",
            hint="--set update.optimizer_state=from_policy starts from the published weights, without moments",
        )
    verify_directory(update.optimizer)
    manifest = read_manifest(update.shard)
    what = _conflict_of(update, manifest, policy)
    if what is not None:
        raise ConflictError(what, hint=f"{update.shard.overwrite_command} recreates policy and optimiser state")


def _conflict_of(update: UpdatePath, manifest: Manifest, policy: Policy) -> str | None:
    """Return what does not belong to the update of `manifest`, in one sentence; None where all does."""
    made = {file.path: file.sha256 for file in manifest.outputs}
    record = update.optimizer / RECORD
    # An update that wrote no state has no hash of it. The state was then computed again (`restore_optimizer_state`).
    if made.get(update.relative(record), sha256_file(record)) != sha256_file(record):
        return f"{update.optimizer} is not the optimiser state that {update.shard.name} published"
    place = RunDirectory(update.root).policy(update.iteration + 1)
    if any(made.get(update.relative(place / name)) != sha256 for name, sha256 in policy.files.items()):
        return f"{update.shard.name} made another policy than the one that lies in {place}"
    return _conflict_with_previous(update, manifest)


def _conflict_with_previous(update: UpdatePath, manifest: Manifest) -> str | None:
    before = RunDirectory(update.root).update(update.iteration - 1).shard
    then = {file.path: file.sha256 for file in manifest.identity.inputs}.get(before.relative)
    if then is None or not before.manifest.exists() or read_manifest(before).data.sha256 == then:
        return None
    return (
        f"{update.shard.name} continued from another update of iteration {before.iteration} than {before.data.parent}"
    )


def prune_optimizer_states(session: Session, iteration: int) -> None:
    """Remove the optimiser states that `update.keep_optimizer_states` does not keep after `iteration`.

    The newest ones up to `iteration` are kept, which need not be those of the last iterations. All iterations are
    checked, since a killed process may have left any of them.
    """
    keep = session.config.update.keep_optimizer_states
    updates = [session.run.update(earlier) for earlier in session.run.iterations() if earlier <= iteration]
    written = [update for update in updates if update.optimizer.is_dir()]
    for update in written[:-keep] if keep else ():
        remove_directory(update.optimizer)
    for update in updates:
        remove_stale_temporaries(update.directory)
