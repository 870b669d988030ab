"""Every random number follows from the identity of what it is drawn for.

No generator is carried from row to row, so neither the number of shards, nor the order of work,
nor a restart can change a result, and there is no random state to save.
"""

from __future__ import annotations

import hashlib


def derive_seed(run_seed: int, *identity: str | int) -> int:
    """Seed in [0, 2**63) for the thing named by `identity`, for example `("draft", iteration, group_id, sample_id)`.

    SHA-256 over the parts with their lengths, so that ("ab", "c") and ("a", "bc") differ, and
    neighbouring identities have unrelated seeds.
    """
    digest = hashlib.sha256()
    for part in (run_seed, *identity):
        encoded = f"{type(part).__name__}:{part}".encode()
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
    return int.from_bytes(digest.digest()[:8], "big") >> 1
