"""Publication of files and directories: each appears whole or not at all, and has exactly one writer.

A file is written under an unguessable temporary name next to its final name, flushed to disk, and linked to the
final name. `link` fails where the name exists, so one of two writers wins (`rename` would tell both that they did).
A process that is killed leaves at most a temporary. Every operation that publishes or removes something is here.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from igrpo_cli.errors import ConflictError, IgrpoError, MissingInputError
from igrpo_cli.store.hashing import sha256_file
from igrpo_cli.store.temporaries import is_stale, temporary_name

_NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
_NO_DIRECTORY_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP})
_OCCUPIED = frozenset({errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_CLAIM_ATTEMPTS = 100
_CLAIM_SECONDS = 0.1


_guarded_runs: list[Path] = []


def publish_file(path: Path, write: Callable[[Path], None], *, replace: bool = False) -> bool:
    """Let `write` fill a temporary file and publish it as `path`; missing directories are created.

    Returns True when this call put the file there, False when another writer had published the same bytes before.
    With `replace` the file takes the place of whatever is there.

    Raises ConflictError when `path` exists with other bytes, IgrpoError when the file system refuses (full, read-only,
    no permission). In both cases no temporary is left.
    """
    with _explained(path):
        if replace:
            # Such files are few, and no other command may have cleaned up after a writer that was killed.
            remove_stale_temporaries(path.parent)
        temporary = path.with_name(temporary_name(path.name))
        _create_in_directory(temporary, _create_file)
        try:
            write(temporary)
            _sync(temporary)
            won = _replace(temporary, path) if replace else _link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        # The loser syncs too: its success must not depend on the winner living on.
        _sync_directory(path.parent)
    return won


def publish_bytes(path: Path, content: bytes, *, replace: bool = False) -> bool:
    """Publish the given bytes. Raises and returns as `publish_file`."""
    return publish_file(path, lambda temporary: _write_bytes(temporary, content), replace=replace)


@contextmanager
def staging_directory(final: Path) -> Iterator[Path]:
    """Yield a new directory next to `final`, to be filled and published; it is removed if it is not published."""
    with _explained(final):
        remove_stale_temporaries(final.parent)
        staged = final.with_name(temporary_name(final.name))
        _create_in_directory(staged, os.mkdir)
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def publish_directory(staged: Path, final: Path) -> None:
    """Flush the whole tree of `staged` to disk and give it its final name in one rename.

    Its files are readable for whom the directory is: safetensors creates weights for their owner alone. Raises
    ConflictError when `final` exists and is not an empty directory; `staged` is kept then.
    """
    with _explained(final):
        for directory, _, names in os.walk(staged, topdown=False):
            readers = os.stat(directory).st_mode & 0o444
            for name in names:
                _allow(Path(directory, name), readers)
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
                hint="`--overwrite` replaces it; or another task has just made it",
            ) from error
        for parent in {staged.parent, final.parent}:
            _sync_directory(parent)


def _allow(path: Path, readers: int) -> None:
    """Add the bits `readers` to the mode of a file, unless another run shares it."""
    state = os.lstat(path)
    if stat.S_ISREG(state.st_mode) and state.st_nlink == 1 and state.st_mode | readers != state.st_mode:
        os.chmod(path, stat.S_IMODE(state.st_mode) | readers)


def move_directory(source: Path, final: Path) -> bool:
    """Rename a published directory; False when it is gone, because another process has moved it.

    To another file system, where no rename is possible, it is copied under a temporary name, published and removed
    here. Raises ConflictError when `final` exists and is not an empty directory.
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


def flush_files(paths: Iterable[Path]) -> None:
    """Write files through to the disk. Done early, next to other work, it makes publishing them quick."""
    for path in paths:
        with _explained(path):
            _sync(path)


def copy_content(source: Path, target: Path, *, with_links: bool = False) -> None:
    """Copy the content of the directory `source` into the directory `target`, each file as `share_file` does."""
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_dir() and not path.is_symlink():
            copy.mkdir()
        else:
            share_file(path, copy, as_copy=not with_links)


def share_file(source: Path, target: Path, *, as_copy: bool = False) -> bool:
    """Make `target` a hard link to `source`, or a copy; return True for a hard link. Nothing is flushed yet."""
    with _explained(target):
        is_linked = not as_copy and _has_linked(source, target)
        if not is_linked:
            shutil.copy2(source, target, follow_symlinks=False)
    return is_linked


def create_marker(path: Path) -> bool:
    """Create an empty file; False when it exists. A marker tells other tasks something and holds no data."""
    with _explained(path):
        try:
            _create_in_directory(path, _create_file)
        except (FileExistsError, FileNotFoundError):
            return False
    return True


def remove_file(path: Path) -> None:
    """Remove a file durably; no error when there is none."""
    with _explained(path), suppress(FileNotFoundError):
        path.unlink()
        _sync_directory(path.parent)


