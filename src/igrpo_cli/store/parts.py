"""The complete blocks of a shard that is not complete yet, each a small Parquet file of its own.

Sampling a shard takes hours and may be killed at any time. Blocks that are kept as parts are not sampled again.
A shard is always assembled from its parts on disk, so its bytes do not depend on how often it was interrupted.
A part has no manifest. It carries a hash of its own rows, because no checksum covers the footer of a Parquet file,
where one bit can turn two rows into none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from igrpo_cli.errors import ConflictError, DamagedFileError, MissingInputError
from igrpo_cli.records import Proposals
from igrpo_cli.store.atomic import clear_directory, create_marker, remove_file
from igrpo_cli.store.layout import PART_FILES
from igrpo_cli.store.manifest import DataFile
from igrpo_cli.store.rows import table_of
from igrpo_cli.store.schema import ROLLOUTS
from igrpo_cli.store.tables import content_sha256, read_table, write_tables

IDENTITY_KEY = "igrpo.identity"
BLOCK_KEY = "igrpo.block"
CONTENT_KEY = "igrpo.content"
PROPOSALS_KEY = "igrpo.proposals"
RowId = tuple[int, int]
"""Group id and sample id of a row."""


@dataclass(frozen=True)
class PartStore:
    """Holds the parts of one shard (`ShardPath.parts`) for one identity; parts of another identity do not count."""

    directory: Path
    identity_sha256: str
    schema: pa.Schema = ROLLOUTS
    _proposals: dict[int, Proposals] = field(default_factory=dict, init=False, compare=False)
    """The proposals for each block that was read."""

    def path(self, block: int) -> Path:
        """Return the path of the part of a block."""
        return self.directory / f"block-{block:06d}.parquet"

    def has(self, block: int) -> bool:
        """Return True where a block is done. A part that is damaged or has another identity is removed."""
        try:
            self.read(block)
        except MissingInputError:
            return False
        except DamagedFileError:
            self.discard(block)
            return False
        return True

    def claim(self, block: int) -> bool:
        """Announce that this task samples a block; return False where another task, perhaps a dead one, did so before.

        A claim only orders the work of tasks that share a shard. Any task that needs the block may still sample it.
        """
        return create_marker(self.directory / f"block-{block:06d}.claim")

    def write(self, block: int, rows: Sequence[Any], proposals: Proposals | None = None) -> None:
        """Keep the rows of a block. Where another task kept the same block first, its rows are kept.

        `proposals` are those for the rows that were sampled; None means that there were none.
        """
        table, metadata = table_of(self.schema, rows), self._whose(block)
        if proposals is not None and proposals.num_proposed:
            metadata[PROPOSALS_KEY] = f"{proposals.num_proposed} {proposals.num_accepted}"
        try:
            self._write(block, table, metadata)
        except ConflictError:
            # The same sampling need not give the same bytes on every GPU; either part is a true observation.
            if not self.has(block):
                self._write(block, table, metadata, replace=True)

    def _write(self, block: int, table: pa.Table, metadata: dict[str, str], *, replace: bool = False) -> None:
        metadata = {**metadata, CONTENT_KEY: content_sha256(table)}
        write_tables(self.path(block), self.schema, [table], metadata=metadata, replace=replace)

    def read(self, block: int) -> pa.Table:
        """Return the rows of a block. Raises MissingInputError, and DamagedFileError (also for another identity)."""
        path = self.path(block)
        table = read_table(path, self.schema)
        # In bytes as they stand there: what is damaged need not be text.
        found = table.schema.metadata
        if any(found.get(key.encode()) != value.encode() for key, value in self._whose(block).items()):
            raise DamagedFileError(f"{path} was made for another shard or config")
        if found.get(CONTENT_KEY.encode()) != content_sha256(table).encode():
            raise DamagedFileError(f"{path} is damaged: its rows are not those that were written")
        numbers = found.get(PROPOSALS_KEY.encode(), b"0 0").split()
        if len(numbers) != 2 or not all(number.isdigit() for number in numbers):
            raise DamagedFileError(f"{path} is damaged: its number of proposed tokens is no number")
        self._proposals[block] = Proposals(*map(int, numbers))
        return table

    @property
    def proposal_counts(self) -> dict[str, int]:
        """The numbers of proposed and of accepted tokens in the blocks that were read; empty if none was proposed."""
        found = self._proposals.values()
        numbers = {
            "proposed_tokens": sum(each.num_proposed for each in found),
            "accepted_tokens": sum(each.num_accepted for each in found),
        }
        return numbers if numbers["proposed_tokens"] else {}

    def _whose(self, block: int) -> dict[str, str]:
        return {IDENTITY_KEY: self.identity_sha256, BLOCK_KEY: str(block)}

    def discard(self, block: int) -> None:
        """Remove the part of a block, if it exists. The block is sampled again then."""
        remove_file(self.path(block))

    def clear(self) -> None:
        """Remove all parts and claims, of any identity, once the shard is complete.

        A file that another task is writing is not removed. It becomes a part that this task or the next command
        removes.
        """
        clear_directory(self.directory, PART_FILES)

    def assemble(
        self,
        path: Path,
        blocks: Iterable[int],
        replace: bool = False,
        check: Callable[[int, Iterable[RowId]], None] = lambda block, found: None,
    ) -> DataFile:
        """Publish the parts as one file, with a row group per block that has rows.

        `check` receives each block and the ids of its rows before anything is published, and may raise. Raises
        MissingInputError where a part does not exist.
        """

        def checked(block: int) -> pa.Table:
            table = self.read(block)
            check(block, zip(table["group_id"].to_pylist(), table["sample_id"].to_pylist(), strict=True))
            return table

        return write_tables(path, self.schema, map(checked, blocks), replace=replace)
