"""The optimiser states of a run: whether one is what its update published, and which are still needed."""

from __future__ import annotations

from pathlib import Path

from igrpo_cli.errors import ConflictError, MissingInputError
from igrpo_cli.pipeline.session import Session
from igrpo_cli.store.atomic import remove_directory, remove_stale_temporaries, sha256_file
from igrpo_cli.store.checksummed_json import RECORD, verify_directory
from igrpo_cli.store.layout import RunDirectory, UpdatePath
from igrpo_cli.store.manifest import FileHash, Manifest, read_manifest
from igrpo_cli.store.policies import Policy


def verify_optimizer_state(update: UpdatePath, policy: Policy) -> None:
    """Check the optimiser state that `update` left behind together with `policy`.

    Raises MissingInputError where it is gone, DamagedFileError where a file changed, ConflictError where it is the
    state of another update, or `update` made another policy or was made from an update that is no longer there.
    """
    if not update.optimizer.is_dir():
        raise MissingInputError(
            f"the optimiser state of iteration {update.iteration} is gone: {update.optimizer} does not exist",
            hint="--set update.optimizer_state=fresh starts without it",
        )
    verify_directory(update.optimizer)
    manifest = read_manifest(update.shard)
    what = _misfit(update, manifest, policy)
    if what is not None:
        raise ConflictError(what, hint=f"{update.shard.overwrite_command} makes policy and optimiser state anew")


def _misfit(update: UpdatePath, manifest: Manifest, policy: Policy) -> str | None:
    """What does not belong to the update of `manifest`, in one sentence."""
    made = {file.path: file.sha256 for file in manifest.outputs}
    record = update.optimizer / RECORD
    # The updates of the first igrpo say nothing of their optimiser state.
    if made.get(_relative(update, record)) not in (None, sha256_file(record)):
        return f"{update.optimizer} is not the optimiser state that {update.shard.name} published"
    place = RunDirectory(update.root).policy(update.iteration + 1)
    if any(made.get(_relative(update, place / name)) != sha256 for name, sha256 in policy.files.items()):
        return f"{update.shard.name} made another policy than the one that lies in {place}"
    return _made_from_another(update, manifest)


def _made_from_another(update: UpdatePath, manifest: Manifest) -> str | None:
    before = RunDirectory(update.root).update(update.iteration - 1).shard
    then = {file.path: file.sha256 for file in manifest.identity.inputs}.get(before.relative)
    if then is None or not before.manifest.exists() or read_manifest(before).data.sha256 == then:
        return None
    return f"{update.shard.name} went on from another update of iteration {before.iteration} than {before.data.parent}"


def recorded_states(update: UpdatePath, staged: UpdatePath) -> list[FileHash]:
    """The records of the staged optimiser state and adapter, under their final names, for the update's manifest."""
    places = ((staged.optimizer, update.optimizer), (staged.adapter, update.adapter))
    return [
        FileHash(_relative(update, place / RECORD), sha256_file(made / RECORD))
        for made, place in places
        if made.is_dir()
    ]


def prune_optimizer_states(session: Session, iteration: int) -> None:
    """Remove the optimiser states that the one of `iteration` makes superfluous, and what kills left of such removals.

    Those of all iterations, not only of the one that has just become superfluous: a kill may have left any of them.
    """
    keep = session.config.update.keep_optimizer_states
    for earlier in session.run.iterations():
        update = session.run.update(earlier)
        if keep and earlier <= iteration - keep and update.optimizer.is_dir():
            remove_directory(update.optimizer)
        if earlier <= iteration:
            remove_stale_temporaries(update.directory)


def _relative(update: UpdatePath, path: Path) -> str:
    return path.relative_to(update.root).as_posix()
