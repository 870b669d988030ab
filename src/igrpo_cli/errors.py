"""Define the exceptions of the package, and the exit code of each.

A command returns normally (exit 0) or raises one of these. Slurm's `afterok` depends on the exit code, so incomplete
work never exits with 0.
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
    """Base class of all errors; raised directly, it means that something failed (exit 1).

    `message` says what failed and where. `hint` says what to type next.
    """

    exit_code = EXIT_FAILED

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(IgrpoError):
    """The command line or the configuration is invalid (exit 2)."""

    exit_code = EXIT_USAGE


class MissingInputError(IgrpoError):
    """An input does not exist or is incomplete (exit 3)."""

    exit_code = EXIT_MISSING


class ConflictError(IgrpoError):
    """A file on disk was made with other inputs or settings than the current ones (exit 4)."""

    exit_code = EXIT_CONFLICT


class DamagedFileError(IgrpoError):
    """A file does not match its manifest: it is truncated, corrupted, replaced, or has an unknown schema (exit 1)."""


class Interrupted(IgrpoError):
    """The command was stopped cleanly, by a signal or by a lost resource; run it again to continue (exit 75)."""

    exit_code = EXIT_INTERRUPTED
