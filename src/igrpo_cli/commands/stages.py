"""`igrpo stages`: copy the scripts that run the stages of a run on a cluster, to use and to adapt them."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from igrpo_cli.errors import ConflictError, UsageError
from igrpo_cli.problems.sources import packaged_folder
from igrpo_cli.store.atomic import publish_file
from igrpo_cli.store.hints import shell_path
from igrpo_cli.ui.console import Console


def run(target: Path, console: Console) -> None:
    """Copy the scripts into `target`, which is created if necessary. A file that is there and differs is kept.

    Raises ConflictError for such a file before anything is copied, and UsageError where `target` is a file.
    """
    scripts = sorted(path for path in packaged_folder("stages").iterdir() if path.is_file())
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is not a directory", hint="igrpo stages --copy-to stages")
    other = [path for path in scripts if _differs(path, target / path.name)]
    if other:
        names = ", ".join(path.name for path in other)
        raise ConflictError(
            f"{target} has other files of these names: {names}", hint=f"igrpo stages --copy-to {shell_path(target)}-2"
        )
    copied = [path for path in scripts if not (target / path.name).exists()]
    for path in copied:
        publish_file(target / path.name, partial(_copy, path))
    payload = {"directory": str(target), "copied": [path.name for path in copied]}
    done = f"{len(copied)} files copied to" if copied else "all files are already in"
    console.data(payload, f"{done} {target}. Next: {shell_path(target)}/submit.sh RUN --dry-run")


def _copy(script: Path, temporary: Path) -> None:
    shutil.copy(script, temporary)  # with its permissions, as it can be executed


def _differs(ours: Path, theirs: Path) -> bool:
    if not theirs.exists():
        return False
    return not theirs.is_file() or theirs.read_bytes() != ours.read_bytes()
