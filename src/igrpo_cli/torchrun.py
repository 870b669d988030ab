"""Whether torchrun started this process, and which of its processes this one is."""

from __future__ import annotations

import os


def rank_and_size() -> tuple[int, int]:
    """(0, 1) for a process of its own. RANK alone says little: some schedulers set it for every process."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
