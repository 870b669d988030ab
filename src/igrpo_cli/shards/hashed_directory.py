"""A directory with a record of its files: what an optimiser state is published as."""

from __future__ import annotations

from pathlib import Path

from igrpo_cli.errors import DamagedFileError
from igrpo_cli.shards.publish import publish_json, sha256_file
from igrpo_cli.shards.strict_json import HASHES, check_keys, check_version, read_object

RECORD = "manifest.json"
RECORD_VERSION = 1


def record_directory(directory: Path) -> None:
    """Write the hashes of all files of a staged directory into it."""
    files = {path.name: sha256_file(path) for path in sorted(directory.iterdir()) if path.name != RECORD}
    publish_json(directory / RECORD, {"directory_version": RECORD_VERSION, "files": files}, replace=True)


def verify_directory(directory: Path) -> None:
    """Hash the files again. Raises MissingInputError without a record, DamagedFileError naming a changed file."""
    record = directory / RECORD
    value = read_object(record)
    check_version(record, value, "directory_version", RECORD_VERSION)
    value.pop("directory_version")
    check_keys(record, value, {"files": HASHES})
    for name, recorded in sorted(value["files"].items()):
        if Path(name).name != name:
            raise DamagedFileError(f"{record}: files names {name!r}, which is no file of the directory")
        if not (directory / name).is_file():
            raise DamagedFileError(f"{directory / name} is gone")
        if sha256_file(directory / name) != recorded:
            raise DamagedFileError(f"{directory / name} is damaged: its SHA-256 is not the one in {RECORD}")
