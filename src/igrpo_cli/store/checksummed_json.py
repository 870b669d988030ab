"""JSON that holds the hash of itself, so that a bit that has flipped in it is noticed by whoever reads it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from igrpo_cli.errors import ConflictError, DamagedFileError, MissingInputError
from igrpo_cli.store.atomic import publish_json, sha256_files
from igrpo_cli.store.layout import eval_flags


def canonical_json(value: Any) -> str:
    """The one text of a JSON value: sorted keys, no spaces, ASCII. NaN is a ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256_json(value: Any) -> str:
    """SHA-256 of `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()


def checksummed(facts: Mapping[str, Any], key: str) -> dict[str, Any]:
    """`facts` with the hash of all of them under `key`."""
    return {**facts, key: sha256_json(dict(facts))}


def checksummed_line(facts: Mapping[str, Any], key: str) -> bytes:
    """`sealed` as one line of text, without its newline."""
    return json.dumps(checksummed(facts, key), allow_nan=False).encode("ascii")


def read_checksummed_line(line: bytes, key: str) -> dict[str, Any]:
    """The facts of a line as `checksummed_line` wrote it. Raises ValueError for any other."""
    try:
        value = json.loads(line)
    except RecursionError:
        raise ValueError("brackets without end") from None
    if type(value) is not dict or json.dumps(value).encode("ascii") != line:
        raise ValueError("no object as it was written")
    if value.pop(key, None) != sha256_json(value):
        raise ValueError("its hash is another one")
    return value


MAX_BYTES = 64 * 2**20
"""More than any manifest holds; a larger file is not one."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


class UnknownSchemaError(DamagedFileError):
    """A file of another igrpo, or of something else: whole perhaps, but not to be read or replaced."""


