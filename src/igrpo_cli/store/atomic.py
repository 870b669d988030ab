"""How files come into being: whole or not at all, and by one writer.

A file is written under an unguessable temporary name next to its final one, flushed to disk, and
linked to the final name. `link` fails where something exists, so of two writers exactly one wins
(`rename` would tell both that they did), and a process killed at any moment leaves at most a
temporary. Every file operation that publishes or withdraws something lives here.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from igrpo_cli.errors import ConflictError, IgrpoError, MissingInputError
from igrpo_cli.store.temporaries import is_stale, temporary_name

_NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
_NO_DIRECTORY_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP})
_OCCUPIED = frozenset({errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_CLAIM_ATTEMPTS = 100
_CLAIM_SECONDS = 0.1
HASHING_THREADS = 8


def publish_file(path: Path, write: Callable[[Path], None], *, replace: bool = False) -> bool:
    """Let `write` fill a temporary file and publish it as `path`; directories are made as needed.

    Returns True when this call put the file there, False when another writer had published the
    same bytes before. With `replace` the file takes the place of whatever is there.

    Raises `ConflictError` when `path` exists with other bytes, `IgrpoError` when the file system
    refuses (full, read-only, no permission). Either way nothing of ours is left behind.
    """
    with _explained(path):
        make_directory(path.parent)
        if replace:
            # Such files are few, and what was killed while it wrote them may have had no other command come by.
            remove_stale_temporaries(path.parent)
        temporary = path.with_name(temporary_name(path.name))
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            write(temporary)
            _sync(temporary)
            won = _replace(temporary, path) if replace else _install(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        # The loser syncs too: its success must not depend on the winner living on.
        _sync_directory(path.parent)
    return won


def publish_bytes(path: Path, content: bytes, *, replace: bool = False) -> bool:
    """`publish_file` of the given bytes."""
    return publish_file(path, lambda temporary: _write_bytes(temporary, content), replace=replace)


@contextmanager
def staging_directory(final: Path) -> Iterator[Path]:
    """A fresh directory beside `final`, to be filled and given to `publish_directory`; else it goes away."""
    with _explained(final):
        make_directory(final.parent)
        remove_stale_temporaries(final.parent)
        staged = final.with_name(temporary_name(final.name))
        staged.mkdir()
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def publish_directory(staged: Path, final: Path) -> None:
    """Flush the whole tree of `staged` to disk and give it its final name in one rename.

    Raises `ConflictError` when `final` exists and is not an empty directory; `staged` is kept then.
    """
    with _explained(final):
        for directory, _, names in os.walk(staged, topdown=False):
            for name in names:
                _sync(Path(directory, name))
            _sync_directory(Path(directory))
        make_directory(final.parent)
        try:
            os.rename(staged, final)
        except OSError as error:
            if error.errno not in _OCCUPIED:
                raise
            raise ConflictError(
                f"{final} exists already",
                hint="`--overwrite` makes it anew; or another task has just made it",
            ) from error
        for parent in {staged.parent, final.parent}:
            _sync_directory(parent)


def flush_files(paths: Iterable[Path]) -> None:
    """Have files on disk: begun early, beside other work, this is what makes publishing them quick."""
    for path in paths:
        with _explained(path):
            _sync(path)


def copy_content(source: Path, target: Path) -> None:
    """Copy all that lies in `source` into the directory `target`, links as links; nothing is flushed yet."""
    with _explained(target):
        for path in sorted(source.rglob("*")):
            copy = target / path.relative_to(source)
            if path.is_dir() and not path.is_symlink():
                copy.mkdir()
            else:
                shutil.copyfile(path, copy, follow_symlinks=False)


def create_marker(path: Path) -> bool:
    """Make an empty file; False when there is one already. It says something to other tasks and is not data."""
    with _explained(path):
        make_directory(path.parent)
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except (FileExistsError, FileNotFoundError):
            return False
    return True


def remove_file(path: Path) -> None:
    """Remove a file, for good; fine when there is none."""
    with _explained(path), suppress(FileNotFoundError):
        path.unlink()
        _sync_directory(path.parent)


def remove_directory(path: Path) -> None:
    """Remove a directory: it loses its name at once, then its content; fine when there is none.

    Of a link only the link goes: what it points to may be somebody's archive.
    """
    if path.is_symlink():
        remove_file(path)
        return
    doomed = path.with_name(temporary_name(path.name))
    with _explained(path), suppress(FileNotFoundError):
        os.rename(path, doomed)
        _sync_directory(path.parent)
        shutil.rmtree(doomed)


def make_directory(path: Path) -> None:
    """Make a directory and its parents, each new name flushed to disk. Raises as `require_not_removed`."""
    missing = [part for part in (path, *path.parents) if not part.is_dir()]
    require_not_removed(missing)
    for part in reversed(missing):
        part.mkdir(exist_ok=True)
        _sync_directory(part.parent)


def remove_stale_temporaries(directory: Path) -> list[Path]:
    """Remove the temporaries in `directory` (not below it) whose writers are dead; returns what was removed.

    Only writers of this very machine, boot and process namespace can be known to be dead, so
    temporaries of any other are left alone.
    """
    if not directory.is_dir():
        return []
    stale = sorted(path for path in directory.iterdir() if is_stale(path.name))
    for path in stale:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return stale


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_files(paths: Iterable[Path]) -> dict[Path, str]:
    """SHA-256 of several files, hashed beside each other: a policy is gigabytes, and a core does about one a second."""
    ordered = list(paths)
    with ThreadPoolExecutor(HASHING_THREADS) as threads:
        return dict(zip(ordered, threads.map(sha256_file, ordered), strict=True))


def _install(temporary: Path, path: Path) -> bool:
    for attempts_left in reversed(range(_CLAIM_ATTEMPTS)):
        try:
            os.link(temporary, path)
        except FileExistsError:
            try:
                # Over NFS the answer to a link that succeeded can get lost; the retry finds the name taken by us.
                return os.path.samefile(temporary, path) or _require_same_bytes(temporary, path)
            except FileNotFoundError:
                # A task that found its own file unsound took it away between our two looks: the name is free again.
                if not attempts_left or not temporary.exists():
                    raise
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            return _rename_under_claim(temporary, path)
        else:
            return True
    raise AssertionError("the last attempt returns or raises")


def _rename_under_claim(temporary: Path, path: Path) -> bool:
    """`_install` where there are no hard links: the writer that creates the claim may look and rename.

    A dead writer's claim is never broken: two tasks that both break it would both go on.
    """
    claim = path.with_name(f".{path.name}.claim")
    for _ in range(_CLAIM_ATTEMPTS):
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            time.sleep(_CLAIM_SECONDS)
            continue
        try:
            if os.path.lexists(path):
                return _require_same_bytes(temporary, path)
            return _replace(temporary, path)
        finally:
            claim.unlink(missing_ok=True)
    raise IgrpoError(
        f"{path} is claimed by another task, or by one that died (this file system has no hard links)",
        hint=f"when no other igrpo command works on this run, delete {claim} and run it again",
    )


def _replace(temporary: Path, path: Path) -> bool:
    os.replace(temporary, path)
    return True


def _require_same_bytes(temporary: Path, path: Path) -> bool:
    if sha256_file(temporary) != sha256_file(path):
        raise ConflictError(
            f"{path} exists already, with other content than what is to be written now",
            hint="perhaps by another task; `igrpo verify` says if it is sound, `--overwrite` replaces it",
        )
    return False


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _sync(path: Path) -> None:
    if path.is_symlink():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory(path: Path) -> None:
    try:
        _sync(path)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the file system's refusals into errors that say what could not be written, and what to do."""
    try:
        yield
    except OSError as error:
        for place in (path, *path.parents):
            if place.is_symlink() and not os.path.exists(place):
                raise IgrpoError(
                    f"cannot write {path}: {place} is a link that leads nowhere",
                    hint="remove the link, or make available what it leads to, and run it again",
                ) from error
        hint = "make room there and run it again" if error.errno in _FULL else None
        raise IgrpoError(f"cannot write {path}: {error.strerror or error}", hint=hint) from error


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


_STANDING: list[Path] = []


@contextmanager
def run_guard(root: Path) -> Iterator[None]:
    """Within it the directory `root`, which is there, is not made by this process."""
    place = root.absolute()
    _STANDING.append(place)
    try:
        yield
    finally:
        _STANDING.remove(place)


def require_not_removed(missing: Iterable[Path]) -> None:
    """Raises MissingInputError where one of the directories that are about to be made is a run that was there."""
    for path in missing:
        if path.absolute() in _STANDING:
            raise MissingInputError(
                f"{path} is gone: it was there when this command began",
                hint="bring the directory back, or make a new run: igrpo init RUN",
            )
