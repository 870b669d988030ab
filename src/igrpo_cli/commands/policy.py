"""`igrpo policy`: restore a policy that is stored as a difference, or copy one."""

from __future__ import annotations

import os
from pathlib import Path

from igrpo_cli.errors import ConflictError
from igrpo_cli.store.atomic import publish_directory, share_file, staging_directory
from igrpo_cli.store.deltas import restore_policy
from igrpo_cli.store.hints import command_line, no_run_error, shell_path
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.policies import MANIFEST, Policy, read_policy, verify_policy
from igrpo_cli.ui.console import Console, printable


def run(path: Path, iteration: int, output: Path | None, *, console: Console) -> None:
    """Make the policy of `iteration` complete as the directory `output`, by default as its place in the run.

    Raises ConflictError where `output` exists, and as `restore_policy` and `verify_policy`.
    """
    found = RunDirectory(path)
    if not found.run_toml.exists():
        raise no_run_error(path)
    place = found.policy(iteration)
    exists = place.is_dir()
    if output is None and exists:
        policy = read_policy(found, iteration)
        verify_policy(policy)
        what = "is complete"
    elif output is not None and (os.path.lexists(output) or found.root.resolve() in output.resolve().parents):
        what = "exists already" if os.path.lexists(output) else "lies in the run"
        raise ConflictError(f"{output} {what}", hint="name a directory outside the run that does not exist")
    else:
        with console.activity(f"restoring policy {iteration}"):
            target = output or place
            if exists:
                policy = _copy(read_policy(found, iteration), target)
            else:
                policy = restore_policy(found, iteration, target)
        what = "restored" if not exists else "copied"
    where = output or policy.directory
    payload = {"policy": str(where), "iteration": iteration, "id": policy.id, "restored": what == "restored"}
    evaluate = command_line(path, "eval", f"--iteration {iteration}")
    if output is not None:
        evaluate = f"igrpo eval --model {shell_path(output)}"
    console.note(f"{evaluate} --bench NAME evaluates it")
    console.data(payload, f"policy {iteration} {what}: {printable(str(where))} ({policy.id[:15]}…)")


def _copy(policy: Policy, output: Path) -> Policy:
    """Copy the files of a complete policy, with its manifest if it was trained, after their hashes are checked.

    The files of a model in the cache of the Hub are links.
    """
    verify_policy(policy)
    manifest = [MANIFEST] if (policy.directory / MANIFEST).exists() else []
    with staging_directory(output) as staged:
        for name in [*policy.files, *manifest]:
            share_file((policy.directory / name).resolve(), staged / name, as_copy=True)
        publish_directory(staged, output)
    return policy
