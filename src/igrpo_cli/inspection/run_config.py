"""Read the settings of a run as they are in use: `run.toml`, the changes after it, and those of one command."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from igrpo_cli.config import RunConfig
from igrpo_cli.config.files import apply_overrides, check_config, explain, parse_override, read_toml
from igrpo_cli.errors import IgrpoError, UsageError
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


def with_changes(
    settings: Mapping[str, Any], changes: Sequence[Mapping[str, Any]], names: Sequence[str], origin: str
) -> RunConfig:
    """Return the checked settings with `changes`. `names` are those of the changes and `origin` that of the settings.

    Raises UsageError, with the name, for a change after which no run could have the settings.
    """
    config = check_config({**settings, "changes": list(changes)}, origin)
    for number, name in enumerate(names, 1):
        earlier = config.model_copy(update={"changes": config.changes[:number]})
        try:
            earlier.changed(earlier.changes[-1].from_iteration)
        except ValidationError as error:
            raise UsageError(explain(error, name), hint="igrpo set RUN section.key=value changes a setting") from None
    return config


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


def key_of(override: str) -> tuple[str, str]:
    """Return section and key of `section.key=value`, also where a value within a table is named."""
    section, key, _ = parse_override(override)
    return section, key.partition(".")[0]


def flat_settings(sections: Settings) -> dict[str, Any]:
    """Return {`section.key`: value}."""
    return {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}


def differing_values(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return both values of each name that differs, sorted by name; None for a value that is missing."""
    return {name: (a.get(name), b.get(name)) for name in sorted({*a, *b}) if a.get(name) != b.get(name)}
