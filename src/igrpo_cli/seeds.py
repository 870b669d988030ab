"""Derive the seed of every random number from the identity of the item that it is drawn for.

No generator passes from one row to the next. The number of shards, the order of the work and restarts therefore never
change a result, and there is no random state to save.
"""

from __future__ import annotations

import hashlib


def derive_seed(run_seed: int, *identity: str | int) -> int:
    """Return the seed, in [0, 2**63), of the item `identity`, for example `("draft", iteration, group_id, sample_id)`.

    The seed is a SHA-256 over the parts, each with its type and length: ("ab", "c") and ("a", "bc") give different
    seeds, and similar identities give unrelated ones.
    """
    digest = hashlib.sha256()
    for part in (run_seed, *identity):
        encoded = f"{type(part).__name__}:{part}".encode()
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
    return int.from_bytes(digest.digest()[:8], "big") >> 1