def remove_directory(path: Path) -> None:
    """Remove a directory: first its name, in one step, then its content; no error when there is none.

    Of a symbolic link only the link is removed, as its target may be an archive.
    """
    if path.is_symlink():
        remove_file(path)
        return
    doomed = path.with_name(temporary_name(path.name))
    with _explained(path), suppress(FileNotFoundError):
        os.rename(path, doomed)
        _sync_directory(path.parent)
        shutil.rmtree(doomed)


def clear_directory(directory: Path, pattern: str) -> None:
    """Remove the published files and directories of these names, then the directory itself if it is empty.

    Temporaries of writers that may be alive are left to them: no file vanishes while it is being written.
    """
    remove_stale_temporaries(directory)
    with _explained(directory), suppress(FileNotFoundError):
        for path in sorted(directory.glob(pattern)):
            (remove_directory if path.is_dir() else remove_file)(path)
    with suppress(OSError):  # It is not empty: another task is at work, and removes the directory when it is done.
        directory.rmdir()


def make_directory(path: Path) -> None:
    """Create a directory and its parents, each new name flushed to disk.

    Raises MissingInputError where one of them is a run that was there when the command began (see `run_guard`).
    """
    for part in _made(path):
        _sync_directory(part.parent)


@contextmanager
def run_guard(root: Path) -> Iterator[None]:
    """Never create the run directory `root` within this context.

    A run that is removed while a command works on it would come back with a part of its content.
    """
    place = root.absolute()
    _guarded_runs.append(place)
    try:
        yield
    finally:
        _guarded_runs.remove(place)


def remove_stale_temporaries(directory: Path) -> list[Path]:
    """Remove and return the temporaries in `directory` (not below it) whose writers are dead.

    Only writers of this machine, boot and process namespace can be known to be dead, so all others are kept.
    """
    stale: list[Path] = []
    with suppress(FileNotFoundError):
        # False also for a link that leads nowhere, which the write that follows reports.
        if directory.is_dir():
            stale = sorted(path for path in directory.iterdir() if is_stale(path.name))
    for path in stale:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return stale


def _create_in_directory(path: Path, create: Callable[[Path], None]) -> None:
    """Create a file or directory in a directory that other tasks remove when they find it empty."""
    try:
        made = _made(path.parent)
        create(path)
    except FileNotFoundError:
        # Removed between the two calls. Nothing is flushed there, so that it cannot well happen twice.
        made = _made(path.parent)
        create(path)
    for part in made:
        _sync_directory(part.parent)


def _made(directory: Path) -> list[Path]:
    """Create what is missing of a directory and its parents, and return it, outermost first."""
    missing = [part for part in (directory, *directory.parents) if not part.is_dir()]
    for part in missing:
        if part.absolute() in _guarded_runs:
            raise MissingInputError(
                f"{part} is gone: it was there when this command began",
                hint="bring the directory back, or make a new run: igrpo init RUN",
            )
    for part in reversed(missing):
        part.mkdir(exist_ok=True)
    return missing[::-1]


def _create_file(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


def _copy_and_remove(source: Path, final: Path) -> bool:
    if final.is_dir() and any(final.iterdir()):
        # Checked before gigabytes are copied: a process may have died between publishing and removing.
        raise ConflictError(f"{final} exists already", hint="if it is not wanted, remove it and run it again")
    with staging_directory(final) as staged:
        try:
            copy_content(source, staged)
        except IgrpoError:
            if source.exists():
                raise
        # Another process that moves it removes it in one step: if it is still there, all of it was copied.
        if not source.exists():
            return False
        publish_directory(staged, final)
    remove_directory(source)
    return True


def _has_linked(path: Path, copy: Path) -> bool:
    try:
        os.link(path, copy, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        return False
    return True


def _link(temporary: Path, path: Path) -> bool:
    while True:
        try:
            os.link(temporary, path)
        except FileExistsError:
            try:
                # Over NFS the answer to a link that succeeded can get lost; the retry finds the name taken by us.
                return os.path.samefile(temporary, path) or _require_same_bytes(temporary, path)
            except FileNotFoundError:
                if os.path.lexists(path):
                    raise
                # A task that found its own file damaged removed it in between: the name is free again.
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            return _rename_under_claim(temporary, path)
        else:
            return True


def _rename_under_claim(temporary: Path, path: Path) -> bool:
    """Do what `_link` does where there are no hard links: the writer that creates the claim may look and rename.

    The claim of a dead writer is never broken, because two tasks that break it would both go on.
    """
    claim = path.with_name(f".{path.name}.claim")
    for _ in range(_CLAIM_ATTEMPTS):
        try:
            _create_file(claim)
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
            hint="perhaps by another task; `igrpo verify` checks it, `--overwrite` replaces it",
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
    """Flush the names in a directory; nothing to do where another task has removed it since."""
    try:
        _sync(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn errors of the file system into errors that say what could not be written, and what to do."""
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
