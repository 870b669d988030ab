"""`igrpo verify`: check every file of a run against its manifest, and the manifests against each other."""

from __future__ import annotations

from pathlib import Path

from igrpo_cli.errors import DamagedFileError
from igrpo_cli.store.layout import RunDirectory, no_run_error
from igrpo_cli.ui.console import Console


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
