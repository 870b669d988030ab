"""The manifest of a shard: the file that makes the shard exist, written last.

A manifest says what the shard holds, what decides its rows, and how it was made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from igrpo_cli.errors import DamagedFileError
from igrpo_cli.store.checksummed_json import (
    STRICT,
    Amount,
    Count,
    Number,
    PolicyId,
    RelativePath,
    Sha256,
    Text,
    UtcTime,
    canonical_json,
    publish_checksummed,
    read_checksummed,
    sha256_json,
    validated,
)
from igrpo_cli.store.layout import RunDirectory, ShardPath, name_of

_VERSION = "manifest_version", 3


@dataclass(config=STRICT, frozen=True, slots=True)
class FileHash:
    """A file of the run and its content."""

    path: RelativePath
    """Relative to the run directory, with forward slashes."""
    sha256: Sha256


def _as_json(value: Any) -> Any:
    """Return a value as it is after a write and a read, so that a tuple equals the list on disk."""
    return json.loads(canonical_json(value))


@dataclass(config=STRICT, frozen=True)
class Identity:
    """Everything that decides the rows of a shard. Equal identities ask for the same shard."""

    stage: Text
    iteration: Count
    shard: Count
    num_shards: Count
    config: Annotated[Mapping[str, Mapping[str, Any]], BeforeValidator(_as_json)]
    """The resolved sections that the stage reads: {section: {key: JSON value}}."""
    policy: PolicyId | None = None
    """Id of the policy that was sampled from or trained; None where none is involved."""
    template_sha256: Sha256 | None = None
    """Hash of the chat template; None where no prompt is rendered."""
    inputs: Sequence[FileHash] = ()
    """The files that were read, sorted by path: their order means nothing."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", tuple(sorted(self.inputs, key=lambda file: file.path)))

    @property
    def name(self) -> str:
        """Name of the shard in messages."""
        return name_of(self.stage, self.iteration, self.shard, self.num_shards)

    def sha256(self) -> str:
        """Return one hash of all fields."""
        return sha256_json(asdict(self))


@dataclass(config=STRICT, frozen=True, slots=True)
class DataFile:
    """The content of one Parquet file, as its writer saw it."""

    schema: Text
    """Name of its schema, for example `rollouts`."""
    schema_version: Count
    rows: Count
    groups: Count
    """Distinct `group_id`s; 0 where the schema has none."""
    sha256: Sha256
    num_bytes: Count


@dataclass(config=STRICT, frozen=True, slots=True)
class Spent:
    """Holds what shards took together. Several of them may have been made at the same time."""

    tokens: Count = 0
    seconds: Amount = 0.0
    """To three decimals."""
    gpu_seconds: Amount = 0.0

    def __add__(self, other: Spent) -> Spent:
        seconds, gpu_seconds = self.seconds + other.seconds, self.gpu_seconds + other.gpu_seconds
        return Spent(self.tokens + other.tokens, round(seconds, 3), round(gpu_seconds, 3))

    def __mul__(self, factor: float) -> Spent:
        return Spent(round(self.tokens * factor), round(self.seconds * factor, 3), round(self.gpu_seconds * factor, 3))


@dataclass(config=STRICT, frozen=True)
class Manifest:
    """Everything that is known of a complete shard."""

    identity: Identity
    data: DataFile
    sampling: Mapping[str, Any] | None
    """The sampling settings; None where nothing was sampled."""
    versions: Mapping[str, str]
    """Versions of igrpo, git, torch, vllm, transformers and math_verify, as far as they took part."""
    host: Text
    device: Text
    started: UtcTime
    finished: UtcTime
    seconds: Amount
    """Wall time of the process that completed the shard. That of earlier ones, which were stopped, is not counted."""
    tokens: Count
    gpu_seconds: Amount
    counts: Mapping[str, Number] = field(default_factory=dict)
    """Further counts by name: verdicts, truncated drafts, skipped rows."""
    outputs: Sequence[FileHash] = ()
    """Further files that the stage made, under their final names; for example the policy of an update."""
    metrics: Mapping[str, Number] = field(default_factory=dict)
    """For an update: the metrics that `igrpo status` shows, by name."""
    spent: Mapping[str, Spent] = field(default_factory=dict)
    """For an update: what the stages before it took, by stage. `igrpo status` reads these figures and `metrics` here,
    because opening the files of hundreds of iterations takes seconds."""
    wall_seconds: Amount = 0.0
    """For an update: time in which at least one shard of the stages before it was being made."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "outputs", tuple(self.outputs))

    @property
    def holds_verifications(self) -> bool:
        """True for refinements that are rewarded for the verdict on their draft (`reward.refinements`)."""
        is_refine = self.identity.stage == "refine"
        return is_refine and self.identity.config.get("reward", {}).get("refinements") == "verdict"

    @property
    def lasting_outputs(self) -> tuple[FileHash, ...]:
        """`outputs` without the optimiser state, which is removed once newer ones are there."""
        state = RunDirectory(Path()).update(self.identity.iteration).optimizer
        return tuple(file for file in self.outputs if Path(file.path).parent != state)


@dataclass(config=ConfigDict(strict=True, extra="ignore"), frozen=True, slots=True)
class UpdateFigures:
    """What `igrpo status` reads in the manifest of an update."""

    data: DataFile
    started: UtcTime
    finished: UtcTime
    seconds: Amount
    tokens: Count
    gpu_seconds: Amount
    metrics: Mapping[str, Number]
    spent: Mapping[str, Spent]
    wall_seconds: Amount


_MANIFEST = TypeAdapter(Manifest)
_UPDATE_FIGURES = TypeAdapter(UpdateFigures)


def utc_now() -> str:
    """Return the time as manifests write it: whole seconds in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def publish_manifest(file: Path, manifest: Manifest, *, replace: bool = False) -> bool:
    """Publish a manifest under the name `file`. Raises and returns as `publish_file`."""
    key, version = _VERSION
    return publish_checksummed(file, {key: version, **asdict(manifest)}, replace=replace)


def read_update_figures(path: ShardPath) -> UpdateFigures:
    """Return the figures of an update. Raises as `read_manifest`.

    This takes a tenth of the time of `read_manifest` where an update has hundreds of inputs.
    """
    facts = read_checksummed(path.manifest, *_VERSION)
    names = {each.name for each in fields(UpdateFigures)}
    return validated(path.manifest, _UPDATE_FIGURES, {key: value for key, value in facts.items() if key in names})


def read_manifest(path: ShardPath) -> Manifest:
    """Return the manifest of a shard.

    Raises MissingInputError where there is none, UnknownSchemaError for another version of the format, and
    DamagedFileError, which names file and key, for anything else that is not as it was written.
    """
    manifest = validated(path.manifest, _MANIFEST, read_checksummed(path.manifest, *_VERSION))
    for key in ("stage", "iteration", "shard", "num_shards"):
        says, belongs = getattr(manifest.identity, key), getattr(path, key)
        if says != belongs:
            raise DamagedFileError(f"{path.manifest}: {key} is {says}, but it lies where {belongs} belongs")
    return manifest
