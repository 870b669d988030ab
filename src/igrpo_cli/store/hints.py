"""The commands that hints name: quoted for a shell, with the `--set` of the command that is running."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from igrpo_cli.errors import MissingInputError

_overrides: list[str] = []


@contextmanager
def overrides_in_hints(overrides: Iterable[str]) -> Iterator[None]:
    """Add the user's `--set` to the commands of hints within this context, so that they do what the user wanted."""
    _overrides[:] = overrides
    try:
        yield
    finally:
        _overrides.clear()


def with_overrides(command: str, stage: str) -> str:
    """Return the command of a stage with the `--set` of the command that is running; [eval] is for evaluations."""
    sets = [text for text in _overrides if stage == "eval" or not text.startswith("eval.")]
    return " ".join([command, *(f"--set {shlex.quote(text)}" for text in sets)])


def shell_path(path: Path) -> str:
    """Return `path` quoted for a shell, so that it is not read as flags."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def command_line(root: Path, name: str, flags: str = "") -> str:
    """Return `igrpo NAME RUN FLAGS`, without RUN where the run at `root` is the current directory."""
    return " ".join(["igrpo", name, *([] if root == Path() else [shell_path(root)]), *([flags] if flags else [])])


def init_command(root: Path) -> str:
    """Return the `igrpo init` that recreates what is missing of the run at `root`, with its settings."""
    return f"igrpo init {shell_path(root)} --config {shell_path(root / 'run.toml')}"


def no_run_error(path: Path) -> MissingInputError:
    """Return the error for a path that is not a run directory."""
    if cell := next(path.glob("*/seed-*/run.toml"), None):
        return MissingInputError(
            f"{path} is the directory of a study, and not a run",
            hint=f"name one of its runs, for example {shell_path(cell.parent)}",
        )
    return MissingInputError(
        f"{path} is not a run directory: it has no run.toml",
        hint=f"igrpo init {'RUN' if path == Path() else shell_path(path)} --preset quickstart",
    )
