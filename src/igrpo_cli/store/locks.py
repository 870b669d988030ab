"""A lock on a file that one process at a time holds. The kernel frees it when the process ends, however it ends."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from igrpo_cli.store.atomic import make_directory

POLL_SECONDS = 0.1


@contextmanager
def locked(path: Path, wait_seconds: float = 0.0) -> Iterator[bool]:
    """Yield True if this process holds the lock inside this context, after waiting at most `wait_seconds`.

    On a file system without locks every process gets it, so a lock may order work but must not protect files.
    """
    make_directory(path.parent)
    with path.open("a") as file:
        deadline = time.monotonic() + wait_seconds
        while not (is_ours := _try_lock(file.fileno())) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        yield is_ours


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
