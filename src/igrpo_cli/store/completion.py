"""Decide if a shard is complete, complete it, and open it as an input of the next stage.

Every stage takes the same steps: `completed` returns the manifest of a shard that needs no work, `commit_shard`
publishes data and manifest, and the next stage begins with `open_input`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from igrpo_cli.errors import ConflictError, DamagedFileError, IgrpoError, MissingInputError
from igrpo_cli.records import Problem
from igrpo_cli.store.atomic import publish_bytes, remove_file
from igrpo_cli.store.checksummed_json import UnknownSchemaError
from igrpo_cli.store.conflicts import identity_differences, require_same
from igrpo_cli.store.hashing import sha256_file
from igrpo_cli.store.layout import RunDirectory, ShardPath, UpdatePath
from igrpo_cli.store.manifest import DataFile, FileHash, Identity, Manifest, publish_manifest, read_manifest
from igrpo_cli.store.policies import promote_policy


def completed(path: ShardPath, identity: Identity, on_damage: Callable[[str], None] | None = None) -> Manifest | None:
    """Return the manifest of a shard that is complete, and None for a shard that is to be made.

    A manifest that is damaged, or whose files do not exist or have another size, counts as incomplete; `on_damage`
    receives the reason in one sentence. The data is not read here: `open_input` checks its hash. For an update use
    `completed_update`.

    Raises ConflictError when the shard has another identity, and UnknownSchemaError when another version of igrpo made
    it.
    """
    manifest, damage = None, None
    try:
        manifest = read_manifest(path)
        require_same(manifest.identity, identity, path.overwrite_command)
        damage = _damage(path, manifest)
    except MissingInputError:
        return None
    except UnknownSchemaError:
        raise
    except DamagedFileError as error:
        damage = error.message
    if damage is None:
        return manifest
    if on_damage is not None:
        on_damage(damage)
    return None


def completed_update(run: RunDirectory, path: UpdatePath, identity: Identity) -> Manifest | None:
    """Return `completed` of an update, after its policy is promoted. Raises as `completed` and `promote_policy`."""
    promote_policy(run, path.iteration)
    return completed(path.shard, identity)


def damage_of(path: ShardPath) -> str | None:
    """Return why a shard that has a manifest is not complete; None for a complete one. The data is not read."""
    try:
        return _damage(path, read_manifest(path))
    except IgrpoError as error:
        return error.message


def commit_shard(
    path: ShardPath,
    identity: Identity,
    write: Callable[[bool], DataFile],
    describe: Callable[[DataFile], Manifest],
    *,
    overwrite: bool = False,
) -> Manifest:
    """Publish the data and then the manifest of a shard; return the manifest that exists afterwards.

    `write(replace)` publishes the data file (`write_rows`, `assemble`), and `describe` makes its manifest. Where
    another task completes the same shard first, its shard is kept and returned. Data without a manifest, left by a
    writer that died in between, is replaced; a complete shard is replaced only with `overwrite`.
    """
    existed = path.manifest.exists()
    if not overwrite and (theirs := completed(path, identity)):
        return theirs
    if existed:
        remove_file(path.manifest)
    try:
        data = write(overwrite)
    except (ConflictError, MissingInputError) as error:
        # Another task may have finished meanwhile, and cleared the parts that this one was reading.
        if theirs := completed(path, identity):
            return theirs
        if not isinstance(error, ConflictError):
            raise
        data = write(True)
    return commit_manifest(path, describe(data))


def adopt_shard(path: ShardPath, identity: Identity, roots: Iterable[Path]) -> Manifest | None:
    """Copy the shard from another run that has a complete one of the same identity; return its manifest.

    Equal identities ask for the same rows, so nothing is made twice. The copy keeps the manifest: who made the shard,
    and what it took. `roots` are the run directories to look in. None if no shard there is complete and intact. An
    update is never copied: it has more files than its data, and trains a policy of its own run.
    """
    found = next(filter(None, (_same_shard(path, identity, root) for root in roots)), None)
    if found is None:
        return None
    manifest, content = found

    def write(replaces: bool) -> DataFile:
        publish_bytes(path.data, content, replace=replaces)
        return manifest.data

    return commit_shard(path, identity, write, lambda _: manifest)


def _same_shard(path: ShardPath, identity: Identity, root: Path) -> tuple[Manifest, bytes] | None:
    data, file = (root / each.relative_to(path.root) for each in (path.data, path.manifest))
    other = replace(path, root=root, data=data, manifest=file)
    try:
        if not file.exists():
            return None
        manifest = read_manifest(other)
        if manifest.outputs or identity_differences(manifest.identity, identity):
            return None
        return open_input(other), data.read_bytes()
    except (IgrpoError, OSError):
        return None


def open_input(path: ShardPath) -> Manifest:
    """Check the data of a shard that is about to be read, and return its manifest.

    Raises MissingInputError where it does not exist, and DamagedFileError where the data is not what was published.
    """
    manifest = require_completed(path)
    if not path.data.exists():
        raise MissingInputError(f"{path.name} is gone: {path.data} does not exist", hint=path.command)
    damage = _damage(path, manifest)
    if damage is None and sha256_file(path.data) != manifest.data.sha256:
        damage = f"{path.data} is damaged: its SHA-256 is not the one in {path.manifest.name}"
    if damage is not None:
        raise DamagedFileError(damage, hint=f"`{path.overwrite_command}` makes it again")
    return manifest


def input_hashes(*paths: ShardPath) -> tuple[FileHash, ...]:
    """Return the hashes of complete shards from their manifests, as the inputs of another shard. No data is read.

    Raises MissingInputError, naming the command to type, for the first shard that is not complete.
    """
    return tuple(input_hash(path, require_completed(path)) for path in paths)


def require_completed(path: ShardPath) -> Manifest:
    """Return the manifest of a shard that must be complete. No data is read.

    Raises MissingInputError where there is none and DamagedFileError where it is damaged, each naming the command.
    """
    try:
        return read_manifest(path)
    except MissingInputError as error:
        message = f"{path.name} is not finished: {path.manifest} does not exist"
        raise MissingInputError(message, hint=path.command) from error
    except DamagedFileError as error:
        error.hint = error.hint or f"`{path.overwrite_command}` makes it again"
        raise


def input_hash(path: ShardPath, manifest: Manifest) -> FileHash:
    """Return the path and the hash of a shard as an input of another shard."""
    return FileHash(path.relative, manifest.data.sha256)


def commit_manifest(path: ShardPath, manifest: Manifest) -> Manifest:
    """Publish the manifest of a data file that exists; return the manifest that exists afterwards.

    Where another task completed the same shard with the same bytes, that is its manifest. Raises ConflictError where
    the shard on disk is not the one described.
    """
    existing: Manifest | None = None
    try:
        publish_manifest(path.manifest, manifest)
        existing = manifest
    except ConflictError:
        # The other's may be gone again: that task found its own data replaced, by ours.
        with suppress(MissingInputError):
            existing = read_manifest(path)
    if existing is None or not path.data.exists() or sha256_file(path.data) != existing.data.sha256:
        # Two tasks replaced each other's data; a manifest that does not fit what is left must not stay.
        remove_file(path.manifest)
        raise ConflictError(
            f"{path.data} was replaced by another task while {path.name} was published",
            hint=f"when no other task makes it, run `{path.command}` again",
        )
    require_same(existing.identity, manifest.identity, path.overwrite_command)
    if existing.data != manifest.data:
        raise ConflictError(
            f"{path.name} was finished by another task, with other rows",
            hint=f"`{path.overwrite_command}` makes it again; otherwise the existing shard is kept",
        )
    return existing


def _damage(path: ShardPath, manifest: Manifest) -> str | None:
    for file in (path.relative, *(output.path for output in manifest.lasting_outputs)):
        if not (path.root / file).is_file() and not _is_of_removed_policy(path, file):
            return f"{path.root / file} is gone, though {path.manifest} speaks of it"
    size = path.data.stat().st_size
    if size != manifest.data.num_bytes:
        return f"{path.data} has {size} bytes, not the {manifest.data.num_bytes} that {path.manifest.name} says"
    return None


def _is_of_removed_policy(path: ShardPath, file: str) -> bool:
    """Return True for a file of a policy that was removed as a whole and has a successor (`policy.keep`)."""
    policy, run = (path.root / file).parent, RunDirectory(path.root)
    if policy.parent != run.policies or policy.exists():
        return False
    return max(run.policy_iterations(), default=0) > path.iteration + 1


ROWS_PER_BLOCK = 1024


def write_problems(path: ShardPath, problems: Sequence[Problem], *, replace: bool = False) -> DataFile:
    """Publish the data file; the caller publishes its manifest (`commit_shard`)."""
    from igrpo_cli.store.schema import PROBLEMS
    from igrpo_cli.store.tables import write_rows

    starts = range(0, len(problems), ROWS_PER_BLOCK)
    blocks = (problems[start : start + ROWS_PER_BLOCK] for start in starts)
    return write_rows(path.data, PROBLEMS, blocks, replace=replace)


def read_problems(path: ShardPath) -> list[Problem]:
    """Return all problems in order, after checking the file. Raises as `open_input`."""
    from igrpo_cli.store.tables import read_records

    open_input(path)
    return read_records(path.data, Problem)


def count_problems(path: ShardPath) -> int:
    """Return the number of problems, from the manifest alone."""
    return read_manifest(path).data.rows
