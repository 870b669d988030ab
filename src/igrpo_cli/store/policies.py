"""Read, check and promote policies.

A policy of the run is a Hugging Face model directory with a `manifest.json` of ours in it. The initial one may instead
be a pointer, a directory that holds only `pointer.json`. The id of a policy comes from that small file; `verify_policy`
hashes the weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import field
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from igrpo_cli.errors import ConflictError, DamagedFileError, MissingInputError
from igrpo_cli.store.atomic import move_directory, remove_directory
from igrpo_cli.store.checksummed_json import (
    STRICT,
    Count,
    FileName,
    PolicyId,
    Sha256,
    Text,
    publish_checksummed,
    read_checksummed,
    sha256_json,
    validated,
)
from igrpo_cli.store.hashing import sha256_files
from igrpo_cli.store.hints import command_line, init_command
from igrpo_cli.store.layout import RunDirectory, format_shards

_VERSION = "policy_version", 2
MANIFEST = "manifest.json"
POINTER = "pointer.json"

MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "*.tiktoken",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.*",
    "*.py",
)
"""Files that decide the behaviour of a model directory."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")
"""Formats whose weights run code when they are loaded."""
IGNORED_PICKLES = ("training_args.bin", "optimizer.*", "scheduler.*", "scaler.*", "rng_state*")
"""Pickles that training scripts leave in a model directory and that igrpo never loads."""


@dataclass(config=STRICT, frozen=True)
class _PolicyManifest:
    """Represents the record of a policy whose files lie in the run."""

    policy_id: PolicyId
    iteration: Count
    parent: PolicyId | None
    files: dict[FileName, Sha256]


@dataclass(config=STRICT, frozen=True)
class _Pointer:
    """Represents the record of a policy whose files lie elsewhere."""

    policy_id: PolicyId
    model: Text
    revision: Text | None
    path: Text
    """Relative to the run, or absolute."""
    files: dict[FileName, Sha256]


_MANIFEST = TypeAdapter(_PolicyManifest)
_POINTER = TypeAdapter(_Pointer)


@dataclasses.dataclass(frozen=True)
class Policy:
    """Represents one policy: its id and the place of its files."""

    id: str
    """`sha256:…` over the names and hashes of its files."""
    directory: Path
    """Directory of the model files; outside the run for a pointer."""
    iteration: int
    parent: str | None = None
    """Id of the policy that it was trained from; None for the initial one."""
    files: Mapping[str, str] = field(default_factory=dict, repr=False)
    """{name: SHA-256} as recorded when it was published."""
    model: str | None = None
    """Hub id or path that a pointer points to."""
    revision: str | None = None


def policy_id(files: Mapping[str, str]) -> str:
    """Return `sha256:…` over the sorted names and hashes of the files of a policy."""
    return f"sha256:{sha256_json(dict(files))}"


def describe_directory(directory: Path) -> dict[str, str]:
    """Return {name: SHA-256} of the files of a model directory that decide its behaviour.

    Raises MissingInputError where there is no directory, and DamagedFileError, naming the file, where it holds pickled
    weights, no safetensors, no config or a broken link.
    """
    hashes = sha256_files(directory / name for name in _files_that_matter(directory))
    return {path.name: sha256 for path, sha256 in hashes.items()}


def write_policy_manifest(directory: Path, iteration: int, parent: str | None) -> Policy:
    """Write the record of a staged model directory as the policy of `iteration`, and return the policy."""
    files = describe_directory(directory)
    policy = Policy(policy_id(files), directory, iteration, parent, files)
    _publish(directory / MANIFEST, _PolicyManifest(policy.id, iteration, parent, files), replace=True)
    return policy


def write_pointer(run: RunDirectory, model: str, revision: str | None, path: Path, *, replace: bool = False) -> Policy:
    """Make policy 0 a pointer to the model directory `path` (relative to the run, or absolute).

    An existing pointer to the same policy only gets the new path, for a run that was copied or a model that was moved.
    Raises ConflictError for a pointer to another policy, unless `replace` is true.
    """
    directory, place = run.root / path, run.policy(0) / POINTER
    files = describe_directory(directory)
    if place.exists() and not replace:
        existing = _read_pointer(run, place, 0)
        if existing.id != policy_id(files):
            raise ConflictError(
                f"{place} is to another policy than {directory} holds now "
                f"({existing.id[:15]}… there, {policy_id(files)[:15]}… now)",
                hint="make the model available as it was, or name another directory for the run",
            )
        if existing.directory == directory:
            return existing
        replace, revision = True, existing.revision
    _publish(place, _Pointer(policy_id(files), model, revision, str(path), files), replace=replace)
    return Policy(policy_id(files), directory, 0, None, files, model, revision)


