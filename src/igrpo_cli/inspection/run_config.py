"""Read the settings of a run as they are in use: `run.toml`, the changes after it, and those of one command."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from igrpo_cli.config import RunConfig
from igrpo_cli.config.files import apply_overrides, key_of, read_toml, with_changes
from igrpo_cli.errors import IgrpoError
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.lineage import read_fork
from igrpo_cli.store.settings import change_files, read_changes

Settings = Mapping[str, Mapping[str, Any]]
"""{section: {key: value}}"""


def read_run_config(run: RunDirectory, overrides: Iterable[str] = ()) -> RunConfig:
    """Return the settings of a run with its changes. `overrides` (`section.key=value`) hold for all iterations.

    Raises UsageError, which names file and key, for settings that no run can have, and DamagedFileError for a change
    that is not as it was written.
    """
    overrides = list(overrides)
    changes = read_changes(run)
    for change in changes:
        # An override counts more than a change of the same key; of a table it may replace a single value.
        own = change["settings"]
        again = [text for text in overrides if key_of(text)[1] in own.get(key_of(text)[0], {})]
        change["settings"] = apply_overrides(own, again)
    settings = apply_overrides(read_toml(run.run_toml), overrides)
    return with_changes(settings, changes, [str(path) for path in change_files(run)], str(run.run_toml))


def described_changes(config: RunConfig) -> list[tuple[int, str]]:
    """Return (first iteration, `section.key = value`) of each setting that was changed, in order of the changes."""
    return [
        (change.from_iteration, f"{name} = {value}")
        for change in config.changes
        for name, value in flat_settings(change.settings).items()
    ]


def described_fork(run: RunDirectory) -> str | None:
    """Return where a run was forked from, as the end of a sentence; None for another run or a damaged record."""
    try:
        fork = read_fork(run)
    except IgrpoError:
        return None
    return None if fork is None else f"{fork.parent}, with its own {fork.stage} of iteration {fork.iteration}"


def flat_settings(sections: Settings) -> dict[str, Any]:
    """Return {`section.key`: value}."""
    return {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}


def differing_values(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return both values of each name that differs, sorted by name; None for a value that is missing."""
    return {name: (a.get(name), b.get(name)) for name in sorted({*a, *b}) if a.get(name) != b.get(name)}
