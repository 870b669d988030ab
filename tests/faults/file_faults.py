"""Faults at the n-th file operation below a directory, in a process that asks for them; production knows nothing of it.

A fault is `kind@n`: `kill@7` kills the process before its seventh operation, `eio@7` fails that one, `enospc@7` is a
disk that is full from then on, `stop@7` stops the process until SIGCONT, `nolinks@1` is a file system without hard
links.

Python tells an audit hook of every file that it opens for writing, links, renames, removes, and of every directory that
it makes or removes, before it does so; only `fsync` has to be wrapped. What pyarrow and safetensors write by themselves
goes into files that were opened, or whose directory was made, by an operation that is counted.
"""

from __future__ import annotations

import errno
import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_MAKES = ("open", "os.mkdir", "os.link", "os.rename", "fsync")
_PATH_AND_DIRECTORY = {
    "os.mkdir": (0, 2),
    "os.link": (1, 3),
    "os.rename": (1, 3),
    "os.remove": (0, 1),
    "os.rmdir": (0, 1),
}
"""Which arguments of an event are the path that changes, and the descriptor of the directory it is relative to."""


def install(fault: str, below: Path, on_reached: Callable[[str], None] | None = None) -> None:
    """Let `fault` happen to this process, for good; operations are counted from now, those below `below` alone.

    `on_reached` is told what the n-th operation is when it is about to happen.
    """
    kind, _, number = fault.partition("@")
    first, root, numbers = int(number), os.path.join(os.path.abspath(below), ""), itertools.count(1)

    def meet(event: str, path: str) -> None:
        if not os.path.abspath(path).startswith(root):
            return
        count = next(numbers)
        if count == first and on_reached is not None:
            on_reached(event)
        if kind == "kill" and count == first:
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "stop" and count == first:
            os.kill(os.getpid(), signal.SIGSTOP)
        elif kind == "eio" and count == first:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        elif kind == "enospc" and count >= first and event in _MAKES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        elif kind == "nolinks" and event == "os.link":
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), path)

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if flags & _WRITES and not isinstance(path, int):
                meet(event, os.fsdecode(path))
        elif event in _PATH_AND_DIRECTORY:
            path, directory = (arguments[place] for place in _PATH_AND_DIRECTORY[event])
            within = os.readlink(f"/proc/self/fd/{directory}") if directory not in (None, -1) else ""
            meet(event, os.path.join(within, os.fsdecode(path)))

    fsync = os.fsync

    def fsync_that_may_fail(descriptor: int) -> None:
        meet("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    os.fsync = fsync_that_may_fail
    sys.addaudithook(hear)
