"""One exception root: each error knows its exit code and what the user should type next.

A command either returns (exit 0) or raises one of these. `afterok` in Slurm trusts the exit code,
so unfinished work never exits 0.
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_MISSING = 3
EXIT_CONFLICT = 4
EXIT_INTERRUPTED = 75
EXIT_CTRL_C = 130


class IgrpoError(Exception):
    """Something failed: `message` says what and where, `hint` what to type next.

    Raised directly it means exit code 1; the subclasses below carry the other codes.
    """

    exit_code = EXIT_FAILED

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(IgrpoError):
    """The command line or the configuration makes no sense (exit 2)."""

    exit_code = EXIT_USAGE


class MissingInputError(IgrpoError):
    """An input does not exist or is not complete yet (exit 3)."""

    exit_code = EXIT_MISSING


class ConflictError(IgrpoError):
    """What is on disk was made from something else than what is asked for now (exit 4)."""

    exit_code = EXIT_CONFLICT


class DamagedFileError(IgrpoError):
    """A file is not what its manifest says: truncated, flipped bits, foreign or of an unknown schema (exit 1)."""


class Interrupted(IgrpoError):
    """Stopped cleanly by a signal or by resources that went away; running it again goes on (exit 75)."""

    exit_code = EXIT_INTERRUPTED
