"""The file that makes a shard exist: written last, it says what the shard holds and what it was made from."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from igrpo_cli.errors import DamagedFileError
from igrpo_cli.store.checksummed_json import (
    AMOUNT,
    COUNT,
    INTEGER,
    LIST,
    NUMBERS,
    OBJECT,
    POLICY_ID,
    RELATIVE_PATH,
    SECTIONS,
    SHA256,
    TEXT,
    TEXTS,
    UTC_TIME,
    canonical_json,
    check_checksum,
    check_keys,
    check_version,
    checksummed,
    read_object,
    sha256_json,
)
from igrpo_cli.store.layout import RunDirectory, ShardPath, name_of

MANIFEST_VERSION = 1
OWN_HASH = "manifest_sha256"
"""SHA-256 of the other keys but the version: most of what a manifest says, nothing else on disk says again."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """What one Parquet file holds, as its writer saw it."""

    schema: str
    """Name of its schema, for example `rollouts`."""
    schema_version: int
    rows: int
    groups: int
    """Distinct `group_id`s; 0 where the schema has none."""
    sha256: str
    num_bytes: int


@dataclass(frozen=True)
class Manifest:
    """Everything that is known of a finished shard. In the file all facts stand side by side."""

    identity: Identity
    data: DataFile
    sampling: Mapping[str, Any] | None
    """The sampling settings; None where nothing was sampled."""
    versions: Mapping[str, str]
    """Of igrpo, git, torch, vllm, transformers, math_verify, as far as they took part."""
    host: str
    device: str
    started: str
    """UTC, ISO 8601 (see `utc_now`)."""
    finished: str
    seconds: float
    tokens: int
    gpu_seconds: float
    counts: Mapping[str, float] = field(default_factory=dict)
    """Further counts by name: verdicts, truncated drafts, skipped rows."""
    outputs: Sequence[FileHash] = ()
    """Further files that the stage made, as they finally lie in the run; the update's policy, for example."""

    @property
    def lasting_outputs(self) -> tuple[FileHash, ...]:
        """`outputs` without the optimiser state, which is removed once newer ones are there."""
        state = RunDirectory(Path()).update(self.identity.iteration).optimizer
        return tuple(file for file in self.outputs if Path(file.path).parent != state)


_FIELDS = {
    "schema": TEXT,
    "schema_version": COUNT,
    "stage": TEXT,
    "iteration": INTEGER,
    "shard": COUNT,
    "num_shards": COUNT,
    "rows": COUNT,
    "groups": COUNT,
    "sha256": SHA256,
    "bytes": COUNT,
    "inputs": LIST,
    "outputs": LIST,
    "config": SECTIONS,
    "config_sha256": SHA256,
    "policy": POLICY_ID.or_null(),
    "sampling": OBJECT.or_null(),
    "template_sha256": SHA256.or_null(),
    "versions": TEXTS,
    "host": TEXT,
    "device": TEXT,
    "started": UTC_TIME,
    "finished": UTC_TIME,
    "seconds": AMOUNT,
    "tokens": COUNT,
    "gpu_seconds": AMOUNT,
    "counts": NUMBERS,
}
_FILE_FIELDS = {"path": RELATIVE_PATH, "sha256": SHA256}
_COST = re.compile(
    rb'"started": "(\S+\+00:00)",\s+"finished": "(\S+\+00:00)",\s+'
    rb'"seconds": ([0-9.e+-]+),\s+"tokens": ([0-9]{1,18}),\s+"gpu_seconds": ([0-9.e+-]+)'
)
"""The lines of `Cost` as `manifest_json` orders them."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What it took to make a shard, as its manifest says."""

    started: datetime
    finished: datetime
    seconds: float
    tokens: int
    gpu_seconds: float


