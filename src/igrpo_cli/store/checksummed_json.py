"""JSON that holds the hash of itself, so that a bit that has flipped in it is noticed by whoever reads it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def canonical_json(value: Any) -> str:
    """The one text of a JSON value: sorted keys, no spaces, ASCII. NaN is a ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256_json(value: Any) -> str:
    """SHA-256 of `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()


def sealed(facts: Mapping[str, Any], key: str) -> dict[str, Any]:
    """`facts` with the hash of all of them under `key`."""
    return {**facts, key: sha256_json(dict(facts))}


def sealed_line(facts: Mapping[str, Any], key: str) -> bytes:
    """`sealed` as one line of text, without its newline."""
    return json.dumps(sealed(facts, key), allow_nan=False).encode("ascii")


def read_sealed_line(line: bytes, key: str) -> dict[str, Any]:
    """The facts of a line as `sealed_line` wrote it. Raises ValueError for any other."""
    try:
        value = json.loads(line)
    except RecursionError:
        raise ValueError("brackets without end") from None
    if type(value) is not dict or json.dumps(value).encode("ascii") != line:
        raise ValueError("no object as it was written")
    if value.pop(key, None) != sha256_json(value):
        raise ValueError("its hash is another one")
    return value
