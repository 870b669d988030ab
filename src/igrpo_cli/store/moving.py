"""Published directories that move to another place, which may lie on another file system."""

from __future__ import annotations

import errno
from pathlib import Path

from igrpo_cli.errors import ConflictError, IgrpoError
from igrpo_cli.store.atomic import copy_content, publish_directory, remove_directory, staging_directory


def move_directory(source: Path, final: Path) -> bool:
    """Rename a published directory; False when it is gone, because somebody else has moved it.

    To another file system, where there is no rename, it is copied under a temporary name, published and withdrawn here.
    Raises `ConflictError` when `final` exists and is not an empty directory.
    """
    try:
        publish_directory(source, final)
    except IgrpoError as error:
        reason = error.__cause__.errno if isinstance(error.__cause__, OSError) else None
        if reason in (errno.ENOENT, errno.EXDEV) and not source.exists():
            return False
        if reason == errno.EXDEV:
            return _copy_and_remove(source, final)
        raise
    return True


def _copy_and_remove(source: Path, final: Path) -> bool:
    if final.is_dir() and any(final.iterdir()):
        # Known before gigabytes are copied: perhaps a process died between publishing and withdrawing.
        raise ConflictError(f"{final} exists already", hint="if it is not wanted, remove it and run it again")
    with staging_directory(final) as staged:
        try:
            copy_content(source, staged)
        except IgrpoError:
            if source.exists():
                raise
        # Another process that moves it takes it away whole: what is there still was copied whole.
        if not source.exists():
            return False
        publish_directory(staged, final)
    remove_directory(source)
    return True
