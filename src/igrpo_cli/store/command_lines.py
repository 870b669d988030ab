"""What to type, as hints say it: commands that work where the current one was typed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from igrpo_cli.errors import MissingInputError
from igrpo_cli.store.eval_names import eval_flags

if TYPE_CHECKING:
    from igrpo_cli.store.layout import ShardPath


def typed(path: Path) -> str:
    """`path` as a shell takes it for a path, not for flags."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def command_line(root: Path, name: str, flags: str = "") -> str:
    """`igrpo NAME RUN FLAGS`; the run at `root` is left out where it is the current directory."""
    return " ".join(["igrpo", name, *([] if root == Path() else [typed(root)]), *([flags] if flags else [])])


def init_again(root: Path) -> str:
    """The `igrpo init` that makes what is missing of the run at `root`, with the settings that it has."""
    return f"igrpo init {typed(root)} --config {typed(root / 'run.toml')}"


def no_run(path: Path) -> MissingInputError:
    """The error for a directory, or for what is none, that is not a run."""
    return MissingInputError(
        f"{path} is not a run directory: it has no run.toml",
        hint=f"igrpo init {'RUN' if path == Path() else typed(path)} --preset quickstart",
    )


def making(path: ShardPath) -> str:
    """What to type to make a shard."""
    if path.stage == "problems":
        is_of_run = path.data.parent == path.root
        return (
            init_again(path.root) if is_of_run else command_line(path.root, "eval", f"--bench {path.data.parent.name}")
        )
    if path.stage == "eval":
        return _evaluating(path)
    if path.stage == "scores":
        stage, name = path.data.parents[2].name, path.data.parent.name
        flags = f"--stage {stage} --iteration {path.iteration} --scores {name} --shard {path.shard}"
        return f"igrpo grade {typed(path.root)} {flags}"
    flags = f"--iteration {path.iteration}" + ("" if path.stage == "update" else f" --shard {path.shard}")
    return command_line(path.root, path.stage, flags)


def overwrite_command(path: ShardPath) -> str:
    """What to type to make a shard in place of the one that is there; `igrpo init` makes damaged problems so anyway."""
    is_of_run = path.stage == "problems" and path.data.parent == path.root
    return making(path) if is_of_run else f"{making(path)} --overwrite"


def _evaluating(path: ShardPath) -> str:
    flags = f"{eval_flags(path.data.parent)} --shard {path.shard}"
    if not flags.startswith("--model"):
        return command_line(path.root, "eval", flags)
    return f"igrpo eval {flags}" + ("" if path.root == Path() else f" --output {typed(path.root)}")
