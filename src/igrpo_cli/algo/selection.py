"""Selection of the draft that the refinements of a group see (arXiv 2602.09000: d_hat = argmax_i R(d_i)).

Arguments decide what the paper leaves open: the strategy, the choice among equal rewards, and what happens if every
draft has reward 0. Groups are the rows of a matrix, since all groups of a shard have the same size.

Shape suffixes: _B groups, _N drafts of a group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import ArrayLike, NDArray

from igrpo_cli.algo import AT_RANDOM, AllZero, Strategy, Ties
from igrpo_cli.records import SelectionAction


@dataclass(frozen=True, slots=True)
class Choices:
    """The chosen draft of each group, and statistics of its group. Each array is [groups]."""

    indices: NDArray[np.int64]
    """Index of the chosen draft in its group."""
    num_tied: NDArray[np.int64]
    """Number of drafts of the group with the reward of the chosen one, itself included (1 = no tie)."""
    reward_mean: NDArray[np.float64]
    """Mean over the drafts of the group."""
    reward_std: NDArray[np.float64]
    """Sample standard deviation (ddof 1); exactly 0 for a single draft and for equal rewards."""


def choose_drafts(
    rewards_BN: ArrayLike,
    lengths_BN: ArrayLike,
    seeds_B: ArrayLike,
    strategy: Strategy,
    ties: Ties,
    is_graded_BN: ArrayLike = True,
    is_wrong_BN: ArrayLike = False,
) -> Choices:
    """Choose a draft of each group.

    `best` chooses the highest reward, `worst` the lowest, `random` any draft. `wrong` chooses a random one of the
    drafts where `is_wrong_BN` is True, and `balanced` a random wrong or a random other draft, each with probability
    1/2. `opposite` chooses a random wrong draft where at least half of the graded drafts are right, else a random right
    one. Where a group has no such draft, they choose as `random`. `shuffled`, `external` and `none` choose the best
    draft of each group: `shuffled` shows it to another group (see `partners`), the others do not show it.
    `shuffled_wrong` chooses as `wrong` and shows it to another group (see `wrong_partners`). Among equal rewards,
    `ties` chooses the first draft, the first of the shortest ones, or a random one; it has no effect on the strategies
    that choose at random.

    Drafts where `is_graded_BN` is False are not chosen, are not wrong, and do not count in the statistics, unless no
    draft of the group is graded.

    `lengths_BN` are tokens; `seeds_B` are uniform in [0, 2**63), as from `derive_seed`, one per group. Raises
    ValueError for rewards that are not finite, over which an argmax is undefined.
    """
    rewards_BN, lengths_BN = np.asarray(rewards_BN, np.float64), np.asarray(lengths_BN)
    if rewards_BN.ndim != 2 or rewards_BN.shape[1] == 0 or rewards_BN.shape != lengths_BN.shape:
        raise ValueError(f"rewards {rewards_BN.shape} and lengths {lengths_BN.shape} must both be [groups, drafts]")
    if not np.isfinite(rewards_BN).all():
        raise ValueError("a reward is not finite")
    is_graded_BN = np.broadcast_to(np.asarray(is_graded_BN, np.bool_), rewards_BN.shape)
    is_graded_BN = is_graded_BN | ~is_graded_BN.any(axis=1, keepdims=True)
    seeds_B = np.asarray(seeds_B, np.int64)
    if strategy in AT_RANDOM:
        is_wrong_BN = np.broadcast_to(np.asarray(is_wrong_BN, np.bool_), rewards_BN.shape)
        candidates_BN = _random_candidates(is_graded_BN, is_wrong_BN, seeds_B, strategy)
    else:
        candidates_BN = _extreme_candidates(rewards_BN, is_graded_BN, strategy)
    if strategy in AT_RANDOM or ties == "random":
        indices_B = _seeded_candidate(candidates_BN, seeds_B)
    elif ties == "shortest":
        indices_B = np.where(candidates_BN, lengths_BN, np.inf).argmin(axis=1)
    else:
        indices_B = candidates_BN.argmax(axis=1)
    chosen_B1 = np.take_along_axis(rewards_BN, indices_B[:, None], axis=1)
    num_tied_B = ((rewards_BN == chosen_B1) & is_graded_BN).sum(axis=1)
    return Choices(indices_B, num_tied_B, *_mean_and_std(rewards_BN, is_graded_BN))


def choose_actions(
    rewards_BN: ArrayLike, strategy: Strategy, all_zero: AllZero, is_graded_BN: ArrayLike = True
) -> list[SelectionAction]:
    """Return for each group whether it is refined with a draft (`condition`), without (`bare`) or not (`drop`).

    For groups without reward (see `is_rewarded`), `all_zero` decides: `keep` shows a draft all the same, as the
    published algorithm does, `bare` refines without draft, and `drop` does not refine the group. The strategy `none`
    refines all groups without draft that are not dropped.
    """
    usual: SelectionAction = "bare" if strategy == "none" else "condition"
    at_zero: SelectionAction = usual if all_zero == "keep" else all_zero
    return [usual if rewarded else at_zero for rewarded in is_rewarded(rewards_BN, is_graded_BN).tolist()]


def is_rewarded(rewards_BN: ArrayLike, is_graded_BN: ArrayLike = True) -> NDArray[np.bool_]:
    """Return True [groups] where a graded draft of the group has a reward above 0."""
    graded_BN = np.where(np.asarray(is_graded_BN, np.bool_), np.asarray(rewards_BN, np.float64), -np.inf)
    rewarded_B: NDArray[np.bool_] = graded_BN.max(axis=1) > 0
    return rewarded_B


def majority_draft(answers: Sequence[Hashable | None]) -> int:
    """Return the index of the first draft with the most frequent answer of the group; of equals, the earliest.

    None is no vote. Without votes the result is the first draft. This needs no reward and no reference answer.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    return answers.index(max(votes, key=votes.__getitem__)) if votes else 0


