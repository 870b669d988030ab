"""`run.toml` carries its own hash: it is written once, by `init`, and all that a run makes follows from it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from igrpo_cli.errors import ConflictError

_SEAL = b"# SHA-256 of the lines below: "


def sealed(settings: bytes) -> bytes:
    """The settings as `init` writes them: below a comment that holds their hash."""
    return _SEAL + hashlib.sha256(settings).hexdigest().encode() + b"\n" + settings


def settings_fault(path: Path) -> tuple[str, str] | None:
    """What is wrong with a `run.toml`, and what to do about it; None where it is as `init` wrote it."""
    if not path.is_file():
        return "does not exist", "igrpo init"
    try:
        content = path.read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror}", "make it readable"
    if content == sealed(content.partition(b"\n")[2]):
        return None
    what = "is not what `igrpo init` wrote: its first line does not hold the SHA-256 of the others"
    return what, f"restore it; for other settings use --set, or igrpo init NEW_RUN --config {path}"


def require_sealed(path: Path) -> None:
    """Raises ConflictError for a `run.toml` that is not as `init` wrote it."""
    fault = settings_fault(path)
    if fault is not None:
        raise ConflictError(f"{path} {fault[0]}", hint=fault[1])
