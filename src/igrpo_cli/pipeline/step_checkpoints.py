"""Checkpoints between the optimiser steps of one update: a stopped update goes on and ends in the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from igrpo_cli.errors import ConflictError, DamagedFileError, IgrpoError, Interrupted, MissingInputError
from igrpo_cli.store.atomic import (
    publish_directory,
    remove_directory,
    remove_stale_temporaries,
    staging_directory,
)
from igrpo_cli.store.checksummed_json import record_directory, verify_directory
from igrpo_cli.store.layout import UpdatePath
from igrpo_cli.store.manifest import Identity
from igrpo_cli.training.ranks import Ranks
from igrpo_cli.training.restore import UpdateProgress, load_progress, save_progress
from igrpo_cli.training.step import PolicyTrainer
from igrpo_cli.ui.console import Console

MOST_LOOKS = 64
"""How often a checkpoint may be taken away while it is read: once by each task that shares the update."""


class StepCheckpoints:
    """The checkpoints of an update of this identity; those of any other are of no use to it."""

    def __init__(self, path: UpdatePath, identity: Identity, console: Console) -> None:
        self._update = path
        self._directory = path.checkpoints / identity.sha256()[:16]
        self._console = console
        remove_stale_temporaries(self._directory)

    def load(self, trainer: PolicyTrainer) -> UpdateProgress | None:
        """Put the newest sound checkpoint into `trainer`; None, with the trainer untouched, where there is none.

        Raises MissingInputError or FileNotFoundError, with the trainer half filled, where another task that makes the
        same update took away what was being read, and left nothing newer.
        """
        vanished: Exception | None = None
        for _ in range(MOST_LOOKS if trainer.ranks.size == 1 else 1):
            checkpoint = trainer.ranks.broadcast(self._newest_sound() if trainer.ranks.is_first else None)
            if checkpoint is None:
                break
            try:
                progress = load_progress(checkpoint, trainer)
            except (MissingInputError, FileNotFoundError) as error:
                # A twin of this task has got further: its checkpoint takes the place of this one.
                vanished = error
                continue
            self._console.note(f"going on after step {len(progress.results)} of the update")
            return progress
        if vanished is not None:
            raise vanished
        return None

    def save(self, trainer: PolicyTrainer, progress: UpdateProgress) -> None:
        """Keep the state after the last step of `progress`, in place of earlier ones; every rank must ask."""
        final = self._directory / f"step_{len(progress.results):06d}"
        try:
            with shared_staging_directory(final, trainer.ranks) as staged:
                save_progress(staged, trainer, progress)
                if trainer.ranks.is_first:
                    self._publish(staged, final)
        except Interrupted:
            raise
        except (IgrpoError, OSError):
            # A twin of this task that finished the update has taken all checkpoints away, also those being written.
            if trainer.ranks.size > 1 or not self._update.manifest.exists():
                raise

    def _publish(self, staged: Path, final: Path) -> None:
        record_directory(staged)
        with suppress(ConflictError):  # another task, which makes the same update, was faster
            if not _is_sound(final):
                remove_directory(final)
                publish_directory(staged, final)
        for earlier in sorted(self._directory.glob("step_*")):
            if earlier.name < final.name:
                remove_directory(earlier)

    def _newest_sound(self) -> Path | None:
        newest_first = sorted(self._directory.glob("step_*"), reverse=True)
        return next((checkpoint for checkpoint in newest_first if _is_sound(checkpoint, self._console.note)), None)


def _is_sound(checkpoint: Path, note: Callable[[str], None] = lambda what: None) -> bool:
    """Whether a checkpoint is there and whole; `note` is told what is wrong with one that is not."""
    try:
        verify_directory(checkpoint)
    except (DamagedFileError, MissingInputError, OSError) as error:
        if checkpoint.exists():
            note(f"a checkpoint is of no use: {error}")
        return False
    return True


@contextmanager
def shared_staging_directory(final: Path, ranks: Ranks) -> Iterator[Path]:
    """`staging_directory` of the first rank, for all of them to write into."""
    with staging_directory(final) if ranks.is_first else nullcontext() as staged:
        yield ranks.broadcast(staged or final)
        ranks.barrier()
