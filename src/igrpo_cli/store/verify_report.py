"""What `igrpo verify` has to say of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class FileProblem:
    """Something wrong with a file, or worth knowing about it."""

    path: Path
    what: str
    hint: str | None = None


@dataclass
class VerifyReport:
    """What `verify_run` found."""

    problems: list[FileProblem] = field(default_factory=list)
    notes: list[FileProblem] = field(default_factory=list)
    """Harmless: leftovers of interrupted commands, policies that were removed."""
    num_checked: int = 0
    """Data files and policies that were read and compared with their manifests."""