def utc_now() -> str:
    """The time as manifests write it, whole seconds in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_manifest(path: ShardPath) -> Manifest:
    """The manifest of a shard, every key checked.

    Raises MissingInputError where there is none, UnknownSchemaError for another version of the
    format, DamagedFileError (naming file and key) for anything else that is not as it was written.
    """
    value = read_object(path.manifest)
    check_version(path.manifest, value, "manifest_version", MANIFEST_VERSION)
    value.pop("manifest_version")
    sha256 = value.pop(OWN_HASH, None)
    check_keys(path.manifest, value, _FIELDS)
    facts = dict(value)
    if value.pop("config_sha256") != sha256_json(value["config"]):
        raise DamagedFileError(f"{path.manifest}: config_sha256 is not the hash of config")
    manifest = _from_json(path.manifest, value)
    _check_place(path, manifest.identity)
    # Last, so that whatever can be named is named.
    check_checksum(path.manifest, facts, sha256, OWN_HASH)
    return manifest


def read_cost(path: str) -> Cost:
    """What the shard of the manifest at `path` took, from the lines that say so; the rest is not looked at.

    Raises DamagedFileError where they are not as they were written.
    """
    # A long run has tens of thousands of manifests. As JSON, and through pathlib, all would take five times as long.
    try:
        with open(path, "rb", buffering=0) as file:
            content = file.read()
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read: {error.strerror}") from error
    found = _COST.search(content, max(content.rfind(b'"started"'), 0))
    try:
        if found is None:
            raise ValueError
        started, finished, seconds, tokens, gpu_seconds = (field.decode() for field in found.groups())
        times = datetime.fromisoformat(started), datetime.fromisoformat(finished)
        cost = Cost(*times, float(seconds), int(tokens), float(gpu_seconds))
        if not (0 <= cost.seconds < math.inf and 0 <= cost.gpu_seconds < math.inf):
            raise ValueError
        return cost
    except ValueError:
        raise DamagedFileError(f"{path} does not say what its shard took") from None


def manifest_json(manifest: Manifest) -> dict[str, Any]:
    """The manifest as the JSON object that `read_manifest` reads."""
    identity = manifest.identity.to_json()
    facts = {
        "schema": manifest.data.schema,
        "schema_version": manifest.data.schema_version,
        **{key: identity.pop(key) for key in ("stage", "iteration", "shard", "num_shards")},
        "rows": manifest.data.rows,
        "groups": manifest.data.groups,
        "sha256": manifest.data.sha256,
        "bytes": manifest.data.num_bytes,
        "inputs": identity.pop("inputs"),
        "outputs": [{"path": file.path, "sha256": file.sha256} for file in manifest.outputs],
        "config_sha256": sha256_json(identity["config"]),
        **identity,
        "sampling": manifest.sampling,
        "versions": dict(manifest.versions),
        "host": manifest.host,
        "device": manifest.device,
        "started": manifest.started,
        "finished": manifest.finished,
        "seconds": manifest.seconds,
        "tokens": manifest.tokens,
        "gpu_seconds": manifest.gpu_seconds,
        "counts": dict(manifest.counts),
    }
    return {"manifest_version": MANIFEST_VERSION, **checksummed(facts, OWN_HASH)}


def _from_json(path: Path, value: dict[str, Any]) -> Manifest:
    inputs, outputs = (_files(path, value.pop(key), key) for key in ("inputs", "outputs"))
    keys = ("stage", "iteration", "shard", "num_shards", "config", "policy", "template_sha256")
    identity = Identity(**{key: value.pop(key) for key in keys}, inputs=inputs)
    facts = {key: value.pop(key) for key in ("schema", "schema_version", "rows", "groups", "sha256")}
    return Manifest(identity, DataFile(**facts, num_bytes=value.pop("bytes")), outputs=outputs, **value)


def _files(path: Path, values: list[Any], key: str) -> tuple[FileHash, ...]:
    for index, value in enumerate(values):
        if not isinstance(value, dict):
            raise DamagedFileError(f"{path}: {key}[{index}] must be an object")
        check_keys(path, value, _FILE_FIELDS, within=f"{key}[{index}].")
    return tuple(FileHash(**value) for value in values)


def _check_place(path: ShardPath, identity: Identity) -> None:
    for key in ("stage", "iteration", "shard", "num_shards"):
        says, belongs = getattr(identity, key), getattr(path, key)
        if says != belongs:
            raise DamagedFileError(f"{path.manifest}: {key} is {says}, but it lies where {belongs} belongs")


@dataclass(frozen=True, slots=True)
class FileHash:
    """A file of the run and its content."""

    path: str
    """Relative to the run directory, with forward slashes."""
    sha256: str


@dataclass(frozen=True)
class Identity:
    """Everything that decides the rows of a shard. Equal identities ask for the same shard."""

    stage: str
    iteration: int
    shard: int
    num_shards: int
    config: Mapping[str, Mapping[str, Any]]
    """The resolved sections that the stage reads: {section: {key: JSON value}}."""
    policy: str | None = None
    """Id of the policy that was sampled from or trained; None where none is involved."""
    template_sha256: str | None = None
    """Hash of the chat template; None where no prompt is rendered."""
    inputs: Sequence[FileHash] = field(default=())
    """The files that were read, in the order of their paths."""

    def __post_init__(self) -> None:
        # As JSON returns it, so that a tuple equals the list on disk. The order of inputs means nothing.
        object.__setattr__(self, "config", json.loads(canonical_json(self.config)))
        object.__setattr__(self, "inputs", tuple(sorted(self.inputs, key=lambda file: file.path)))

    @property
    def name(self) -> str:
        """What the shard is called in messages."""
        return name_of(self.stage, self.iteration, self.shard, self.num_shards)

    def to_json(self) -> dict[str, Any]:
        """The identity as a JSON object."""
        return {
            "stage": self.stage,
            "iteration": self.iteration,
            "shard": self.shard,
            "num_shards": self.num_shards,
            "config": self.config,
            "policy": self.policy,
            "template_sha256": self.template_sha256,
            "inputs": [{"path": file.path, "sha256": file.sha256} for file in self.inputs],
        }

    def sha256(self) -> str:
        """One hash for all of it."""
        return sha256_json(self.to_json())
