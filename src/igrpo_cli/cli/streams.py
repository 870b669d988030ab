"""The three streams of a process, made fit to be written to before anything is."""

from __future__ import annotations

import io
import os
import sys


def prepare_streams() -> None:
    """Open what the process was started without, and let stdout and stderr take any character.

    A closed descriptor would be given to the next file that is opened, and what is printed would end up in it:
    /dev/null stands in its place. A character that the encoding of a stream lacks is written as its escape.
    Streams that somebody put in place of the process's own stay as they are.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if not _is_open(descriptor):
            _open_nothing(descriptor, name)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _open_nothing(descriptor: int, name: str) -> None:
    """Lower descriptors are open by now, so this one is the lowest free one, which the system gives out."""
    opened = os.open(os.devnull, os.O_RDWR)
    os.set_inheritable(opened, True)  # Or the processes that grade would be without it, too.
    if getattr(sys, name) is None:
        mode = "r" if descriptor == 0 else "w"
        setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", closefd=False))
