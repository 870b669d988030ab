"""Test what the file system of a directory supports."""

from __future__ import annotations

import fcntl
import os
import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from igrpo_cli.store.atomic import publish_bytes, staging_directory

PUBLISHED = 5
"""Number of files that are published to measure the time."""


@dataclass(frozen=True, slots=True)
class FileSystem:
    """Holds the properties of the file system of one directory."""

    free_bytes: int
    has_hard_links: bool
    """True where `os.link` works. Otherwise the claim that a dead writer leaves on a file name is removed by hand."""
    has_locks: bool
    seconds_to_publish: float
    """Median time to publish a small file: write, flush, link, and flush the directory."""


def probe_file_system(directory: Path) -> FileSystem:
    """Test the file system in a temporary hidden directory. Raises IgrpoError where nothing can be written."""
    seconds = []
    with staging_directory(directory / "doctor") as staged:
        for number in range(PUBLISHED):
            started = time.perf_counter()
            publish_bytes(staged / f"{number}", b"published")
            seconds.append(time.perf_counter() - started)
        return FileSystem(
            free_bytes=shutil.disk_usage(staged).free,
            has_hard_links=_can_link(staged / "0", staged / "link"),
            has_locks=_can_lock(staged / "0"),
            seconds_to_publish=statistics.median(seconds),
        )


def _can_link(file: Path, link: Path) -> bool:
    try:
        os.link(file, link)
    except OSError:
        return False
    return True


def _can_lock(file: Path) -> bool:
    with file.open("rb") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True