def read_policy(run: RunDirectory, iteration: int) -> Policy:
    """Return the policy that `iteration` samples from, without reading its weights.

    Raises MissingInputError, which says which ones exist, where it does not exist yet, and DamagedFileError where its
    record is damaged.
    """
    directory = run.policy(iteration)
    if (directory / POINTER).exists():
        return _read_pointer(run, directory / POINTER, iteration)
    if not (directory / MANIFEST).exists():
        existing = run.policy_iterations()
        hint = init_command(run.root) if iteration == 0 else command_line(run.root, "status")
        if iteration - 1 in existing:
            hint = run.update(iteration - 1).shard.command
        if run.delta(iteration).is_dir():
            hint = command_line(run.root, "policy", str(iteration))
        has = f"; the run has {format_shards(existing)}" if existing else ""
        raise MissingInputError(f"policy {iteration} does not exist ({directory}){has}", hint=hint)
    return _read_manifest(directory, iteration)


def verify_policy(policy: Policy, hash_of: Callable[[Path], str] | None = None) -> None:
    """Hash every file again. Raises DamagedFileError naming the first file that differs from the record.

    `hash_of` may return hashes from a cache.
    """
    present = _files_that_matter(policy.directory, policy.files)
    if hash_of is None:
        hash_of = sha256_files(policy.directory / name for name in policy.files).__getitem__
    for name in sorted({*present, *policy.files}):
        if name not in policy.files:
            what = "was not there when"
        elif hash_of(policy.directory / name) != policy.files[name]:
            what = "has changed since"
        else:
            continue
        raise DamagedFileError(
            f"{policy.directory / name} {what} policy {policy.id[:15]}… was recorded",
            hint="restore the directory" if policy.iteration == 0 else _remake(policy),
        )


def promote_policy(run: RunDirectory, iteration: int) -> bool:
    """Move the policy of the update of `iteration` to `policies/`; return True when this call moved it.

    An update is published with its policy inside, in one rename. This is the second rename, which any later command
    completes when the process died in between. Several processes may call it at any time.

    Raises ConflictError where another policy has that place.
    """
    made = run.update(iteration).policy
    if not made.is_dir():
        return False
    place = run.policy(iteration + 1)
    try:
        return move_directory(made, place)
    except ConflictError as error:
        _require_made_before(run, iteration, error)
    remove_directory(made)
    return False


def _files_that_matter(directory: Path, expected: Mapping[str, str] | None = None) -> list[str]:
    if not directory.is_dir():
        raise MissingInputError(
            f"the model directory {directory} does not exist",
            hint="make it available there again, on this machine",
        )
    names = sorted(path.name for path in directory.iterdir() if not path.is_dir())
    for name in names:
        if _matches(name, PICKLES) and not _matches(name, IGNORED_PICKLES):
            raise DamagedFileError(
                f"{directory / name} holds pickled weights, which can run code when they are loaded",
                hint="convert them to safetensors and remove the file",
            )
    for name in expected or ():
        if not (directory / name).is_file():
            raise DamagedFileError(f"{directory / name} is gone", hint="restore the file, or the whole directory")
    chosen = [name for name in names if _matches(name, MODEL_FILES)]
    if not _matches_any(chosen, "*.safetensors"):
        raise DamagedFileError(f"{directory} holds no *.safetensors weights", hint="it must be a Hugging Face model")
    if "config.json" not in chosen:
        raise DamagedFileError(f"{directory} holds no config.json", hint="it must be a Hugging Face model")
    for name in chosen:
        if not (directory / name).is_file():
            raise DamagedFileError(f"{directory / name} is a link to nothing", hint="download the model again")
    return chosen


def _require_made_before(run: RunDirectory, iteration: int, error: ConflictError) -> None:
    """Accept a place that is taken by the same policy, or by a concurrent process that promotes it."""
    made, place = run.update(iteration).policy, run.policy(iteration + 1)
    try:
        ours = _read_manifest(made, iteration + 1)
    except MissingInputError:
        if made.is_dir():
            raise
        return
    theirs = read_policy(run, iteration + 1)
    if ours.id != theirs.id:
        raise ConflictError(
            f"{place} holds another policy than the update of iteration {iteration} made "
            f"({theirs.id[:15]}… there, {ours.id[:15]}… made)",
            hint=f"remove {place} and the iterations after {iteration} if they are not wanted, then go on",
        ) from error


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _matches_any(names: list[str], pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


def _publish(path: Path, record: _PolicyManifest | _Pointer, *, replace: bool) -> None:
    key, version = _VERSION
    publish_checksummed(path, {key: version, **dataclasses.asdict(record)}, replace=replace)


def _read_pointer(run: RunDirectory, path: Path, iteration: int) -> Policy:
    found = validated(path, _POINTER, read_checksummed(path, *_VERSION))
    return Policy(found.policy_id, run.root / found.path, iteration, None, found.files, found.model, found.revision)


def _read_manifest(directory: Path, iteration: int) -> Policy:
    path = directory / MANIFEST
    found = validated(path, _MANIFEST, read_checksummed(path, *_VERSION))
    if found.iteration != iteration:
        raise DamagedFileError(f"{path}: iteration is {found.iteration}, but it lies where {iteration} belongs")
    return Policy(found.policy_id, directory, iteration, found.parent, found.files)


def _remake(policy: Policy) -> str:
    run = RunDirectory(policy.directory.parent.parent)
    return run.update(policy.iteration - 1).shard.overwrite_command
