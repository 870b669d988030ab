"""SHA-256 of files, several at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HASHING_THREADS = 8


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes: 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_files(paths: Iterable[Path]) -> dict[Path, str]:
    """Return the SHA-256 of several files, in parallel: a policy is gigabytes, and a core hashes about one a second."""
    ordered = list(paths)
    with ThreadPoolExecutor(HASHING_THREADS) as threads:
        return dict(zip(ordered, threads.map(sha256_file, ordered), strict=True))
