"""Record changes of settings: what they change, from which iteration on, and what they would conflict with."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from igrpo_cli.config import RunConfig, stage_identity
from igrpo_cli.config.files import apply_overrides, key_of, with_changes
from igrpo_cli.errors import ConflictError
from igrpo_cli.inspection.run_config import Settings, differing_values, flat_settings
from igrpo_cli.pipeline.session import Session
from igrpo_cli.store.hints import command_line
from igrpo_cli.store.layout import PARTS, RunDirectory, shards_in
from igrpo_cli.store.manifest import read_manifest
from igrpo_cli.store.settings import add_change
from igrpo_cli.ui.console import printable

EXTENDED = ("run.num_iterations", "update.lr_scheduler_iterations")
"""Settings that `igrpo extend` changes."""


OF_TRAINING = {"draft", "select", "critique", "refine", "update"}
"""Sections that only iterations read. Evaluations read the others, too."""


def record(
    session: Session, from_iteration: int, settings: Settings, texts: Sequence[str] = (), *, dry_run: bool
) -> None:
    """Publish a change of a run, unless it has these settings already, and print it.

    `texts` are the settings as the user wrote them, for hints. Raises UsageError for settings that no run can have, and
    ConflictError where shards of `from_iteration` or later were made with other ones.
    """
    before, after = session.run_config, changed_config(session.run_config, from_iteration, settings)
    if conflicts := _conflicts(session, after, from_iteration):
        iteration, stage = conflicts[0]
        later = f"--from-iteration {conflicts[-1][0] + 1}"
        changes = [shlex.quote(text) for text in texts]
        flags = f"NEW_RUN --from {iteration} --stage {stage} {' '.join(f'--set {text}' for text in changes)}"
        raise ConflictError(
            f"{stage} of iteration {iteration} was made with other settings",
            hint=f"{command_line(session.run.root, 'set', ' '.join([*changes, later]))} changes what follows; "
            f"{command_line(session.run.root, 'fork', flags)} keeps both",
        )
    differing = _differing(before, after, from_iteration)
    file = None
    if differing and not dry_run:
        file = add_change(session.run, from_iteration, settings)
    text = "\n".join(
        f"from iteration {from_iteration}: {name} {old} -> {new}" for name, (old, new) in differing.items()
    )
    num_iterations = after.latest.run.num_iterations or session.num_iterations()
    if from_iteration >= num_iterations and {name.partition(".")[0] for name in differing} & OF_TRAINING:
        extend = command_line(session.run.root, "extend", f"--iterations {from_iteration + 1}")
        text += f"\nthe run has {num_iterations} iterations, so no command uses this yet; `{extend}` adds one"
    payload = {
        "run": str(session.run.root),
        "from_iteration": from_iteration,
        "changed": differing,
        "file": None if file is None else str(file),
    }
    session.console.data(payload, printable(text or "the run has these settings already"))


def changed_settings(config: RunConfig, texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return {section: {key: value}} for `texts`. Where one names a value in a table, the others are those of `config`.

    Raises UsageError for a text of another form.
    """
    applied = apply_overrides(config.model_dump(mode="json", exclude_none=True), texts)
    settings: dict[str, dict[str, Any]] = {}
    for section, key in map(key_of, texts):
        settings.setdefault(section, {})[key] = applied[section][key]
    return settings


def changed_config(config: RunConfig, from_iteration: int, settings: Settings) -> RunConfig:
    """Return `config` with a further change. Raises UsageError for settings that no run can have."""
    change = {"from_iteration": from_iteration, "settings": settings}
    changes = [*(each.model_dump() for each in config.changes), change]
    names = [f"change {number}" for number in range(1, len(changes))] + ["the new settings"]
    return with_changes(config.model_dump(mode="json", exclude_none=True), changes, names, "run.toml")


