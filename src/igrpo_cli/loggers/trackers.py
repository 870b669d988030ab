"""Which trackers there are, what they are told, and that one process at a time tells them."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from igrpo_cli.errors import IgrpoError, UsageError
from igrpo_cli.loggers.base import Tracker, TrackerSettings
from igrpo_cli.loggers.entries import read_entries
from igrpo_cli.store.atomic import make_directory
from igrpo_cli.store.layout import RunDirectory

NAMES = ("trackio", "tensorboard", "wandb")
SECONDS_FOR_ANOTHER = 10.0
"""A single command is done sending by then; a longer one will see our files itself."""


def require_trackers(names: Sequence[str]) -> None:
    """Raises UsageError for one that is not installed; imports nothing."""
    for name in names:
        spec = find_spec(name)
        # A folder of that name in the current directory, such as wandb makes, counts as a package without origin.
        if spec is None or spec.origin is None:
            raise UsageError(
                f"log.report_to has {name}, which is not installed", hint=f"pip install 'igrpo-cli[{name}]'"
            )


@contextmanager
def open_tracker(name: str, settings: TrackerSettings) -> Iterator[Tracker]:
    """The record of a run, continued where there is one. Whatever a tracker raises becomes an IgrpoError."""
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
        raise IgrpoError(f"{name}: {what}", hint="run it again after mending it: what was sent is kept") from error


def send_new(run: RunDirectory, tracker: Tracker) -> list[str]:
    """Send what the record does not have; returns the keys. Raises DamagedFileError."""
    sent = []
    for entry in read_entries(run, tracker.is_sent):
        tracker.send(entry)
        sent.append(entry.key)
    tracker.flush()
    return sent


@contextmanager
def only_sender(lock: Path) -> Iterator[bool]:
    """Whether this process alone may send, for as long as the block lasts; a dead process holds no lock."""
    make_directory(lock.parent)
    with lock.open("w") as file:
        patience = time.monotonic() + SECONDS_FOR_ANOTHER
        while not (alone := _try_lock(file.fileno())) and time.monotonic() < patience:
            time.sleep(0.1)
        yield alone


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _open(name: str, settings: TrackerSettings) -> Tracker:
    if name == "tensorboard":
        from igrpo_cli.loggers.tensorboard import TensorBoardTracker

        return TensorBoardTracker(settings)
    if name == "trackio":
        from igrpo_cli.loggers.trackio import TrackioTracker

        return TrackioTracker(settings)
    from igrpo_cli.loggers.wandb import WandbTracker

    return WandbTracker(settings)
