"""What lies in a run beside its shards and policies, as `igrpo verify` looks at it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from igrpo_cli.errors import IgrpoError
from igrpo_cli.records import JUDGEMENT_HASH
from igrpo_cli.store.checksummed_json import read_sealed_line
from igrpo_cli.store.layout import LOG, PARTS, RunDirectory
from igrpo_cli.store.sealed_files import read_sent
from igrpo_cli.store.temporaries import is_temporary
from igrpo_cli.store.verify_report import FileProblem


def damaged_records(run: RunDirectory) -> Iterator[FileProblem]:
    """What trackers were sent and what a judge said, where it is not as it was written."""
    for path in sorted((run.root / LOG).glob("*.json")):
        try:
            read_sent(path)
        except IgrpoError as error:
            yield FileProblem(path, error.message, error.hint)
    for path in sorted(run.judgements.glob("*.jsonl")):
        try:
            # What follows the last newline is a line that is being written, or whose writer was killed.
            lines = path.read_bytes().split(b"\n")[:-1]
        except OSError as error:
            yield FileProblem(path, f"cannot be read: {error.strerror}")
            continue
        damaged = [number for number, line in enumerate(lines, start=1) if not _is_judgement(line)]
        if damaged:
            others = f" and {len(damaged) - 1} others" if len(damaged) > 1 else ""
            hint = "remove these lines: what they were about is judged again when it is needed"
            yield FileProblem(path, f"line {damaged[0]}{others}: no judgement as it was written", hint)


def broken_links(run: RunDirectory) -> Iterator[FileProblem]:
    """Links whose target cannot be reached: whoever looks for what they are called finds nothing there."""
    for path in _walk(run.root):
        if path.is_symlink() and not os.path.exists(path):
            hint = "remove the link, or make available what it leads to"
            yield FileProblem(path, f"is a link that leads nowhere ({os.readlink(path)})", hint)


def leftovers(run: RunDirectory) -> Iterator[FileProblem]:
    """What killed commands have left behind."""
    for path in _walk(run.root):
        if is_temporary(path.name):
            yield FileProblem(path, "is a temporary of a command that runs, or was killed")
        elif path.name == PARTS and any(path.glob("*/*")):
            yield FileProblem(path, "holds finished blocks of unfinished shards")


def _walk(root: Path) -> Iterator[Path]:
    """Everything below `root`, but not what lies within leftovers."""
    for directory, names, files in os.walk(root):
        yield from (Path(directory, name) for name in sorted([*names, *files]))
        names[:] = [name for name in names if name != PARTS and not is_temporary(name)]


def _is_judgement(line: bytes) -> bool:
    try:
        read_sealed_line(line, JUDGEMENT_HASH)
    except ValueError:
        return False
    return True
