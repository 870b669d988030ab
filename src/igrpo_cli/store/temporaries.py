"""Name temporary files so that they are unguessable and identify their writer.

The name is `.{final name}.{kernel}-{pid}-{start}.{random}.tmp`. `kernel` stands for host, boot and process namespace.
`start` is the time at which the process started, so that a reused process id is not taken for the writer.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
from contextlib import suppress
from pathlib import Path

_NAME = re.compile(r"\..+\.([0-9a-f]{12})-([0-9]+)-([0-9]+)\.[0-9a-f]{16}\.tmp")


def temporary_name(final_name: str) -> str:
    """Return a new temporary name for `final_name`, for a file in the same directory."""
    pid = os.getpid()
    return f".{final_name}.{_kernel()}-{pid}-{_start_time(pid) or 0}.{secrets.token_hex(8)}.tmp"


def is_temporary(name: str) -> bool:
    """Return True for names that `temporary_name` makes."""
    return _NAME.fullmatch(name) is not None


def is_stale(name: str) -> bool:
    """Return True for a temporary whose writer is known to be dead; False where this machine cannot know."""
    match = _NAME.fullmatch(name)
    if match is None or match[1] != _kernel():
        return False
    pid, started = int(match[2]), int(match[3])
    now = _start_time(pid)
    return not _exists(pid) if now is None else now != started


def _kernel() -> str:
    """Return a value that processes share exactly if they see the same processes under the same ids."""
    facts = [socket.gethostname()]
    with suppress(OSError):  # there is no /proc outside Linux
        facts += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]


def _start_time(pid: int) -> int | None:
    """Return the clock ticks from boot to the start of the process; None without a process or /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (OSError, UnicodeDecodeError):
        return None
    # The second field is the program's name in parentheses and may hold anything, parentheses included.
    return int(stat.rpartition(")")[2].split()[19])


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
