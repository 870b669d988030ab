"""`igrpo verify`: check every file of a run against its manifest, and the manifests against each other.

With `--replay`, compute policies again from the files of their updates and compare the hashes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from igrpo_cli.errors import ConflictError, DamagedFileError, IgrpoError, MissingInputError, UsageError
from igrpo_cli.pipeline.session import Session, open_session
from igrpo_cli.store.hints import no_run_error
from igrpo_cli.store.layout import RunDirectory, parse_shards
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
        "\n".join([_table(found), *_explanations(found), f"{len(equal)} of {len(found)} updates have equal hashes"]),
    )
    if any(each["result"] == DIFFERS for each in found):
        raise DamagedFileError(
            f"the replay of {path} has other hashes", hint="igrpo verify checks the files themselves"
        )
    if len(equal) < len(found):
        raise IgrpoError(f"{len(found) - len(equal)} updates of {path} could not be replayed")


def _replayed(session: Session, iteration: int) -> dict[str, Any]:
    """Return the result of one update for `--json`. An update that lacks something to be replayed has a `reason`."""
    from igrpo_cli.pipeline.recomputation import Recomputation, recompute

    started, reason = time.monotonic(), None
    made = Recomputation({}, [])
    try:
        made = recompute(session, iteration)
    except (MissingInputError, ConflictError, DamagedFileError) as error:
        reason = error.message
    differing = [file for file, is_equal in made.is_equal.items() if not is_equal]
    return {
        "iteration": iteration,
        "policy": iteration + 1,
        "result": NOT_REPLAYED if reason else DIFFERS if differing else EQUAL,
        "files": len(made.is_equal),
        "differing": differing,
        "reason": reason,
        "environment": made.environment,
        "seconds": round(time.monotonic() - started, 3),
    }


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
