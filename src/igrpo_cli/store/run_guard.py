"""Runs that are being worked on: one that is taken away meanwhile is not made anew, with half of its content."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from igrpo_cli.errors import MissingInputError

_STANDING: list[Path] = []


@contextmanager
def standing(root: Path) -> Iterator[None]:
    """Within it the directory `root`, which is there, is not made by this process."""
    place = root.absolute()
    _STANDING.append(place)
    try:
        yield
    finally:
        _STANDING.remove(place)


def require_standing(missing: Iterable[Path]) -> None:
    """Raises MissingInputError where one of the directories that are about to be made is a run that was there."""
    for path in missing:
        if path.absolute() in _STANDING:
            raise MissingInputError(
                f"{path} is gone: it was there when this command began",
                hint="bring the directory back, or make a new run: igrpo init RUN",
            )
