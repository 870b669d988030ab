"""The rank of this process, if torchrun started it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from igrpo_cli.errors import UsageError

_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PREFIXES = ("TORCHELASTIC_", "GROUP_", "ROLE_")
"""Names, and beginnings of the names, of the environment variables that torchrun sets."""
_PR_SET_PDEATHSIG = 1


def rank_and_size() -> tuple[int, int]:
    """Return rank and number of ranks; (0, 1) for a process that torchrun did not start.

    RANK alone is not enough, because some schedulers set it for every process.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def refuse_ranks(command: str) -> None:
    """Raise UsageError in one of several ranks, for a command that they cannot share."""
    if rank_and_size()[1] > 1:
        raise UsageError(
            f"igrpo {command} does not work under torchrun: each rank would do all of it",
            hint="torchrun … -m igrpo_cli run RUN; or several tasks of igrpo study, each with its --cell",
        )


def end_with_launcher() -> None:
    """Let Linux kill this process when the one that started it ends, if it is one of several ranks.

    A launcher that is killed leaves its ranks running. They would wait for each other, or write into the run of the
    next launch.
    """
    if sys.platform == "linux" and rank_and_size()[1] > 1:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


@contextmanager
def without_torchrun() -> Iterator[None]:
    """Hide the variables of torchrun within this context, for a library that would join the other ranks."""
    found = {name: value for name, value in os.environ.items() if name in _NAMES or name.startswith(_PREFIXES)}
    for name in found:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(found)
