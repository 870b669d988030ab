"""`igrpo fork`: a new run that shares everything with an existing one up to a stage of an iteration."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igrpo_cli.config import RunConfig, stage_identity
from igrpo_cli.config.files import read_toml, refuse_fixed
from igrpo_cli.errors import ConflictError, MissingInputError, UsageError
from igrpo_cli.inspection.run_config import described_changes, flat_settings
from igrpo_cli.pipeline.changes import EXTENDED, changed_config, changed_settings, conflicting_names, made_with
from igrpo_cli.pipeline.plan import require_possible
from igrpo_cli.pipeline.session import Session, open_session
from igrpo_cli.store.atomic import make_directory, publish_directory, share_file, staging_directory
from igrpo_cli.store.completion import damage_of, input_hashes
from igrpo_cli.store.hints import command_line
from igrpo_cli.store.layout import RunDirectory, ShardPath, format_shards, read_eval_name
from igrpo_cli.store.lineage import Fork, read_fork, require_current, write_fork
from igrpo_cli.store.policies import POINTER, read_policy
from igrpo_cli.store.settings import add_change, read_changes
from igrpo_cli.ui.console import Console, printable

COPIED = ("judge",)
"""Directories whose files grow. A link would let two runs write into one file."""
Changes = list[tuple[int, dict[str, dict[str, Any]]]]
"""(first iteration, {section: {key: value}}) of each change, in order."""


@dataclass(frozen=True)
class ForkRequest:
    """The options of the command line."""

    run: Path
    new: Path
    iteration: int
    stage: str
    sets: tuple[str, ...]
    fresh_optimizer: bool
    as_copy: bool
    dry_run: bool


def run(request: ForkRequest, console: Console) -> None:
    """Make the new run and print what it shares.

    Raises MissingInputError where the run lacks what the new one would begin with, UsageError for settings of an
    earlier stage than `stage`, and ConflictError where there is another run already.
    """
    with open_session(request.run, [], console) as session:
        refuse_fixed(read_toml(session.run.run_toml), request.sets, session.run.run_toml)
        session.policy(request.iteration)  # moves a policy to its place, and checks its ancestors
        changes = _changes(session, request)
        config = _require_settings(session, request, changes)
        _require_shards(session, request)
        recomputed = _states_to_recompute(session, request, config)
        fork = Fork(str(request.run.absolute()), request.iteration, request.stage, session.policy(request.iteration).id)
        files, exists = list(_files(session, request, recomputed)), _exists(request, fork, changes)
        linked = copied = 0
        if request.dry_run and not exists:
            for file in files:
                size = (session.run.root / file).stat().st_size
                linked, copied = (linked, copied + size) if _is_copied(request, file) else (linked + size, copied)
        elif not exists:
            _note_later_changes(session, request)
            with staging_directory(request.new) as staged:
                linked, copied = _share(request, session.run, RunDirectory(staged), files)
                for from_iteration, settings in changes:
                    add_change(RunDirectory(staged), from_iteration, settings)
                write_fork(RunDirectory(staged), fork)
                try:
                    publish_directory(staged, request.new)
                except ConflictError:
                    _exists(request, fork, changes)  # raises, unless another process made the same fork
        payload = {
            "run": str(request.new),
            "parent": fork.parent,
            "from_iteration": fork.iteration,
            "stage": fork.stage,
            "files": len(files),
            "bytes_shared": linked,
            "bytes_copied": copied,
            "exists": exists,
        }
        kind = "would share" if request.dry_run else "shares"
        text = (
            f"{request.new} {kind} {len(files)} files with {request.run}, up to {request.stage} of iteration "
            f"{request.iteration}: {linked / 1e6:,.1f} MB as links, {copied / 1e6:,.1f} MB as copies\n"
            f"next: {command_line(request.new, 'run')}"
        )
        console.data(payload, printable(f"{request.new} is this fork already" if exists else text))


def _changes(session: Session, request: ForkRequest) -> Changes:
    """Return the changes of the new run: those of the run so far, of `--set` and of a fresh optimiser, and its length.

    Of later changes of the run only those by `igrpo extend` are kept.
    """
    recorded = [(each["from_iteration"], each["settings"]) for each in read_changes(session.run)]
    changes = [(first, settings) for first, settings in recorded if first <= request.iteration]
    extensions = [
        (first, {section: {key: settings[section][key]} for section, key in kept})
        for first, settings in recorded
        if first > request.iteration
        and (kept := [name.split(".") for name in EXTENDED if name in flat_settings(settings)])
    ]
    before = session.run_config.changed(request.iteration)
    own = changed_settings(before, request.sets)
    if request.fresh_optimizer:
        has_weights = session.run.update(request.iteration - 1).optimizer.is_dir() if request.iteration else True
        once = "fresh" if has_weights else "from_policy"
        later = own.get("update", {}).get("optimizer_state", before.update.optimizer_state)
        own.setdefault("update", {})["optimizer_state"] = once
        changes += [(request.iteration, own), (request.iteration + 1, {"update": {"optimizer_state": later}})]
    elif own:
        changes.append((request.iteration, own))
    return [*changes, *extensions]


def _note_later_changes(session: Session, request: ForkRequest) -> None:
    """Name the settings that the run changed after the iteration of the fork, which does not have them."""
    for first, text in described_changes(session.run_config):
        if first > request.iteration and text.partition(" ")[0] not in EXTENDED:
            session.console.note(f"not in the fork, since it was changed later: {text}, from iteration {first}")


def _require_settings(session: Session, request: ForkRequest, changes: Changes) -> RunConfig:
    """Return the settings of the new run. Raises UsageError where a shared stage would have other ones."""
    config = session.run_config.model_copy(update={"changes": []})
    for from_iteration, settings in changes:
        config = changed_config(config, from_iteration, settings)
    old, new = session.run_config.at(request.iteration), config.at(request.iteration)
    require_possible(new)
    if request.stage not in new.stages():
        raise UsageError(
            f"iteration {request.iteration} has no stage {request.stage}", hint=f"its stages: {', '.join(new.stages())}"
        )
    for stage in _shared_stages(new, request.stage):
        recorded = made_with(session.run, request.iteration, stage, old)
        if recorded is not None and (differing := conflicting_names(recorded, stage_identity(new, stage))):
            raise UsageError(
                f"{differing[0]} decides {stage}, which comes before {request.stage} and is shared",
                hint=f"--stage {stage} makes it again",
            )
    return config


def _shared_stages(config: RunConfig, stage: str) -> list[str]:
    stages = list(config.stages())
    return stages[: stages.index(stage)]


def _require_shards(session: Session, request: ForkRequest) -> None:
    """Raise MissingInputError or ConflictError unless all shards to share are complete and current."""
    paths = [path for iteration in range(request.iteration) for path in _shards(session, iteration, None)]
    paths += _shards(session, request.iteration, request.stage)
    require_current(session.run, input_hashes(*paths))
    for path in paths:
        if damage := damage_of(path):
            raise ConflictError(damage, hint=f"{path.overwrite_command} makes it again")


def _shards(session: Session, iteration: int, before: str | None) -> Iterator[ShardPath]:
    """Yield the shards of an iteration, of the stages before `before` or of all."""
    config = session.run_config.at(iteration)
    for stage in config.stages() if before is None else _shared_stages(config, before):
        if stage == "update":
            yield session.run.update(iteration).shard
        else:
            yield from session.run.shards(iteration, stage, config.run.num_shards)


def _states_to_recompute(session: Session, request: ForkRequest, config: RunConfig) -> range:
    """Return the updates that the new run computes again, because the optimiser state that it needs was removed.

    Raises MissingInputError where a policy that they need was removed, too.
    """
    from igrpo_cli.pipeline.update_trainer import updates_to_recompute

    missing = updates_to_recompute(Session(session.run, config, session.console), request.iteration)
    gone = [each for each in missing if not session.run.policy(each).is_dir()]
    if gone:
        if all(session.run.delta(each).is_dir() for each in gone):
            raise MissingInputError(
                f"the optimiser state of iteration {request.iteration - 1} does not exist, and policy {gone[0]}, which "
                "it is computed from, is stored as a difference",
                hint="; ".join(command_line(session.run.root, "policy", str(each)) for each in gone),
            )
        raise MissingInputError(
            f"the optimiser state that the update of iteration {request.iteration} continues from does not exist, and "
            f"cannot be computed again: {session.run.policy(gone[0])} does not exist",
            hint=f"--fresh-optimizer begins iteration {request.iteration} with zero moments and the published weights, "
            "which is another run than one without a break",
        )
    if missing:
        session.console.note(
            f"the optimiser state of iteration {request.iteration - 1} does not exist: the first update of the new run "
            f"computes {format_shards(missing)} again; --fresh-optimizer begins with zero moments instead"
        )
    return missing


def _exists(request: ForkRequest, fork: Fork, changes: Changes) -> bool:
    """Return True where the new run is there already. Raises ConflictError for anything else in its place."""
    new = RunDirectory(request.new)
    if not new.root.exists() or (new.root.is_dir() and not any(new.root.iterdir())):
        return False
    is_same = new.run_toml.exists() and read_fork(new) == fork
    if is_same and [(each["from_iteration"], each["settings"]) for each in read_changes(new)] == changes:
        return True
    raise ConflictError(f"{request.new} exists already", hint="name another directory for the fork")


def _files(session: Session, request: ForkRequest, recomputed: range) -> Iterator[Path]:
    """Yield the files to share, relative to the run: no work in progress, and the one optimiser state that is used."""
    run, last = session.run, request.iteration
    roots = [run.run_toml, run.problems().data, run.problems().manifest, run.judgements]
    roots += [run.policy(each) for each in run.policy_iterations() if each <= last]
    roots += [run.delta(each) for each in run.delta_iterations() if each <= last]
    roots += [run.iteration(each) for each in range(last)]
    roots += [run.stage(last, stage) for stage in _shared_stages(session.run_config.at(last), request.stage)]
    for bench in sorted((run.root / "eval").glob("*")):
        evaluations = [each for each in sorted(bench.glob("*")) if each.is_dir()]
        policies = {each: read_eval_name(each.name)[0] for each in evaluations}
        shared = [each for each, policy in policies.items() if isinstance(policy, int) and policy <= last]
        roots += [bench / "problems.parquet", bench / "problems.json", *shared] if shared else []
    used = recomputed.start - 1 if recomputed else last - 1
    unused = {run.update(each).optimizer for each in range(last) if each != used}
    for root in roots:
        for path in _files_below(root):
            if path.parent not in unused:
                yield path.relative_to(run.root)


def _files_below(root: Path) -> Iterator[Path]:
    if root.is_file():
        yield root
    for directory, names, files in os.walk(root):
        names[:] = sorted(name for name in names if not name.startswith("."))
        yield from (Path(directory, name) for name in sorted(files) if not name.startswith("."))


def _is_copied(request: ForkRequest, file: Path) -> bool:
    """Return True for a file that is not to be linked, relative to the run: on request, or because it grows."""
    return request.as_copy or file.parts[0] in COPIED


def _share(request: ForkRequest, run: RunDirectory, new: RunDirectory, files: list[Path]) -> tuple[int, int]:
    """Link or copy the files; return the bytes of links and of copies."""
    linked = copied = 0
    for file in files:
        size = (run.root / file).stat().st_size
        make_directory((new.root / file).parent)
        if share_file(run.root / file, new.root / file, as_copy=_is_copied(request, file)):
            linked += size
        else:
            copied += size
    policy = read_policy(new, 0)
    if (new.policy(0) / POINTER).exists() and not policy.directory.is_dir():
        raise MissingInputError(
            f"{new.policy(0) / POINTER} leads nowhere from the new run", hint="name a model by an absolute path"
        )
    return linked, copied
