"""JSON records that end in the SHA-256 of their own text.

Nothing else on disk repeats what such a record says, so a reader could not tell a flipped bit from another value.
The checksum covers every byte before it, and what follows it is fixed: a file is accepted exactly as it was written.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from igrpo_cli.errors import DamagedFileError, MissingInputError
from igrpo_cli.store.atomic import publish_bytes
from igrpo_cli.store.hashing import sha256_files
from igrpo_cli.store.layout import eval_flags

CHECKSUM = "checksum"
MAX_BYTES = 64 * 2**20
"""Limit on the size of a record. A larger file is not read into memory."""
RECORD = "manifest.json"
"""File name of the record of a directory."""
_END = "\n}\n"

Model = TypeVar("Model")


class UnknownSchemaError(DamagedFileError):
    """Signals a file of another version of igrpo, or of another program. It is neither read nor replaced."""


def canonical_json(value: Any) -> str:
    """Return the one text of a JSON value: sorted keys, no spaces, ASCII. Raises ValueError for NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()


def checksummed_bytes(facts: Mapping[str, Any]) -> bytes:
    """Return `facts` as indented JSON with a last key `checksum`. Raises ValueError for NaN and infinities."""
    text = json.dumps(facts, indent=2, allow_nan=False)
    return _with_checksum(f"{text.removesuffix(_END[:-1])},\n  ".encode("ascii"), _END)


def publish_checksummed(path: Path, facts: Mapping[str, Any], *, replace: bool = False) -> bool:
    """Publish `checksummed_bytes(facts)`. Raises and returns as `publish_file`."""
    return publish_bytes(path, checksummed_bytes(facts), replace=replace)


def read_checksummed(path: Path, version_key: str = "", version: int = 0) -> dict[str, Any]:
    """Return the facts in `path` without their checksum and, if `version_key` is given, without the version.

    Raises MissingInputError where there is no file, UnknownSchemaError where the version is not `version`, and
    DamagedFileError where the file is not as it was written.
    """
    content = _read(path)
    try:
        value = from_json(content, allow_inf_nan=False, cache_strings="none")
    except ValueError as error:
        raise DamagedFileError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise DamagedFileError(f"{path} holds no JSON object")
    if version_key:
        _check_version(path, value.pop(version_key, None), version_key, version)
    if value.pop(CHECKSUM, None) is None:
        raise DamagedFileError(f"{path} lacks the key {CHECKSUM}")
    if not _is_intact(content, _END):
        raise DamagedFileError(f"{path} is damaged: its {CHECKSUM} is not the SHA-256 of the text before it")
    return value


def checksummed_line(facts: Mapping[str, Any]) -> bytes:
    """Return `facts` with a last key `checksum` as one line of JSON, without the newline."""
    return _with_checksum(f"{json.dumps(facts, allow_nan=False)[:-1]}, ".encode("ascii"), "}")


def read_checksummed_line(line: bytes) -> dict[str, Any]:
    """Return the facts that `checksummed_line` wrote. Raises ValueError for any other line."""
    if not _is_intact(line, "}"):
        raise ValueError("the line is not as it was written")
    value: dict[str, Any] = from_json(line, cache_strings="none")
    del value[CHECKSUM]
    return value


def _with_checksum(text: bytes, end: str) -> bytes:
    return text + f'"{CHECKSUM}": "{hashlib.sha256(text).hexdigest()}"{end}'.encode("ascii")


def _is_intact(content: bytes, end: str) -> bool:
    return content == _with_checksum(content[: len(content) - len(_with_checksum(b"", end))], end)


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DamagedFileError(f"{path} is larger than any file of its kind")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingInputError(f"{path} does not exist") from error
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read: {error.strerror}") from error


def _check_version(path: Path, found: Any, key: str, ours: int) -> None:
    if type(found) is not int:
        raise DamagedFileError(f"{path} lacks the key {key}")
    if found != ours:
        age = "a newer" if found > ours else "an older"
        raise UnknownSchemaError(
            f"{path} was written by {age} igrpo ({key} {found}, this igrpo reads {ours})",
            hint="use the igrpo that made the run, or make a new run",
        )


# Types of the fields of records, for pydantic.

# pydantic's cache of strings takes 256 KiB at once, and where they are missing it ends the process without an error.
STRICT = ConfigDict(strict=True, extra="forbid", cache_strings="none")


def _must_be(says: str, holds: Callable[[Any], object]) -> AfterValidator:
    def check(value: Any) -> Any:
        if not holds(value):
            raise ValueError(f"must be {says}")
        return value

    return AfterValidator(check)


def _is_relative(value: str) -> bool:
    return value.isprintable() and not value.startswith("/") and ".." not in value.split("/") and value != ""


def _is_utc(value: str) -> bool:
    try:
        return datetime.fromisoformat(value).utcoffset() == timedelta(0)
    except ValueError:
        return False


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


