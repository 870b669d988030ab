"""What a shard was made from, and what to say when it is asked for from something else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from igrpo_cli.errors import ConflictError
from igrpo_cli.store.checksummed_json import canonical_json, sha256_json
from igrpo_cli.store.layout import name_of

SHOWN_DIFFERENCES = 3
_SHOWN_CHARACTERS = 60


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


@dataclass(frozen=True, slots=True)
class Difference:
    """One fact in which two identities differ."""

    key: str
    """For example `config.draft.temperature`, `policy` or `inputs.problems.parquet`."""
    on_disk: Any
    """None where it is not there."""
    now: Any


def identity_differences(on_disk: Identity, now: Identity) -> list[Difference]:
    """Every fact in which a shard on disk is not what is asked for now, in a fixed order."""
    left, right = _facts(on_disk), _facts(now)
    keys = [*left, *(key for key in right if key not in left)]
    # Compared as they are written: 1 and 1.0 are equal to Python and two texts to a hash.
    return [
        Difference(key, left.get(key), right.get(key))
        for key in keys
        if canonical_json(left.get(key)) != canonical_json(right.get(key))
    ]


def require_same(on_disk: Identity, now: Identity, anew: str) -> None:
    """Raises ConflictError that says what the shard on disk was made from, and what is asked for now.

    `anew` is what to type to make it in place of that one (`ShardPath.overwrite_command`), for the hint.
    """
    differences = identity_differences(on_disk, now)
    if not differences:
        return
    kind = _kind(differences[0])
    told = [difference for difference in differences if _kind(difference) == kind]
    hint = f"`{anew}` makes it anew{_way_back(kind, told)}"
    raise ConflictError(f"{on_disk.name} was made {_SENTENCES[kind](told)}", hint=hint)


def _facts(identity: Identity) -> dict[str, Any]:
    facts: dict[str, Any] = {f"identity.{key}": getattr(identity, key) for key in _POSITION}
    for section, values in sorted(identity.config.items()):
        facts.update({f"config.{section}.{key}": value for key, value in sorted(values.items())})
    facts.update({"policy": identity.policy, "template": identity.template_sha256})
    facts.update({f"inputs.{file.path}": file.sha256 for file in identity.inputs})
    return facts


_POSITION = ("stage", "iteration", "shard", "num_shards")


def _kind(difference: Difference) -> str:
    return difference.key.partition(".")[0]


def _tell(differences: Iterable[str]) -> str:
    texts = list(differences)
    further = len(texts) - SHOWN_DIFFERENCES
    return "; ".join(texts[:SHOWN_DIFFERENCES]) + (f"; and {further} more" if further > 0 else "")


def _values(differences: Sequence[Difference]) -> str:
    return _tell(f"{_within(each)} {_shown(each.on_disk)} on disk, {_shown(each.now)} now" for each in differences)


def _within(difference: Difference) -> str:
    return difference.key.partition(".")[2]


def _input(difference: Difference) -> str:
    path = _within(difference)
    if difference.now is None:
        return f"with {path}, which is no input now"
    if difference.on_disk is None:
        return f"without {path}, which is an input now"
    return f"from another {path} (sha256 {difference.on_disk[:8]}… on disk, {difference.now[:8]}… now)"


def _hashes(differences: Sequence[Difference]) -> str:
    on_disk, now = (_short_hash(value) for value in (differences[0].on_disk, differences[0].now))
    return f"({on_disk} on disk, {now} now)"


def _short_hash(value: str | None) -> str:
    return "none" if value is None else f"sha256 {value.removeprefix('sha256:')[:8]}…"


_SENTENCES = {
    "identity": lambda told: f"as another shard ({_values(told)})",
    "config": lambda told: f"with another config ({_values(told)})",
    "policy": lambda told: f"from another policy {_hashes(told)}",
    "template": lambda told: f"with another chat template {_hashes(told)}",
    "inputs": lambda told: _tell(_input(each) for each in told),
}


def _way_back(kind: str, told: Sequence[Difference]) -> str:
    if kind != "config":
        return ""
    known = [each for each in told[:SHOWN_DIFFERENCES] if each.on_disk is not None]
    settings = ", ".join(f"{_within(each)} back to {_shown(each.on_disk)}" for each in known)
    return f"; to keep it, set {settings}" if known else ""


def _shown(value: Any) -> str:
    if value is None:
        return "unset"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:40]}… (sha256 {sha256_json(value)[:8]}…)"
