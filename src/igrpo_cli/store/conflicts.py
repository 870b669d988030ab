"""Compare the identities of shards, and describe in what they differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from igrpo_cli.errors import ConflictError
from igrpo_cli.store.checksummed_json import canonical_json, sha256_json
from igrpo_cli.store.layout import ShardPath
from igrpo_cli.store.manifest import Identity, Manifest

_SHARED = ("config.", "policy", "template")
"""Fields in which the shards of a stage must agree. Positions and inputs differ from shard to shard."""


def settings_differences(manifests: Mapping[ShardPath, Manifest]) -> Iterator[tuple[ShardPath, str]]:
    """Yield each shard of a stage that differs from the first one, with the difference as the end of a sentence."""
    if not manifests:
        return
    first_path, *others = manifests
    for path in others:
        for difference in identity_differences(manifests[path].identity, manifests[first_path].identity):
            if difference.key.startswith(_SHARED):
                yield path, _sentence(difference, first_path)


def require_same_settings(manifests: Mapping[ShardPath, Manifest]) -> None:
    """Raise ConflictError, naming shard and setting, where shards of one stage were made with different settings."""
    found = next(settings_differences(manifests), None)
    if found is None:
        return
    path, what = found
    first = next(iter(manifests))
    raise ConflictError(
        f"{path.name} does not go with the others ({path.manifest}): {what}",
        hint=f"make one of both again: {path.overwrite_command}, or {first.overwrite_command}",
    )


def _sentence(difference: Difference, first: ShardPath) -> str:
    key = difference.key.removeprefix("config.")
    return f"{key} is {difference.on_disk!r}, but {difference.now!r} in {first.name}"


SHOWN_DIFFERENCES = 3
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Difference:
    """Represents one field in which two identities differ."""

    key: str
    """For example `config.draft.temperature`, `policy` or `inputs.problems.parquet`."""
    on_disk: Any
    """None where it is not there."""
    now: Any


def identity_differences(on_disk: Identity, now: Identity) -> list[Difference]:
    """Return every field in which a shard on disk differs from the requested one, in a fixed order."""
    left, right = _facts(on_disk), _facts(now)
    keys = [*left, *(key for key in right if key not in left)]
    # Compared as they are written: 1 and 1.0 are equal to Python and two texts to a hash.
    return [
        Difference(key, left.get(key), right.get(key))
        for key in keys
        if canonical_json(left.get(key)) != canonical_json(right.get(key))
    ]


def require_same(on_disk: Identity, now: Identity, overwrite_command: str) -> None:
    """Raise ConflictError where a shard on disk has another identity than the requested one.

    The message names both values. `overwrite_command` is that of the shard, for the hint.
    """
    differences = identity_differences(on_disk, now)
    if not differences:
        return
    kind = _kind(differences[0])
    told = [difference for difference in differences if _kind(difference) == kind]
    hint = f"`{overwrite_command}` makes it again{_way_back(kind, told)}"
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
    # Hashes of files and values that are shortened cannot be typed.
    known = [
        each
        for each in told[:SHOWN_DIFFERENCES]
        if each.on_disk is not None and not _is_hash(each.key) and "… (sha256" not in _shown(each.on_disk)
    ]
    settings = " ".join(f"--set '{_within(each)}={_shown(each.on_disk)}'" for each in known)
    return f"; to keep it, add {settings}" if known else ""


def _is_hash(key: str) -> bool:
    return ".sha256" in key or key.endswith(".function_sources")


def _shown(value: Any) -> str:
    if value is None:
        return "unset"
    text = _as_typed(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:40]}… (sha256 {sha256_json(value)[:8]}…)"


def _as_typed(value: Any) -> str:
    """Return a JSON value as `--set` takes it: tables in TOML's form, without unset keys."""
    if isinstance(value, Mapping):
        pairs = [f"{json.dumps(key)} = {_as_typed(each)}" for key, each in value.items() if each is not None]
        return f"{{{', '.join(pairs)}}}"
    return json.dumps(value, ensure_ascii=False)