def partners(actions: Sequence[SelectionAction], seed: int) -> tuple[NDArray[np.int64], list[SelectionAction]]:
    """Return for the strategy `shuffled` the group whose best draft each group sees, and the actions.

    Groups with the action `condition` exchange their drafts, and none keeps its own. The others are their own partners.
    A single group with this action has no partner, so its action becomes `bare`: with its own draft it would not be a
    control. Partners depend on the seed and all groups of the iteration, and so not on the number of shards.
    """
    partner_B = np.arange(len(actions))
    with_draft = np.flatnonzero([action == "condition" for action in actions])
    if len(with_draft) == 1:
        single = int(with_draft[0])
        return partner_B, [*actions[:single], "bare", *actions[single + 1 :]]
    partner_B[with_draft] = with_draft[derangement(len(with_draft), seed)]
    return partner_B, list(actions)


def wrong_partners(
    actions: Sequence[SelectionAction], has_wrong_B: ArrayLike, seed: int
) -> tuple[NDArray[np.int64], list[SelectionAction]]:
    """Return for the strategy `shuffled_wrong` the group whose wrong draft each group sees, and the actions.

    All groups lie on a seeded circle. A group with the action `condition` sees the draft of the next other group where
    `has_wrong_B` is True: each wrong draft is shown once if every group has one, several times if few have. Where no
    other group has one, the action becomes `bare`. Groups with other actions are their own partners.
    """
    partner_B, after = np.arange(len(actions)), list(actions)
    order = _seeded_order(len(actions), seed)
    donors = np.flatnonzero(np.asarray(has_wrong_B, np.bool_)[order])
    for place, group in enumerate(order.tolist()):
        if actions[group] != "condition":
            continue
        donor = order[donors[np.searchsorted(donors, place, side="right") % len(donors)]] if len(donors) else group
        partner_B[group] = donor
        if donor == group:
            after[group] = "bare"
    return partner_B, after


def allocate(num_right_B: ArrayLike, num_wrong_B: ArrayLike, budget: int, maximum: int, seed: int) -> NDArray[np.int64]:
    """Return the number of refinements of each group: those that give most groups with reward variance in expectation.

    From the drafts of a group, its solve rate q has the distribution Beta(right + 1/2, wrong + 1/2), which is that of
    Jeffreys' prior. A group of g refinements has reward variance with probability 1 - E[q^g] - E[(1 - q)^g]. One more
    refinement adds less than the one before, so the budget is spent one by one where it adds most. Of four drafts, two
    refinements have variance with probability 0.42 if two drafts are right, 0.35 if one or three are, and 0.15 if none
    is. Of equal gains, groups without refinements come first, then a seeded order.

    A group has no refinements or from 2 to `maximum`, since a single one has no variance. A group whose drafts are all
    right has none. At most `budget` refinements are given.
    """
    right_B, wrong_B = (np.asarray(each, np.int64).tolist() for each in (num_right_B, num_wrong_B))
    sizes_B = np.zeros(len(right_B), np.int64)
    ranks = np.argsort(_seeded_order(len(right_B), seed)).tolist()
    queue = [
        (-_gain(right, wrong, 0), False, ranks[group], group)
        for group, (right, wrong) in enumerate(zip(right_B, wrong_B, strict=True))
        if wrong or not right
    ]
    heapify(queue)
    while queue and budget:
        _, _, rank, group = heappop(queue)
        step = 1 if sizes_B[group] else 2
        if step > budget:
            continue
        sizes_B[group] += step
        budget -= step
        if sizes_B[group] < maximum:
            gain = _gain(right_B[group], wrong_B[group], int(sizes_B[group]))
            heappush(queue, (-gain, True, rank, group))
    return sizes_B