def commands_until(config: RunConfig, number: int, shown: Callable[[Settings], Settings] = dict) -> list[str]:
    """Return the commands that change a new run as this one was, and run its first `number` iterations.

    `shown` maps the settings of a change to those that the commands name.
    """
    commands, done = [], 0
    for change in (each for each in config.changes if each.from_iteration < number):
        settings = flat_settings(shown(change.settings))
        texts = " ".join(shell_setting(name, value) for name, value in settings.items() if name not in EXTENDED)
        if texts:
            commands.append(f"igrpo set RUN {texts} --from-iteration {change.from_iteration}")
        total, scheduled = (flat_settings(change.settings).get(name) for name in EXTENDED)
        if total is not None:
            # A schedule that is stretched changes from the first iteration on that is not complete.
            if change.from_iteration > done:
                commands.append(f"igrpo run RUN --iterations {change.from_iteration - done}")
                done = change.from_iteration
            is_stretched = scheduled in (None, total) and config.update.lr_scheduler_type != "constant"
            stretch = " --schedule stretch" if is_stretched else ""
            commands.append(f"igrpo extend RUN --iterations {total}{stretch}")
    return [*commands, f"igrpo run RUN --iterations {number - done}"] if number > done else commands


def shell_setting(name: str, value: Any) -> str:
    """Return `section.key=value` for `igrpo set` and `--set`, quoted for a shell."""
    return shlex.quote(f"{name}={_toml(value)}")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(each)}" for key, each in value.items()) + "}"
    return value if isinstance(value, str) and value.isidentifier() else json.dumps(value, ensure_ascii=False)


def first_possible(session: Session, settings: Settings) -> int:
    """Return the first iteration, from the current one on, that has no shard which would conflict."""
    current = session.current_iteration()
    if session.run.update(current).manifest.exists():
        current += 1
    conflicts = _conflicts(session, changed_config(session.run_config, current, settings), current)
    return conflicts[-1][0] + 1 if conflicts else current


def _conflicts(session: Session, after: RunConfig, from_iteration: int) -> list[tuple[int, str]]:
    """Return (iteration, stage) of shards, complete or in progress, that other settings would conflict with."""
    found = []
    for iteration in (each for each in session.run.iterations() if each >= from_iteration):
        old, new = session.run_config.at(iteration), after.at(iteration)
        for stage in old.stages():
            recorded = made_with(session.run, iteration, stage, old)
            if recorded is not None and conflicting_names(recorded, stage_identity(new, stage)):
                found.append((iteration, stage))
    return found


def made_with(run: RunDirectory, iteration: int, stage: str, config: RunConfig) -> Settings | None:
    """Return the settings that a stage was made with, from a manifest; None for a stage that has not begun.

    Blocks and steps that are kept of unfinished work were made with those of `config`.
    """
    directory, update = run.stage(iteration, stage), run.update(iteration)
    known = [number for number, suffixes in shards_in(directory).items() if "json" in suffixes]
    if stage == "update" and update.manifest.exists():
        return read_manifest(update.shard).identity.config
    if known:
        return read_manifest(run.shard(iteration, stage, *known[0])).identity.config
    kept = update.checkpoints if stage == "update" else directory / PARTS
    return stage_identity(config, stage) if kept.is_dir() else None


def conflicting_names(recorded: Settings, requested: Settings) -> list[str]:
    """Return the requested settings that were recorded with another value, as `section.key`.

    What a manifest adds, such as hashes, does not count.
    """
    before = flat_settings(recorded)
    return [name for name, value in flat_settings(requested).items() if before.get(name) != value]


def _differing(before: RunConfig, after: RunConfig, from_iteration: int) -> dict[str, tuple[Any, Any]]:
    """Return {name: (old, new)} of the settings that differ at `from_iteration` or at a later change."""
    places = [from_iteration, *(each.from_iteration for each in after.changes if each.from_iteration > from_iteration)]
    differing: dict[str, tuple[Any, Any]] = {}
    for place in places:
        both = (flat_settings(config.changed(place).model_dump(mode="json")) for config in (before, after))
        differing = {**differing_values(*both), **differing}
    return differing
