"""Checkpoints between the optimiser steps of one update: a stopped update goes on and ends in the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from igrpo_cli.errors import ConflictError, DamagedFileError, IgrpoError, MissingInputError
from igrpo_cli.store.atomic import (
    copy_content,
    publish_directory,
    remove_directory,
    remove_stale_temporaries,
    staging_directory,
)
from igrpo_cli.store.checksummed_json import record_directory, verify_directory
from igrpo_cli.store.layout import CHECKPOINT_DIRECTORIES, UpdatePath
from igrpo_cli.store.manifest import Identity
from igrpo_cli.training.ranks import Ranks
from igrpo_cli.training.restore import UpdateProgress, load_progress, save_progress
from igrpo_cli.training.step import PolicyTrainer
from igrpo_cli.ui.console import Console


class StepCheckpoints:
    """The checkpoints of an update of one identity. Those of another identity are of no use to it."""

    def __init__(self, path: UpdatePath, identity: Identity, console: Console) -> None:
        self._directory = path.checkpoints / identity.sha256()[:16]
        self._console = console
        remove_stale_temporaries(self._directory)

    def load(self, trainer: PolicyTrainer) -> UpdateProgress | None:
        """Load the newest intact checkpoint into `trainer`; None, with the trainer untouched, if there is none."""
        with self._copy_of_newest(trainer.ranks) as checkpoint:
            if checkpoint is None:
                return None
            progress = load_progress(checkpoint, trainer)
        self._console.note(f"going on after step {len(progress.results)} of the update")
        return progress

    def save(self, trainer: PolicyTrainer, progress: UpdateProgress) -> None:
        """Keep the state after the last step of `progress`, in place of earlier ones; every rank must call it."""
        final = self._directory / f"step_{len(progress.results):06d}"
        with shared_staging_directory(final, trainer.ranks) as staged:
            save_progress(staged, trainer, progress)
            if trainer.ranks.is_first:
                self._publish(staged, final)

    def _publish(self, staged: Path, final: Path) -> None:
        record_directory(staged)
        with suppress(ConflictError):  # A concurrent task was faster.
            if not _is_sound(final):
                remove_directory(final)
                publish_directory(staged, final)
        for earlier in sorted(self._directory.glob(CHECKPOINT_DIRECTORIES)):
            if earlier.name < final.name:
                remove_directory(earlier)

    @contextmanager
    def _copy_of_newest(self, ranks: Ranks) -> Iterator[Path | None]:
        """Yield a copy, made of hard links, of the newest intact checkpoint.

        A concurrent task that gets further removes the checkpoint, but not the copy.
        """
        with ExitStack() as stack:
            copy = None
            newest_first = sorted(self._directory.glob(CHECKPOINT_DIRECTORIES), reverse=True)
            for checkpoint in newest_first if ranks.is_first else ():
                staged = stack.enter_context(staging_directory(checkpoint))
                if self._has_copied(checkpoint, staged):
                    copy = staged
                    break
            yield ranks.broadcast(copy)
            ranks.barrier()

    def _has_copied(self, checkpoint: Path, staged: Path) -> bool:
        try:
            copy_content(checkpoint, staged, with_links=True)
        except IgrpoError:
            if checkpoint.exists():
                raise
        if _is_sound(staged):
            return True
        if checkpoint.exists():
            self._console.note(f"the checkpoint {checkpoint} is damaged and of no use")
        return False


def _is_sound(directory: Path) -> bool:
    try:
        verify_directory(directory)
    except (DamagedFileError, MissingInputError, OSError):
        return False
    return True


@contextmanager
def shared_staging_directory(final: Path, ranks: Ranks) -> Iterator[Path]:
    """Yield the `staging_directory` of the first rank, for all ranks to write into."""
    with staging_directory(final) if ranks.is_first else nullcontext() as staged:
        yield ranks.broadcast(staged or final)
        ranks.barrier()
