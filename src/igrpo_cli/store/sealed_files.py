"""Small files beside the shards, each with a hash of itself: summaries of evaluations, what trackers were sent.

Nothing else on disk says what they say, so a number that has changed would be taken for the one that was written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from igrpo_cli.errors import DamagedFileError
from igrpo_cli.store.atomic import publish_json
from igrpo_cli.store.checksummed_json import sealed
from igrpo_cli.store.eval_names import eval_flags
from igrpo_cli.store.strict_json import LIST, TEXT, check_keys, check_seal, read_object

SUMMARY_HASH = "summary_sha256"
SENT_HASH = "sent_sha256"
_SENT_FIELDS = {"run_id": TEXT, "sent": LIST}


def write_summary(path: Path, figures: Mapping[str, Any]) -> None:
    """Publish the figures of an evaluation, in place of those that are there."""
    publish_json(path, sealed(figures, SUMMARY_HASH), replace=True)


def read_summary(path: Path) -> dict[str, Any]:
    """The figures of an evaluation. Raises MissingInputError where there are none, DamagedFileError for any others."""
    try:
        value = read_object(path)
        sha256 = value.pop(SUMMARY_HASH, None)
        if sha256 is None:
            raise DamagedFileError(f"{path} lacks the key {SUMMARY_HASH}")
        check_seal(path, value, sha256, SUMMARY_HASH)
    except DamagedFileError as error:
        error.hint = summary_hint(path)
        raise
    return value


def summary_hint(path: Path) -> str:
    """What makes a summary anew, from its shards."""
    return f"igrpo eval {eval_flags(path.parent)}, with the settings that it had; nothing is sampled again"


def write_sent(path: Path, run_id: str, sent: Sequence[str], *, replace: bool = False) -> None:
    """Publish what a tracker has been sent, and under which id it has it."""
    publish_json(path, sealed({"run_id": run_id, "sent": list(sent)}, SENT_HASH), replace=replace)


def read_sent(path: Path) -> tuple[str, list[str]]:
    """The id of the run at a tracker, and the keys that it has. Raises MissingInputError, DamagedFileError."""
    try:
        value = read_object(path)
        sha256 = value.pop(SENT_HASH, None)
        check_keys(path, value, _SENT_FIELDS)
        check_seal(path, value, sha256, SENT_HASH)
    except DamagedFileError as error:
        error.hint = f"restore {path.name}, or remove it: then all is sent once more, as a new run"
        raise
    return value["run_id"], value["sent"]
