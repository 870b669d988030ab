"""What every tracker is to the rest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from igrpo_cli.loggers.entries import Entry


@dataclass(frozen=True)
class TrackerSettings:
    """What a tracker needs to know of a run."""

    project: str
    run_name: str
    directory: Path
    """For what it writes, and for what we write of it."""
    config: dict[str, Any]
    """The settings of the run, shown beside its curves."""


class Tracker(Protocol):
    """One open record of one run."""

    where: str
    """Where it is looked at."""

    def is_sent(self, key: str) -> bool:
        """Whether the record is known to have that entry."""

    def send(self, entry: Entry) -> None:
        """Hand an entry over; only `flush` or `close` may make it safe."""

    def flush(self) -> None:
        """The entries of now are all handed over."""

    def close(self) -> None:
        """Have everything safe, and remember what was sent."""
