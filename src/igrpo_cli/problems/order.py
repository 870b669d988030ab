"""Draw the problems of an iteration: from one source in epochs, or from several sources with weights.

A draw depends only on its position in the run, never on earlier iterations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from igrpo_cli.records import Problem
from igrpo_cli.seeds import derive_seed


@dataclass(frozen=True, slots=True)
class WeightedSource:
    """Holds the problems of one of several sources."""

    name: str
    weight: float
    """How often its problems are drawn, relative to those of the other sources."""
    places: list[int] = field(default_factory=list)
    """Indices of its problems among all problems."""


def weighted_sources(problems: Sequence[Problem], weights: Mapping[str, float]) -> list[WeightedSource]:
    """Return the problems of each source in `weights`; the id of a problem begins with the name of its source."""
    sources = {name: WeightedSource(name, weight) for name, weight in weights.items()}
    for place, problem in enumerate(problems if weights else ()):
        sources[problem.problem_id.partition("/")[0]].places.append(place)
    return [source for source in sources.values() if source.places]


def shares_of(sources: Sequence[WeightedSource]) -> list[float]:
    """Return the fraction of all draws that is of each source."""
    rates = [source.weight * len(source.places) for source in sources]
    return [rate / sum(rates) for rate in rates]


def problems_of_iteration(
    num_problems: int,
    iteration: int,
    problems_per_iteration: int,
    run_seed: int,
    sources: Sequence[WeightedSource] = (),
    *,
    is_shuffled: bool = True,
) -> list[int]:
    """Return the indices of the problems of `iteration` (from 0), in the order of their group ids.

    Every epoch is a permutation of all problems. The iterations are consecutive slices of the concatenated epochs, so
    each problem occurs once per epoch, and a slice may continue in the next epoch. With `sources`, each source has
    epochs of its own. They are interleaved evenly: a part of the draws has of each source its share, up to one or two.
    With `is_shuffled` False, an epoch has the problems in their own order.

    The result depends only on the arguments. Raises ValueError when a number is out of range.
    """
    if min(num_problems, problems_per_iteration) < 1 or iteration < 0:
        raise ValueError("needs at least one problem, one problem per iteration, and an iteration from 0")
    start, end = iteration * problems_per_iteration, (iteration + 1) * problems_per_iteration
    if not sources:
        return _drawn(num_problems, start, end, run_seed if is_shuffled else None)
    turns = _turns(sources, end)
    chosen = np.empty(end - start, dtype=int)
    for number, source in enumerate(sources):
        before, here = int(np.count_nonzero(turns[:start] == number)), turns[start:] == number
        until, seed = before + int(np.count_nonzero(here)), run_seed if is_shuffled else None
        drawn = _drawn(len(source.places), before, until, seed, source.name)
        chosen[here] = [source.places[index] for index in drawn]
    return [int(index) for index in chosen]


def _turns(sources: Sequence[WeightedSource], num_draws: int) -> np.ndarray:
    """Return which source each draw is of. The draws of a source are equally far apart, and begin at half a distance.

    A source with rate r has its draws at (k + 1/2) / r, and all draws are sorted by that. Sources earlier in the list
    come first where two are equal.
    """
    # Among the first n draws a source with share s has at most s (n + m / 2) + 1/2, where m is the number of sources.
    counts = [int(share * (num_draws + len(sources))) + 1 for share in shares_of(sources)]
    rates = [source.weight * len(source.places) for source in sources]
    times = np.concatenate([(np.arange(count) + 0.5) / rate for count, rate in zip(counts, rates, strict=True)])
    numbers = np.repeat(np.arange(len(sources)), counts)
    turns: np.ndarray = numbers[np.lexsort((numbers, times))]
    return turns[:num_draws]


def _drawn(size: int, start: int, end: int, run_seed: int | None, *source: str) -> list[int]:
    """Return the draws from `start` to `end` of a source of `size` problems. No seed means that none is shuffled."""
    chosen: list[int] = []
    while start < end:
        epoch, offset = divmod(start, size)
        order = np.arange(size)
        if run_seed is not None:
            order = _permutation(size, derive_seed(run_seed, "epoch", epoch, *source))
        part = order[offset : offset + end - start]
        chosen.extend(part.tolist())
        start += len(part)
    return chosen


def _permutation(size: int, seed: int) -> np.ndarray:
    # NumPy guarantees the bit stream of PCG64 across versions, but not the output of Generator.permutation.
    return np.argsort(np.random.PCG64(seed).random_raw(size), kind="stable")
