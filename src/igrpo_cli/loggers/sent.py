"""What a tracker that cannot be asked was sent, kept in a small file."""

from __future__ import annotations

import secrets
from pathlib import Path

from igrpo_cli.shards.publish import publish_json
from igrpo_cli.shards.strict_json import LIST, TEXT, check_keys, read_object

_FIELDS = {"run_id": TEXT, "sent": LIST}


class SentEntries:
    """The keys that one tracker has of one run, and the id under which it has them."""

    def __init__(self, path: Path) -> None:
        """Begins the file where there is none. Raises DamagedFileError, IgrpoError where it cannot be written."""
        self._path = path
        if not path.exists():
            publish_json(path, {"run_id": secrets.token_hex(4), "sent": []})
        value = read_object(path)
        check_keys(path, value, _FIELDS)
        self.run_id: str = value["run_id"]
        self._sent: list[str] = value["sent"]
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
            publish_json(self._path, {"run_id": self.run_id, "sent": self._sent}, replace=True)
