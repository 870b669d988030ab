"""What a tracker that cannot be asked was sent, kept in a small file."""

from __future__ import annotations

import secrets
from pathlib import Path

from igrpo_cli.store.checksummed_json import read_sent, write_sent


class SentEntries:
    """The keys that one tracker has of one run, and the id under which it has them."""

    def __init__(self, path: Path) -> None:
        """Begins the file where there is none. Raises DamagedFileError, IgrpoError where it cannot be written."""
        self._path = path
        if not path.exists():
            write_sent(path, secrets.token_hex(4), [])
        self.run_id, self._sent = read_sent(path)
        self._unsaved: list[str] = []

    def __contains__(self, key: str) -> bool:
        return key in self._sent or key in self._unsaved

    def add(self, key: str) -> None:
        """Handed over, but perhaps not safe yet."""
        self._unsaved.append(key)

    def save(self) -> None:
        """What was handed over is safe."""
        if self._unsaved:
            self._sent += self._unsaved
            self._unsaved = []
            write_sent(self._path, self.run_id, self._sent, replace=True)