@dataclass(frozen=True, slots=True)
class Field:
    """What a key must hold: `says` completes the sentence "must be …"."""

    says: str
    holds: Callable[[Any], bool]

    def or_null(self) -> Field:
        """The same, or null."""
        return Field(f"{self.says} or null", lambda value: value is None or self.holds(value))


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises MissingInputError or DamagedFileError."""
    try:
        with path.open("rb") as file:
            is_large = os.fstat(file.fileno()).st_size > MAX_BYTES
            content = b"" if is_large else file.read()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingInputError(f"{path} does not exist") from error
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read: {error.strerror}") from error
    if is_large:
        raise DamagedFileError(f"{path} is larger than any file of its kind")
    try:
        value = json.loads(
            content.decode("utf-8"), object_pairs_hook=_unique, parse_float=_float, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise DamagedFileError(f"{path} holds no JSON object")
    return value


def check_keys(path: Path, value: Mapping[str, Any], fields: Mapping[str, Field], within: str = "") -> None:
    """Require exactly the keys of `fields`, each as it says. Raises DamagedFileError naming file and key."""
    missing = sorted(fields.keys() - value.keys())
    if missing:
        raise DamagedFileError(f"{path} lacks the key {within}{missing[0]}")
    unknown = sorted(value.keys() - fields.keys())
    if unknown:
        raise DamagedFileError(f"{path} has an unknown key {within}{unknown[0]}")
    for key, field in fields.items():
        if not field.holds(value[key]):
            raise DamagedFileError(f"{path}: {within}{key} must be {field.says}, not {_shown(value[key])}")


def check_version(path: Path, value: Mapping[str, Any], key: str, ours: int) -> None:
    """Require `value[key]` to be our version. Raises UnknownSchemaError for another one."""
    version = value.get(key)
    if type(version) is not int:
        raise DamagedFileError(f"{path} lacks the key {key}")
    if version != ours:
        age = "a newer" if version > ours else "an older"
        raise UnknownSchemaError(
            f"{path} was written by {age} igrpo ({key} {version}, this igrpo reads {ours})",
            hint="use the igrpo that made the run, or make a new run",
        )


def check_checksum(path: Path, facts: Mapping[str, Any], sha256: str | None, key: str) -> None:
    """Require `sha256`, found under `key`, to be the hash of the other keys, `facts`. Raises DamagedFileError.

    None is taken: what the first igrpo wrote has no hash of its own.
    """
    if sha256 not in (None, sha256_json(dict(facts))):
        raise DamagedFileError(f"{path}: {key} is not the hash of the other keys")


def _is_int(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _is_number(value: Any) -> bool:
    return _is_int(value) or (type(value) is float and math.isfinite(value))


def _is_text(value: Any) -> bool:
    return type(value) is str and value.isprintable() and value != ""


def _is_relative(value: Any) -> bool:
    return _is_text(value) and not PurePosixPath(value).is_absolute() and ".." not in PurePosixPath(value).parts


def _is_utc(value: Any) -> bool:
    try:
        return type(value) is str and datetime.fromisoformat(value).utcoffset() == timedelta(0)
    except ValueError:
        return False


def _is_sha256(value: Any) -> bool:
    return type(value) is str and _SHA256.fullmatch(value) is not None


def _maps(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: type(value) is dict and all(holds(item) for item in value.values())


INTEGER = Field("an integer", _is_int)
COUNT = Field("an integer from 0", lambda value: _is_int(value) and value >= 0)
AMOUNT = Field("a finite number from 0", lambda value: _is_number(value) and value >= 0)
TEXT = Field("a line of text", _is_text)
SHA256 = Field("64 hexadecimal digits", _is_sha256)
POLICY_ID = Field(
    "sha256: and 64 hexadecimal digits",
    lambda value: type(value) is str and value.startswith("sha256:") and _is_sha256(value[len("sha256:") :]),
)
RELATIVE_PATH = Field("a path below the run directory", _is_relative)
UTC_TIME = Field("a time in UTC, as 2026-01-31T23:59:59+00:00", _is_utc)
OBJECT = Field("an object", lambda value: type(value) is dict)
SECTIONS = Field("an object of objects", _maps(lambda value: type(value) is dict))
TEXTS = Field("an object of texts", _maps(lambda value: type(value) is str))
NUMBERS = Field("an object of finite numbers", _maps(_is_number))
HASHES = Field("an object of file names and their SHA-256", _maps(_is_sha256))
LIST = Field("a list", lambda value: type(value) is list)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = next(key for index, (key, _) in enumerate(pairs) if key in dict(pairs[:index]))
        raise ValueError(f"the key {twice} stands twice")
    return value


def _float(text: str) -> float:
    """As Python writes it: 1E-6 for 1e-06 is a flipped bit."""
    value = float(text)
    if repr(value) != text:
        raise ValueError(f"{text} is no number as igrpo writes it")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


SUMMARY_HASH = "summary_sha256"
SENT_HASH = "sent_sha256"
_SENT_FIELDS = {"run_id": TEXT, "sent": LIST}


def write_summary(path: Path, figures: Mapping[str, Any]) -> None:
    """Publish the figures of an evaluation, in place of those that are there."""
    publish_json(path, checksummed(figures, SUMMARY_HASH), replace=True)


def read_summary(path: Path) -> dict[str, Any]:
    """The figures of an evaluation. Raises MissingInputError where there are none, DamagedFileError for any others."""
    try:
        value = read_object(path)
        sha256 = value.pop(SUMMARY_HASH, None)
        if sha256 is None:
            raise DamagedFileError(f"{path} lacks the key {SUMMARY_HASH}")
        check_checksum(path, value, sha256, SUMMARY_HASH)
    except DamagedFileError as error:
        error.hint = summary_hint(path)
        raise
    return value


def summary_hint(path: Path) -> str:
    """What makes a summary anew, from its shards."""
    return f"igrpo eval {eval_flags(path.parent)}, with the settings that it had; nothing is sampled again"


def write_sent(path: Path, run_id: str, sent: Sequence[str], *, replace: bool = False) -> None:
    """Publish what a tracker has been sent, and under which id it has it."""
    publish_json(path, checksummed({"run_id": run_id, "sent": list(sent)}, SENT_HASH), replace=replace)


def read_sent(path: Path) -> tuple[str, list[str]]:
    """The id of the run at a tracker, and the keys that it has. Raises MissingInputError, DamagedFileError."""
    try:
        value = read_object(path)
        sha256 = value.pop(SENT_HASH, None)
        check_keys(path, value, _SENT_FIELDS)
        check_checksum(path, value, sha256, SENT_HASH)
    except DamagedFileError as error:
        error.hint = f"restore {path.name}, or remove it: then all is sent once more, as a new run"
        raise
    return value["run_id"], value["sent"]


_SETTINGS_COMMENT = b"# SHA-256 of the lines below: "


def checksummed_settings(settings: bytes) -> bytes:
    """The settings as `init` writes them: below a comment that holds their hash."""
    return _SETTINGS_COMMENT + hashlib.sha256(settings).hexdigest().encode() + b"\n" + settings


def settings_fault(path: Path) -> tuple[str, str] | None:
    """What is wrong with a `run.toml`, and what to do about it; None where it is as `init` wrote it."""
    if not path.is_file():
        return "does not exist", "igrpo init"
    try:
        content = path.read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror}", "make it readable"
    if content == checksummed_settings(content.partition(b"\n")[2]):
        return None
    what = "is not what `igrpo init` wrote: its first line does not hold the SHA-256 of the others"
    return what, f"restore it; for other settings use --set, or igrpo init NEW_RUN --config {path}"


def require_unedited(path: Path) -> None:
    """Raises ConflictError for a `run.toml` that is not as `init` wrote it."""
    fault = settings_fault(path)
    if fault is not None:
        raise ConflictError(f"{path} {fault[0]}", hint=fault[1])


RECORD = "manifest.json"
RECORD_VERSION = 1
OWN_HASH = "record_sha256"


def record_directory(directory: Path) -> None:
    """Write the hashes of all files of a staged directory into it."""
    hashes = sha256_files(path for path in sorted(directory.iterdir()) if path.name != RECORD)
    files = {path.name: sha256 for path, sha256 in hashes.items()}
    publish_json(
        directory / RECORD,
        {"directory_version": RECORD_VERSION, **checksummed({"files": files}, OWN_HASH)},
        replace=True,
    )


def verify_directory(directory: Path) -> None:
    """Hash the files again. Raises MissingInputError without a record, DamagedFileError naming a changed file."""
    record = directory / RECORD
    value = read_object(record)
    check_version(record, value, "directory_version", RECORD_VERSION)
    value.pop("directory_version")
    sha256 = value.pop(OWN_HASH, None)
    check_keys(record, value, {"files": HASHES})
    check_checksum(record, value, sha256, OWN_HASH)
    for name in sorted(value["files"]):
        if Path(name).name != name:
            raise DamagedFileError(f"{record}: files names {name!r}, which is no file of the directory")
        if not (directory / name).is_file():
            raise DamagedFileError(f"{directory / name} is gone")
    for path, sha256 in sha256_files(directory / name for name in sorted(value["files"])).items():
        if sha256 != value["files"][path.name]:
            raise DamagedFileError(f"{path} is damaged: its SHA-256 is not the one in {RECORD}")