Count = Annotated[int, Field(ge=0, lt=2**63)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Number = Annotated[Any, _must_be("a finite number", _is_number)]
Text = Annotated[str, _must_be("a line of text", lambda value: value != "" and value.isprintable())]
# A manifest of an update holds hundreds of hashes, so they are checked by pydantic itself and not by a function.
_PATTERNS = {"^[0-9a-f]{64}$": "64 hexadecimal digits", "^sha256:[0-9a-f]{64}$": "sha256: and 64 hexadecimal digits"}
_DIGITS, _SHA256_AND_DIGITS = _PATTERNS
Sha256 = Annotated[str, Field(pattern=_DIGITS)]
PolicyId = Annotated[str, Field(pattern=_SHA256_AND_DIGITS)]
RelativePath = Annotated[str, _must_be("a path below the run directory", _is_relative)]
FileName = Annotated[str, _must_be("the name of a file of the directory", lambda value: Path(value).name == value)]
UtcTime = Annotated[str, _must_be("a time in UTC, as 2026-01-31T23:59:59+00:00", _is_utc)]


def validated(path: Path, model: TypeAdapter[Model], value: Any) -> Model:
    """Return `value` as the model. Raises DamagedFileError, which names file and key."""
    try:
        return model.validate_json(to_json(value))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = _key(first["loc"])
        if first["type"] == "missing":
            raise DamagedFileError(f"{path} lacks the key {key}") from error
        if first["type"] == "unexpected_keyword_argument":
            raise DamagedFileError(f"{path} has an unknown key {key}") from error
        if first["type"] == "string_pattern_mismatch":
            raise DamagedFileError(f"{path}: {key} must be {_PATTERNS[first['ctx']['pattern']]}") from error
        what = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        raise DamagedFileError(f"{path}: {key} {what}") from error


def _key(location: Sequence[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


# Records that belong to no shard and no policy.

_SENT: TypeAdapter[tuple[str, list[str]]] = TypeAdapter(tuple[Text, list[str]], config=STRICT)
_FILES: TypeAdapter[dict[str, str]] = TypeAdapter(dict[FileName, Sha256], config=STRICT)
_DIRECTORY_VERSION = "directory_version", 2


def write_summary(path: Path, figures: Mapping[str, Any]) -> None:
    """Publish the figures of an evaluation, in place of those that are there."""
    publish_checksummed(path, figures, replace=True)


def read_summary(path: Path) -> dict[str, Any]:
    """Return the figures of an evaluation. Raises as `read_checksummed`."""
    try:
        return read_checksummed(path)
    except DamagedFileError as error:
        error.hint = summary_hint(path)
        raise


def summary_hint(path: Path) -> str:
    """Return the command that computes a summary again from its shards."""
    return f"igrpo eval {eval_flags(path.parent)}, with the settings that it had; nothing is sampled again"


def write_sent(path: Path, run_id: str, sent: Sequence[str], *, replace: bool = False) -> None:
    """Publish the keys of what a tracker has been sent, and the id of the run at the tracker."""
    publish_checksummed(path, {"run_id": run_id, "sent": list(sent)}, replace=replace)


def read_sent(path: Path) -> tuple[str, list[str]]:
    """Return the id of the run at a tracker and the keys that were sent. Raises as `read_checksummed`."""
    try:
        value = read_checksummed(path)
        return validated(path, _SENT, (value.get("run_id"), value.get("sent")))
    except DamagedFileError as error:
        error.hint = f"restore {path.name}, or remove it: then all is sent once more, as a new run"
        raise


def record_directory(directory: Path) -> None:
    """Write the hashes of all files of a staged directory into a record in it."""
    hashes = sha256_files(path for path in sorted(directory.iterdir()) if path.name != RECORD)
    files = {path.name: sha256 for path, sha256 in hashes.items()}
    key, version = _DIRECTORY_VERSION
    publish_checksummed(directory / RECORD, {key: version, "files": files}, replace=True)


def recorded_files(directory: Path) -> dict[str, str]:
    """Return {name: SHA-256} from the record of a directory. Raises as `read_checksummed`."""
    record = directory / RECORD
    return validated(record, _FILES, read_checksummed(record, *_DIRECTORY_VERSION).get("files"))


def verify_directory(directory: Path) -> None:
    """Hash the files of a recorded directory again.

    Raises MissingInputError where there is no record, DamagedFileError naming a file that is gone or has changed.
    """
    files = recorded_files(directory)
    for name in files:
        if not (directory / name).is_file():
            raise DamagedFileError(f"{directory / name} is gone")
    for path, sha256 in sha256_files(directory / name for name in files).items():
        if sha256 != files[path.name]:
            raise DamagedFileError(f"{path} is damaged: its SHA-256 is not the one in {RECORD}")
