"""The shards of one stage beside each other: all are made with the same settings, policy and chat template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from igrpo_cli.errors import ConflictError
from igrpo_cli.store.identity import Difference, identity_differences
from igrpo_cli.store.layout import ShardPath
from igrpo_cli.store.manifest import Manifest

_SHARED = ("config.", "policy", "template")
"""Facts in which the shards of a stage must agree; positions and inputs are each shard's own."""


def settings_differences(manifests: Mapping[ShardPath, Manifest]) -> Iterator[tuple[ShardPath, str]]:
    """Each shard of a stage that differs from the first one, and in what, as the end of a sentence about it."""
    if not manifests:
        return
    first_path, *others = manifests
    for path in others:
        for difference in identity_differences(manifests[path].identity, manifests[first_path].identity):
            if difference.key.startswith(_SHARED):
                yield path, _told(difference, first_path)


def require_same_settings(manifests: Mapping[ShardPath, Manifest]) -> None:
    """Raises ConflictError, naming shard and setting, where the shards of a stage were made with different ones."""
    found = next(settings_differences(manifests), None)
    if found is None:
        return
    path, what = found
    first = next(iter(manifests))
    raise ConflictError(
        f"{path.name} does not go with the others ({path.manifest}): {what}",
        hint=f"make one of both anew: {path.overwrite_command}, or {first.overwrite_command}",
    )


def _told(difference: Difference, first: ShardPath) -> str:
    key = difference.key.removeprefix("config.")
    return f"{key} is {difference.on_disk!r}, but {difference.now!r} in {first.name}"
