"""JSON of ours, read without good will: what is not exactly as it was written is damaged.

Python's own reader accepts NaN, lets the last of two equal keys win and returns whatever it finds;
here each of these is an error that names the file and the key.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from igrpo_cli.errors import DamagedFileError, MissingInputError
from igrpo_cli.store.checksummed_json import sha256_json

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
            raise DamagedFileError(f"{path}: {within}{key} must be {field.says}, not {_kind(value[key])}")


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


def check_seal(path: Path, facts: Mapping[str, Any], sha256: str | None, key: str) -> None:
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


def _kind(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
