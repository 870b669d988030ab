"""When a shard is finished, how it becomes so, and how the next stage takes it up.

Every stage goes the same way: `finished` says whether there is anything to do, `commit_shard` puts
data and manifest in place, and the stage after it begins with `open_input`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from igrpo_cli.errors import ConflictError, DamagedFileError, IgrpoError, MissingInputError
from igrpo_cli.records import Problem
from igrpo_cli.store.atomic import remove_file, sha256_file
from igrpo_cli.store.checksummed_json import UnknownSchemaError
from igrpo_cli.store.conflicts import require_same
from igrpo_cli.store.layout import RunDirectory, ShardPath, UpdatePath
from igrpo_cli.store.manifest import DataFile, FileHash, Identity, Manifest, publish_manifest, read_manifest
from igrpo_cli.store.policies import promote_policy


def completed(path: ShardPath, identity: Identity, on_damage: Callable[[str], None] | None = None) -> Manifest | None:
    """The manifest when this very shard is finished, None when it is to be made.

    A manifest that is damaged, or whose files are gone or of another size, counts as not finished;
    `on_damage` is told why in one sentence. The data is not read here: `open_input` checks its hash.
    Of an update ask `completed_update`.

    Raises ConflictError when the shard was made from something else, UnknownSchemaError when another
    version of igrpo made it.
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
    """`finished` of an update, its policy moved to its place first. Raises as `finished` and `promote_policy`."""
    promote_policy(run, path.iteration)
    return completed(path.shard, identity)


def damage_of(path: ShardPath) -> str | None:
    """Why a shard that has a manifest does not count as finished; None for one that does. The data is not read."""
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
    """Put data and manifest of a shard in place, in that order; returns the manifest that is on disk then.

    `write(replace)` publishes the data file (`write_rows`, `assemble`), `describe` makes its manifest.
    When another task finishes the same shard first, its shard stands and is returned. Data without
    a manifest, left by a writer that died in between, is replaced; a finished shard only with `overwrite`.
    """
    stood_before = path.manifest.exists()
    if not overwrite and (theirs := completed(path, identity)):
        return theirs
    if stood_before:
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


def open_input(path: ShardPath) -> Manifest:
    """The manifest of a shard that is about to be read, its data checked against it.

    Raises MissingInputError when it is not there, DamagedFileError when the data is not what was published.
    """
    manifest = require_completed(path)
    if not path.data.exists():
        raise MissingInputError(f"{path.name} is gone: {path.data} does not exist", hint=path.command)
    damage = _damage(path, manifest)
    if damage is None and sha256_file(path.data) != manifest.data.sha256:
        damage = f"{path.data} is damaged: its SHA-256 is not the one in {path.manifest.name}"
    if damage is not None:
        raise DamagedFileError(damage, hint=f"`{path.overwrite_command}` makes it anew")
    return manifest


def input_hashes(*paths: ShardPath) -> tuple[FileHash, ...]:
    """Finished shards as inputs of another one, as their manifests describe them; no data is read.

    Raises MissingInputError, naming the command to type, for the first that is not finished.
    """
    return tuple(input_hash(path, require_completed(path)) for path in paths)


def require_completed(path: ShardPath) -> Manifest:
    """The manifest of a shard that is needed; no data is read.

    Raises MissingInputError where there is none, DamagedFileError where it is not sound, each naming the command.
    """
    try:
        return read_manifest(path)
    except MissingInputError as error:
        message = f"{path.name} is not finished: {path.manifest} does not exist"
        raise MissingInputError(message, hint=path.command) from error
    except DamagedFileError as error:
        error.hint = error.hint or f"`{path.overwrite_command}` makes it anew"
        raise


def input_hash(path: ShardPath, manifest: Manifest) -> FileHash:
    """A shard as an input of another one."""
    return FileHash(path.relative, manifest.data.sha256)


def commit_manifest(path: ShardPath, manifest: Manifest) -> Manifest:
    """Publish the manifest of a data file that is in place; returns the one that is on disk then.

    When another task finished the same shard with the same bytes in the meantime, that is its
    manifest. Raises ConflictError when the shard on disk is not the one described.
    """
    standing: Manifest | None = None
    try:
        publish_manifest(path.manifest, manifest)
        standing = manifest
    except ConflictError:
        # The other's may be gone again: that task found its own data replaced, by ours.
        with suppress(MissingInputError):
            standing = read_manifest(path)
    if standing is None or not path.data.exists() or sha256_file(path.data) != standing.data.sha256:
        # Two tasks replaced each other's data; a manifest that does not fit what is left must not stay.
        remove_file(path.manifest)
        raise ConflictError(
            f"{path.data} was replaced by another task while {path.name} was published",
            hint=f"when no other task makes it, run `{path.command}` again",
        )
    require_same(standing.identity, manifest.identity, path.overwrite_command)
    if standing.data != manifest.data:
        raise ConflictError(
            f"{path.name} was finished by another task, with other rows",
            hint=f"`{path.overwrite_command}` makes it anew; without, what is there stands",
        )
    return standing


def _damage(path: ShardPath, manifest: Manifest) -> str | None:
    for file in (path.relative, *(output.path for output in manifest.lasting_outputs)):
        if not (path.root / file).is_file():
            return f"{path.root / file} is gone, though {path.manifest} speaks of it"
    size = path.data.stat().st_size
    if size != manifest.data.num_bytes:
        return f"{path.data} has {size} bytes, not the {manifest.data.num_bytes} that {path.manifest.name} says"
    return None


ROWS_PER_BLOCK = 1024


def write_problems(path: ShardPath, problems: Sequence[Problem], *, replace: bool = False) -> DataFile:
    """Publish the data file; the caller publishes its manifest (`commit_shard`)."""
    from igrpo_cli.store.schema import PROBLEMS
    from igrpo_cli.store.tables import write_rows

    starts = range(0, len(problems), ROWS_PER_BLOCK)
    blocks = (problems[start : start + ROWS_PER_BLOCK] for start in starts)
    return write_rows(path.data, PROBLEMS, blocks, replace=replace)


def read_problems(path: ShardPath) -> list[Problem]:
    """All problems in order, the file checked against its manifest; raises as `open_input` does."""
    from igrpo_cli.store.tables import read_records

    open_input(path)
    return read_records(path.data, Problem)


def count_problems(path: ShardPath) -> int:
    """How many problems there are, from the manifest alone."""
    return read_manifest(path).data.rows
