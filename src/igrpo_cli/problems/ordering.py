"""Which problems an iteration works on: shuffled epochs, cut into consecutive slices."""

from __future__ import annotations

import numpy as np

from igrpo_cli.seeds import derive_seed


def problems_of_iteration(num_problems: int, iteration: int, problems_per_iteration: int, run_seed: int) -> list[int]:
    """Indices into the problems for `iteration` (from 0), in the order of their group ids.

    Epoch e is a permutation of all problems; iterations are consecutive slices of the epochs laid end
    to end, so every problem comes once per epoch, and a slice may cross from one epoch into the next.
    Each iteration follows from the run seed alone: nothing is remembered from the ones before.
    """
    if min(num_problems, problems_per_iteration) < 1 or iteration < 0:
        raise ValueError("needs at least one problem, one problem per iteration, and an iteration from 0")
    chosen: list[int] = []
    position = iteration * problems_per_iteration
    end = position + problems_per_iteration
    while position < end:
        epoch, offset = divmod(position, num_problems)
        part = _permutation(num_problems, derive_seed(run_seed, "epoch", epoch))[offset : offset + end - position]
        chosen.extend(part.tolist())
        position += len(part)
    return chosen


def iterations_per_epoch(num_problems: int, problems_per_iteration: int) -> int:
    """Iterations until every problem was met once; the last of them may already take from the next epoch."""
    return -(-num_problems // problems_per_iteration)


def _permutation(size: int, seed: int) -> np.ndarray:
    # Sorting raw bits rather than Generator.permutation: NumPy promises the bit stream of PCG64
    # for ever, but not what its Generator makes of it.
    return np.argsort(np.random.PCG64(seed).random_raw(size), kind="stable")
