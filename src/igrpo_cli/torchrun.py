"""The rank of this process, if torchrun started it."""

from __future__ import annotations

import os


def rank_and_size() -> tuple[int, int]:
    """Return rank and number of ranks; (0, 1) for a process that torchrun did not start.

    RANK alone is not enough, because some schedulers set it for every process.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
