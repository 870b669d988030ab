"""Split the groups of a stage into shards, and those of a shard into blocks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Blocks:
    """Represents the blocks of a stage. A block is a batch of groups: the unit of sampling and of resumption.

    Blocks hold consecutive groups, and shards hold consecutive blocks.
    """

    num_groups: int
    """Number of groups of all shards."""
    size: int
    """Maximum number of groups of a block."""
    num_shards: int

    def of_shard(self, shard: int) -> range:
        """Return the numbers of the blocks of one shard."""
        return block_range(-(-self.num_groups // self.size), shard, self.num_shards)

    def groups(self, block: int) -> range:
        """Return the ids of the groups of one block."""
        return range(block * self.size, min((block + 1) * self.size, self.num_groups))

    def groups_of_shard(self, shard: int) -> range:
        """Return the ids of the groups of one shard."""
        blocks = self.of_shard(shard)
        return range(blocks.start * self.size, min(blocks.stop * self.size, self.num_groups))


def block_range(num_blocks: int, shard: int, num_shards: int) -> range:
    """Return the blocks of one shard: contiguous, with sizes that differ by at most one, empty where blocks are few."""
    if not 0 <= shard < num_shards or num_blocks < 0:
        raise ValueError(f"no shard {shard} of {num_shards} over {num_blocks} blocks")
    return range(shard * num_blocks // num_shards, (shard + 1) * num_blocks // num_shards)
