"""Policies that are stored as their differences from the policy before (`policy.keep = "deltas"`).

A step changes few of the bytes of a policy. A file of the same size as before is stored as the exclusive or of both,
compressed; another file is stored whole. The files of a policy are restored from the nearest earlier policy that exists
and the deltas after it. The hash of each file is recorded, so a restored policy is the published one or an error.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import reduce
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from igrpo_cli.errors import ConflictError, DamagedFileError, MissingInputError
from igrpo_cli.store.atomic import publish_directory, remove_directory, staging_directory
from igrpo_cli.store.checksummed_json import (
    STRICT,
    Count,
    FileName,
    PolicyId,
    Sha256,
    publish_checksummed,
    read_checksummed,
    validated,
)
from igrpo_cli.store.hashing import HASHING_THREADS, sha256_files
from igrpo_cli.store.hints import command_line, shell_path
from igrpo_cli.store.layout import RunDirectory, format_shards
from igrpo_cli.store.manifest import read_manifest
from igrpo_cli.store.policies import Policy, read_policy, write_policy_manifest

_VERSION = "delta_version", 1
_RECORD = "delta.json"
_SUFFIX = ".zst"
_WORD = 4
"""Bytes of a word. The first bytes of all words are compressed together, then the second ones: in a small change of a
number its exponent and its leading digits stay."""
_CHUNK = _WORD * 2**20

Form = Literal["same", "difference", "whole"]


@dataclass(config=STRICT, frozen=True)
class Delta:
    """Represents the record of a policy that is stored as a difference."""

    policy_id: PolicyId
    iteration: Count
    parent: PolicyId | None
    """Id of the policy that it was trained from."""
    base: PolicyId | None
    """Id of the policy that the differences are from; None where all files are stored whole."""
    files: dict[FileName, Sha256]
    """Hashes of the files of the policy."""
    forms: dict[FileName, Form]
    """How each file is stored: not at all where it is the `same` as in the base, as `difference`, or `whole`."""
    stored: dict[FileName, Sha256]
    """Hashes of the compressed files."""


_DELTA = TypeAdapter(Delta)


def write_delta(run: RunDirectory, iteration: int) -> None:
    """Store the policy of `iteration`, which exists, as its difference from the one before; a valid delta is kept.

    Without the policy before, its files are stored whole. Raises DamagedFileError where a file of either policy is not
    as it was recorded.
    """
    policy, place = read_policy(run, iteration), run.delta(iteration)
    base = read_policy(run, iteration - 1) if run.policy(iteration - 1).is_dir() else None
    if place.is_dir():
        existing = _read(run, iteration)
        if existing.policy_id == policy.id and (base is None or existing.base in (None, base.id)):
            return
        remove_directory(place)
    with staging_directory(place) as staged:
        with ThreadPoolExecutor(HASHING_THREADS) as threads:
            found = threads.map(lambda name: _store(policy, base, name, staged), policy.files)
            forms = dict(zip(policy.files, found, strict=True))
        hashes = sha256_files(sorted(staged.iterdir()))
        record = Delta(
            policy.id,
            iteration,
            policy.parent,
            None if base is None else base.id,
            dict(policy.files),
            forms,
            {path.name: sha256 for path, sha256 in hashes.items()},
        )
        key, version = _VERSION
        publish_checksummed(staged / _RECORD, {key: version, **dataclasses.asdict(record)})
        publish_directory(staged, place)


def restore_policy(run: RunDirectory, iteration: int, output: Path) -> Policy:
    """Publish the policy of `iteration` as the directory `output`, from its delta and earlier policies.

    Raises MissingInputError where a delta or the first policy of the chain does not exist, ConflictError where `output`
    exists or a delta is from another policy, and DamagedFileError where a file is not as it was recorded.
    """
    chain = _chain(run, iteration)
    wanted = chain[-1][1]
    _require_made(run, wanted)
    with staging_directory(output) as staged:
        with ThreadPoolExecutor(HASHING_THREADS) as threads:
            for _ in threads.map(lambda name: _restore(run, chain, name, staged), wanted.files):
                pass
        policy = write_policy_manifest(staged, iteration, parent=wanted.parent)
        if policy.id != wanted.policy_id:
            raise DamagedFileError(f"{run.delta(iteration)}: its files make another policy than the recorded one")
        publish_directory(staged, output)
    return dataclasses.replace(policy, directory=output)


def verify_delta(run: RunDirectory, iteration: int) -> None:
    """Hash the stored files of a delta again.

    Raises DamagedFileError naming the first one that differs, and ConflictError for the delta of another policy than
    the update made.
    """
    place, delta = run.delta(iteration), _read(run, iteration)
    _require_made(run, delta)
    present = sorted(path for path in place.iterdir() if path.name != _RECORD)
    for name in sorted({*(path.name for path in present), *delta.stored}):
        if name not in delta.stored or not (place / name).is_file():
            what = "is gone" if name in delta.stored else "was not there when the delta was recorded"
            raise DamagedFileError(f"{place / name} {what}")
    for path, sha256 in sha256_files(present).items():
        if sha256 != delta.stored[path.name]:
            raise DamagedFileError(f"{path} is damaged: its SHA-256 is not the one in {_RECORD}")


def _read(run: RunDirectory, iteration: int) -> Delta:
    path = run.delta(iteration) / _RECORD
    found = validated(path, _DELTA, read_checksummed(path, *_VERSION))
    if found.iteration != iteration:
        raise DamagedFileError(f"{path}: iteration is {found.iteration}, but it lies where {iteration} belongs")
    return found


def _chain(run: RunDirectory, iteration: int) -> list[tuple[Policy | None, Delta]]:
    """Return the deltas from the nearest policy that exists up to `iteration`, each with its base where that exists."""
    found: list[tuple[Policy | None, Delta]] = []
    while True:
        if not run.delta(iteration).is_dir():
            raise _no_policy(run, iteration)
        delta = _read(run, iteration)
        if found and found[-1][1].base != delta.policy_id:
            raise ConflictError(
                f"{run.delta(iteration + 1)} is the difference from another policy {iteration} than "
                f"{run.delta(iteration)} stores",
                hint=_changed(run),
            )
        base = None
        if delta.base is not None and run.policy(iteration - 1).is_dir():
            base = read_policy(run, iteration - 1)
            if base.id != delta.base:
                raise ConflictError(
                    f"{run.delta(iteration)} is the difference from another policy than the one in {base.directory}",
                    hint=_changed(run),
                )
        found.append((base, delta))
        if base is not None or delta.base is None:
            return found[::-1]
        iteration -= 1


def _no_policy(run: RunDirectory, iteration: int) -> MissingInputError:
    """Return the error for a policy of which neither files nor difference exist."""
    kept = sorted({*run.policy_iterations(), *run.delta_iterations()})
    path = run.update(iteration - 1).shard
    what = f"there is neither policy {iteration} nor its difference from the one before"
    if not path.manifest.exists():
        hint = command_line(run.root, "status")
    elif iteration > max(kept, default=0):
        hint = path.overwrite_command
    else:
        what += ": it was removed (policy.keep)"
        hint = f"{command_line(run.root, 'set', 'policy.keep=deltas')} keeps the differences of later policies"
    return MissingInputError(f"{what}; the run has {format_shards(kept)}", hint=hint)


def _changed(run: RunDirectory) -> str:
    return (
        f"an earlier update was made again since; {command_line(run.root, 'verify')} says what does not follow from it"
    )


def _require_made(run: RunDirectory, delta: Delta) -> None:
    """Raise ConflictError for the delta of another policy than the update before has made."""
    path = run.update(delta.iteration - 1).shard
    if not path.manifest.exists():
        return
    place = RunDirectory(Path()).policy(delta.iteration).as_posix()
    made = {file.path: file.sha256 for file in read_manifest(path).outputs}
    if any(made.get(f"{place}/{name}") != sha256 for name, sha256 in delta.files.items()):
        raise ConflictError(
            f"{run.delta(delta.iteration)} is of another policy than the one that {path.name} has made",
            hint=f"remove {shell_path(run.delta(delta.iteration))}",
        )


def _store(policy: Policy, base: Policy | None, name: str, staged: Path) -> Form:
    """Write the delta of one file; return its form. Both files are hashed while they are read."""
    path = policy.directory / name
    before = None if base is None or name not in base.files else base.directory / name
    if before is not None and base is not None and base.files[name] == policy.files[name]:
        return "same"
    if before is not None and before.stat().st_size != path.stat().st_size:
        before = None
    hashes = [hashlib.sha256(), hashlib.sha256()]
    with ExitStack() as stack:
        current = stack.enter_context(path.open("rb"))
        earlier = None if before is None else stack.enter_context(before.open("rb"))
        target = stack.enter_context(pa.CompressedOutputStream(str(staged / f"{name}{_SUFFIX}"), "zstd"))
        while chunk := current.read(_CHUNK):
            hashes[0].update(chunk)
            if earlier is not None:
                other = earlier.read(len(chunk))
                hashes[1].update(other)
                chunk = _xor(chunk, other)
            target.write(_by_place(chunk))
    _require_hash(path, hashes[0].hexdigest(), policy.files[name])
    if before is None or base is None:
        return "whole"
    _require_hash(before, hashes[1].hexdigest(), base.files[name])
    return "difference"


def _restore(run: RunDirectory, chain: Sequence[tuple[Policy | None, Delta]], name: str, staged: Path) -> None:
    """Write one file of the last policy of `chain`."""
    sha256 = hashlib.sha256()
    with (staged / name).open("wb") as target:
        for chunk in _chunks(run, chain, name):
            sha256.update(chunk)
            target.write(chunk)
    place = run.delta(chain[-1][1].iteration) / name
    _require_hash(place, sha256.hexdigest(), chain[-1][1].files[name])


def _chunks(run: RunDirectory, chain: Sequence[tuple[Policy | None, Delta]], name: str) -> Iterator[bytes]:
    """Yield the content of a file: that of the newest whole one, with all later differences."""
    parts: list[tuple[Path, bool]] = []
    """Files whose exclusive or is the content, each with True if it is compressed."""
    for base, delta in reversed(chain):
        form = delta.forms.get(name)
        if form in ("difference", "whole"):
            parts.append((run.delta(delta.iteration) / f"{name}{_SUFFIX}", True))
        if form == "whole":
            break
        if base is not None:
            parts.append((base.directory / name, False))
    with ExitStack() as stack:
        streams = [(path, _opened(path, stack, is_compressed=each), each) for path, each in parts]
        while True:
            found = [
                _in_order(chunk) if each else chunk
                for chunk, each in ((_read_chunk(path, stream), each) for path, stream, each in streams)
            ]
            chunk = reduce(_xor, found)
            if not chunk:
                return
            yield chunk


def _opened(path: Path, stack: ExitStack, *, is_compressed: bool) -> BinaryIO:
    try:
        opened: BinaryIO = pa.CompressedInputStream(str(path), "zstd") if is_compressed else path.open("rb")
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read: {error.strerror or error}") from error
    return stack.enter_context(opened)


def _read_chunk(path: Path, stream: BinaryIO) -> bytes:
    try:
        return stream.read(_CHUNK)
    except OSError as error:
        raise DamagedFileError(f"{path} is damaged: {error}") from error


def _xor(one: bytes, other: bytes) -> bytes:
    """Return the exclusive or of both; of the shorter length where they differ, which the hash of the file reveals."""
    size = min(len(one), len(other))
    return (np.frombuffer(one, np.uint8, size) ^ np.frombuffer(other, np.uint8, size)).tobytes()


def _by_place(chunk: bytes) -> bytes:
    """Return the first bytes of all words, then the second ones, and so on; what is no whole word follows."""
    end = len(chunk) // _WORD * _WORD
    return np.frombuffer(chunk, np.uint8, end).reshape(-1, _WORD).T.tobytes() + chunk[end:]


def _in_order(chunk: bytes) -> bytes:
    """Return the bytes that `_by_place` was given."""
    end = len(chunk) // _WORD * _WORD
    return np.frombuffer(chunk, np.uint8, end).reshape(_WORD, -1).T.tobytes() + chunk[end:]


def _require_hash(path: Path, found: str, recorded: str) -> None:
    if found != recorded:
        raise DamagedFileError(f"{path} is damaged: its SHA-256 is not the recorded one")
