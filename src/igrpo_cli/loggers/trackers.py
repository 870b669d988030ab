"""The interface of a tracker, and opening one by its name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from igrpo_cli.errors import IgrpoError
from igrpo_cli.loggers.entries import Entry, read_entries
from igrpo_cli.store.layout import RunDirectory

NAMES = ("trackio", "tensorboard", "wandb")
MAX_WAIT_SECONDS = 10.0
"""Time to wait for another process that sends. A short command has sent its entries by then, and a longer one will
find the new files itself."""


@dataclass(frozen=True)
class TrackerSettings:
    """What a tracker needs to know of a run."""

    project: str
    run_name: str
    directory: Path
    """The directory for files of the tracker, and for our record of what was sent."""
    config: dict[str, Any]
    """The settings of the run, shown next to its curves."""


class Tracker(Protocol):
    """A run in a tracker, open for new entries."""

    where: str
    """How to look at the run: a command or a URL."""

    def is_sent(self, key: str) -> bool:
        """Return True if the tracker has this entry."""

    def send(self, entry: Entry) -> bool:
        """Give an entry to the tracker, which may store it at `flush` or `close`. Return False if it takes none."""

    def flush(self) -> None:
        """Send the entries so far. More may follow."""

    def close(self) -> None:
        """Store all entries, and record what was sent."""


@contextmanager
def open_tracker(name: str, settings: TrackerSettings) -> Iterator[Tracker]:
    """Open the run in a tracker, or create it there. Every exception of a tracker becomes an IgrpoError."""
    try:
        tracker = _open(name, settings)
        try:
            yield tracker
        finally:
            tracker.close()
    except IgrpoError:
        raise
    except Exception as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise IgrpoError(f"{name}: {what}", hint="fix it and run the command again: sent entries are kept") from error


def send_new(run: RunDirectory, tracker: Tracker) -> list[str]:
    """Send the entries that the tracker does not have; return their keys. Raises DamagedFileError."""
    sent = []
    for entry in read_entries(run, tracker.is_sent):
        if not tracker.send(entry):
            break
        sent.append(entry.key)
    tracker.flush()
    return sent


def _open(name: str, settings: TrackerSettings) -> Tracker:
    if name == "tensorboard":
        from igrpo_cli.loggers.tensorboard import TensorBoardTracker

        return TensorBoardTracker(settings)
    if name == "trackio":
        from igrpo_cli.loggers.trackio import TrackioTracker

        return TrackioTracker(settings)
    from igrpo_cli.loggers.wandb import WandbTracker

    return WandbTracker(settings)