def _gain(num_right: int, num_wrong: int, size: int) -> float:
    """Return by how much a refinement after `size` others raises the probability of reward variance.

    It is E[q^size (1 - q)] + E[q (1 - q)^size]. The first two refinements together have the gain of size 1.
    """
    a, b = num_right + 0.5, num_wrong + 0.5
    others_right, others_wrong = b / (a + b), a / (a + b)
    for number in range(max(size, 1)):
        others_right *= (a + number) / (a + b + 1 + number)
        others_wrong *= (b + number) / (a + b + 1 + number)
    # Gains that are equal in exact arithmetic must be equal here.
    return round((others_right + others_wrong) / (1 if size else 2), 12)


def derangement(size: int, seed: int) -> NDArray[np.int64]:
    """Return a seeded permutation of range(size) without fixed points: one cycle through all elements.

    A single element has no derangement and stays in place.
    """
    order = _seeded_order(size, seed)
    partner = np.empty(size, np.int64)
    partner[order] = np.roll(order, -1)
    return partner


def _seeded_order(size: int, seed: int) -> NDArray[np.int64]:
    # NumPy guarantees that the bit stream of PCG64 does not change, but not its permutation method.
    return np.argsort(np.random.PCG64(seed).random_raw(size), kind="stable")


def _extreme_candidates(
    rewards_BN: NDArray[np.float64], is_graded_BN: NDArray[np.bool_], strategy: Strategy
) -> NDArray[np.bool_]:
    """Return the graded drafts with the lowest reward of their group for `worst`, else with the highest."""
    if strategy == "worst":
        wanted_B1 = np.where(is_graded_BN, rewards_BN, np.inf).min(axis=1, keepdims=True)
    else:
        wanted_B1 = np.where(is_graded_BN, rewards_BN, -np.inf).max(axis=1, keepdims=True)
    candidates_BN: NDArray[np.bool_] = (rewards_BN == wanted_B1) & is_graded_BN
    return candidates_BN


def _random_candidates(
    is_graded_BN: NDArray[np.bool_], is_wrong_BN: NDArray[np.bool_], seeds_B: NDArray[np.int64], strategy: Strategy
) -> NDArray[np.bool_]:
    """Return the drafts of each group that one is drawn from."""
    if strategy == "random":
        return is_graded_BN
    is_wrong_BN = is_wrong_BN & is_graded_BN
    wanted_BN = is_wrong_BN
    if strategy == "balanced":
        # The highest bit of a seed is a coin. The remainder that draws among candidates depends on it by 2**-60.
        shows_wrong_B1 = (seeds_B >= 2**62)[:, None]
        wanted_BN = np.where(shows_wrong_B1, is_wrong_BN, is_graded_BN & ~is_wrong_BN)
    elif strategy == "opposite":
        shows_wrong_B1 = 2 * is_wrong_BN.sum(axis=1, keepdims=True) <= is_graded_BN.sum(axis=1, keepdims=True)
        wanted_BN = np.where(shows_wrong_B1, is_wrong_BN, is_graded_BN & ~is_wrong_BN)
    candidates_BN: NDArray[np.bool_] = np.where(wanted_BN.any(axis=1, keepdims=True), wanted_BN, is_graded_BN)
    return candidates_BN


def _seeded_candidate(candidates_BN: NDArray[np.bool_], seeds_B: NDArray[np.int64]) -> NDArray[np.int64]:
    # The seeds are hashes, so the remainder is uniform to within 2**-60.
    rank_B = seeds_B % candidates_BN.sum(axis=1)
    indices_B: NDArray[np.int64] = (candidates_BN.cumsum(axis=1) > rank_B[:, None]).argmax(axis=1)
    return indices_B


def _mean_and_std(
    rewards_BN: NDArray[np.float64], counts_BN: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and sample deviation over the drafts that count, at least one in each group."""
    num_drafts_B = counts_BN.sum(axis=1)
    least_B = np.where(counts_BN, rewards_BN, np.inf).min(axis=1)
    # The rounding error of the mean would give equal rewards like 0.1 a tiny deviation.
    is_uniform_B = least_B == np.where(counts_BN, rewards_BN, -np.inf).max(axis=1)
    mean_B = np.where(is_uniform_B, least_B, (rewards_BN * counts_BN).sum(axis=1) / num_drafts_B)
    squares_B = (((rewards_BN - mean_B[:, None]) ** 2) * counts_BN).sum(axis=1)
    return mean_B, np.sqrt(squares_B / np.maximum(num_drafts_B - 1, 1))
