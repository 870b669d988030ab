"""A directory with a record of its files: what an optimiser state is published as."""

from __future__ import annotations

from pathlib import Path

from igrpo_cli.errors import DamagedFileError
from igrpo_cli.store.atomic import publish_json, sha256_files
from igrpo_cli.store.checksummed_json import sealed
from igrpo_cli.store.strict_json import HASHES, check_keys, check_seal, check_version, read_object

RECORD = "manifest.json"
RECORD_VERSION = 1
OWN_HASH = "record_sha256"


def record_directory(directory: Path) -> None:
    """Write the hashes of all files of a staged directory into it."""
    hashes = sha256_files(path for path in sorted(directory.iterdir()) if path.name != RECORD)
    files = {path.name: sha256 for path, sha256 in hashes.items()}
    publish_json(
        directory / RECORD, {"directory_version": RECORD_VERSION, **sealed({"files": files}, OWN_HASH)}, replace=True
    )


def verify_directory(directory: Path) -> None:
    """Hash the files again. Raises MissingInputError without a record, DamagedFileError naming a changed file."""
    record = directory / RECORD
    value = read_object(record)
    check_version(record, value, "directory_version", RECORD_VERSION)
    value.pop("directory_version")
    sha256 = value.pop(OWN_HASH, None)
    check_keys(record, value, {"files": HASHES})
    check_seal(record, value, sha256, OWN_HASH)
    for name in sorted(value["files"]):
        if Path(name).name != name:
            raise DamagedFileError(f"{record}: files names {name!r}, which is no file of the directory")
        if not (directory / name).is_file():
            raise DamagedFileError(f"{directory / name} is gone")
    for path, sha256 in sha256_files(directory / name for name in sorted(value["files"])).items():
        if sha256 != value["files"][path.name]:
            raise DamagedFileError(f"{path} is damaged: its SHA-256 is not the one in {RECORD}")
