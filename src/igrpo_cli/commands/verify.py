"""`igrpo verify`: check every file of a run against its manifest, and the manifests against each other.

With `--replay`, compute policies again from the files of their updates and compare the hashes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from igrpo_cli.errors import ConflictError, DamagedFileError, IgrpoError, MissingInputError, UsageError
from igrpo_cli.pipeline.session import Session, StageRequest, open_session
from igrpo_cli.store.layout import RunDirectory, UpdatePath, no_run_error, parse_shards
from igrpo_cli.store.manifest import FileHash, Manifest
from igrpo_cli.ui.console import Console, table

EQUAL, DIFFERS, NOT_REPLAYED = "equal", "differs", "not replayed"


def run(path: Path, console: Console) -> None:
    """Print what is wrong with the run at `path`.

    Raises DamagedFileError (exit 1) when there is a problem, MissingInputError when there is no run. A run without
    run.toml is damaged.
    """
    from igrpo_cli.store.verify import bytes_to_hash, verify_run

    directory = RunDirectory(path)
    if not directory.run_toml.exists() and not directory.iterations():
        raise no_run_error(path)
    with console.progress("verify", bytes_to_hash(directory) / 1e6, "MB") as progress:
        report = verify_run(
            directory,
            lambda file: console.detail(f"checking {file}"),
            lambda num_bytes: progress.advance(num_bytes / 1e6, MB=num_bytes / 1e6),
        )
    found = [{"path": str(each.path), "what": each.what, "hint": each.hint} for each in report.problems]
    notes = [{"path": str(each.path), "what": each.what, "hint": each.hint} for each in report.notes]
    lines = [f"{each.path}: {each.what}" + (f" (hint: {each.hint})" if each.hint else "") for each in report.problems]
    lines += [f"note: {each.path}: {each.what}" for each in report.notes]
    verdict = f"{len(found)} problems" if found else "all are as their manifests say"
    console.data(
        {"ok": not found, "checked": report.num_checked, "problems": found, "notes": notes},
        "\n".join([*lines, f"{report.num_checked} files checked: {verdict}"]),
    )
    if found:
        raise DamagedFileError(f"{len(found)} problems in {path}", hint=found[0]["hint"])


def replay(path: Path, iterations: str, console: Console) -> None:
    """Compute the policies that the updates of `iterations` made again, and print if all hashes are those recorded.

    Everything is written into a temporary directory. Raises IgrpoError (exit 1) unless all hashes are equal.
    """
    with open_session(path, [], console, only_looks=True) as session:
        number = session.num_iterations()
        try:
            chosen = parse_shards(iterations, number, "iteration")
        except UsageError as error:
            raise UsageError(error.message, hint=f"--replay 0, or --replay 0-{number - 1}") from None
        found = [_replayed(session, iteration) for iteration in chosen]
    equal = [each for each in found if each["result"] == EQUAL]
    console.data(
        {"ok": len(equal) == len(found), "replayed": sum(each["files"] > 0 for each in found), "updates": found},
        "\n".join(
            [_table(found), *_explanations(found), f"{len(equal)} of {len(found)} updates: all hashes are equal"]
        ),
    )
    if any(each["result"] == DIFFERS for each in found):
        raise DamagedFileError(
            f"the replay of {path} has other hashes", hint="igrpo verify checks the files themselves"
        )
    if len(equal) < len(found):
        raise IgrpoError(f"{len(found) - len(equal)} updates of {path} could not be replayed")


def _replayed(session: Session, iteration: int) -> dict[str, Any]:
    """Return the result of one update for `--json`. An update that lacks something to be replayed has a `reason`."""
    started, reason = time.monotonic(), None
    environment: list[str] = []
    files: dict[str, bool] = {}
    try:
        files, environment = _compare(session, iteration)
    except (MissingInputError, ConflictError, DamagedFileError) as error:
        reason = error.message
    differing = [file for file, is_equal in files.items() if not is_equal]
    return {
        "iteration": iteration,
        "policy": iteration + 1,
        "result": NOT_REPLAYED if reason else DIFFERS if differing else EQUAL,
        "files": len(files),
        "differing": differing,
        "reason": reason,
        "environment": environment,
        "seconds": round(time.monotonic() - started, 3),
    }


def _compare(session: Session, iteration: int) -> tuple[dict[str, bool], list[str]]:
    """Return {file: True if its hash is equal} of one update, and in what this environment differs from then."""
    from igrpo_cli.commands import update as command
    from igrpo_cli.pipeline.provenance import environment_differences, recorded_config
    from igrpo_cli.pipeline.stage_shards import StageShards
    from igrpo_cli.store.conflicts import require_same
    from igrpo_cli.store.manifest import read_manifest
    from igrpo_cli.store.policies import policy_id, read_policy

    update = session.run.update(iteration)
    manifest = read_manifest(update.shard)
    session.enter(iteration)
    session.config = recorded_config(session.run, iteration, session.config)
    policy = read_policy(session.run, iteration)
    request = StageRequest(iteration, command.ONLY_SHARD)
    identity = StageShards(session, request, command.plan(session, iteration, policy)).identity_of(update.shard)
    require_same(manifest.identity, identity, update.shard.overwrite_command)
    if session.warm_trainer is not None and session.warm_trainer[1].config != session.config.update:
        session.warm_trainer = None
    with tempfile.TemporaryDirectory(prefix="igrpo-replay-") as folder:
        scratch = UpdatePath(Path(folder), iteration, Path(tempfile.mkdtemp(dir=folder)))
        outputs, trainer = _recompute(session, policy, scratch, identity)
        files = dict(_compared(manifest, outputs, update, scratch))
    if all(files.values()) and session.config.update.optimizer_state == "carry":
        # The next update continues from this state, which may have been removed from the run.
        made = {Path(file.path).name: file.sha256 for file in outputs if file.path.startswith("policies/")}
        session.warm_trainer = (policy_id(made), trainer)
    device = f"{trainer.ranks.describe()}, {trainer.dtype}"
    return files, environment_differences(manifest, device)


def _recompute(session: Session, policy: Any, scratch: UpdatePath, identity: Any) -> tuple[list[FileHash], Any]:
    """Take the steps of an update and write its files to `scratch`; return them under their final names."""
    from igrpo_cli.commands import update as command
    from igrpo_cli.pipeline import update_artifacts as artifacts
    from igrpo_cli.pipeline.step_checkpoints import StepCheckpoints
    from igrpo_cli.pipeline.training_groups import read_observations
    from igrpo_cli.pipeline.update_trainer import load_trainer
    from igrpo_cli.training.ranks import Ranks

    iteration, config, staged = scratch.iteration, session.config, scratch.directory
    trainer = load_trainer(session, policy, iteration, Ranks())
    observations = read_observations(session, iteration, policy)
    groups = command.groups_with_advantages(observations, config)
    minibatches = command.split_into_minibatches(groups, config.update.num_minibatches, config.run.seed, iteration)
    checkpoints = StepCheckpoints(scratch, identity, session.console)
    steps = command.take_steps(session, trainer, minibatches, iteration, checkpoints)
    artifacts.stage_trainer(session, trainer, policy, iteration, staged)
    update = session.run.update(iteration)
    outputs = artifacts.record_policy(session, policy, iteration, staged)
    outputs.append(artifacts.stage_advantages(update, staged, steps))
    metrics = artifacts.stage_metrics(update, staged, observations.metrics(), steps)
    return [*outputs, FileHash(update.relative(update.metrics), metrics.sha256)], trainer


def _compared(
    manifest: Manifest, outputs: Sequence[FileHash], update: UpdatePath, scratch: UpdatePath
) -> Iterator[tuple[str, bool]]:
    """Yield each file of an update with True if its hash is the recorded one.

    The manifest has one hash for all files of an optimiser state. They are named one by one if they are still there.
    """
    from igrpo_cli.store.checksummed_json import RECORD, recorded_files

    then = {file.path: file.sha256 for file in manifest.outputs}
    then[update.relative(update.metrics)] = manifest.data.sha256
    now = {file.path: file.sha256 for file in outputs}
    for path in sorted({*then, *now}):
        is_equal = then.get(path) == now.get(path)
        name = Path(path).parent.name
        kept, made = update.directory / name, scratch.directory / name
        if Path(path).parent.parent != Path(update.relative(update.directory)) or not kept.is_dir() or is_equal:
            yield path, is_equal
            continue
        before, after = recorded_files(kept), recorded_files(made)
        for file in sorted({*before, *after}):
            yield path.replace(RECORD, file), before.get(file) == after.get(file)


def _table(found: Sequence[dict[str, Any]]) -> str:
    names = ("iteration", "policy", "result", "files", "seconds")
    return table(names, [tuple(each[name] for name in names) for each in found])


def _explanations(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield a line for each file that differs and each update that was not replayed, and what explains it."""
    for each in found:
        yield from (f"iteration {each['iteration']}: {file} differs" for file in each["differing"])
        if each["reason"]:
            yield f"iteration {each['iteration']} was not replayed: {each['reason']}"
        if each["reason"] and "optimiser state" in each["reason"]:
            yield f"a replay from an earlier iteration makes that state again: --replay 0-{each['iteration']}"
        if each["differing"] and each["environment"]:
            yield f"differences are expected, because the update was made elsewhere: {'; '.join(each['environment'])}"
        elif each["differing"]:
            yield "differences are expected with another number of CPU threads (run.cpu_threads, OMP_NUM_THREADS)"
