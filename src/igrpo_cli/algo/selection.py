"""Which draft of each group conditions its refinements (arXiv 2602.09000: d_hat = argmax_i R(d_i)).

What the paper leaves open is an argument: the strategy, who wins a tie, and what happens when every
draft scores zero. Groups are rows of a matrix: a shard holds whole groups of equal size.

Shape suffixes: _B groups, _N drafts of a group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from igrpo_cli.algo import AllZero, Strategy, Ties
from igrpo_cli.records import SelectionAction


@dataclass(frozen=True, slots=True)
class Choices:
    """One chosen draft per group, and what its group looked like; each array is [groups]."""

    indices: NDArray[np.int64]
    """Position of the chosen draft in its group."""
    num_tied: NDArray[np.int64]
    """Drafts of the group with the reward of the chosen one, itself included (1 = no tie)."""
    reward_mean: NDArray[np.float64]
    reward_std: NDArray[np.float64]
    """Sample standard deviation (ddof 1); 0 for a single draft and, exactly, for equal rewards."""


def choose_drafts(
    rewards_BN: ArrayLike, lengths_BN: ArrayLike, seeds_B: ArrayLike, strategy: Strategy, ties: Ties
) -> Choices:
    """The draft of each group that `strategy` takes.

    `best` takes the highest reward, `worst` the lowest, `random` any draft. `shuffled` and `none` take each
    group's best: the first shows it to another group (see `partners`), the second to nobody. Among equal
    rewards wins the `first` one, the `shortest` (the first of those), or a `random` one.

    lengths_BN counts tokens; seeds_B are uniform over [0, 2**63) as `derive_seed` makes them, one for each
    group. Raises `ValueError` for rewards that are not finite: an argmax over NaN would choose in silence.
    """
    rewards_BN, lengths_BN = np.asarray(rewards_BN, np.float64), np.asarray(lengths_BN)
    if rewards_BN.ndim != 2 or rewards_BN.shape[1] == 0 or rewards_BN.shape != lengths_BN.shape:
        raise ValueError(f"rewards {rewards_BN.shape} and lengths {lengths_BN.shape} must both be [groups, drafts]")
    if not np.isfinite(rewards_BN).all():
        raise ValueError("a reward is not finite")
    candidates_BN = _candidates(rewards_BN, strategy)
    if strategy == "random" or ties == "random":
        indices_B = _seeded_candidate(candidates_BN, np.asarray(seeds_B, np.int64))
    elif ties == "shortest":
        indices_B = np.where(candidates_BN, lengths_BN, np.inf).argmin(axis=1)
    else:
        indices_B = candidates_BN.argmax(axis=1)
    chosen_B1 = np.take_along_axis(rewards_BN, indices_B[:, None], axis=1)
    return Choices(indices_B, (rewards_BN == chosen_B1).sum(axis=1), *_mean_and_std(rewards_BN))


def choose_actions(rewards_BN: ArrayLike, strategy: Strategy, all_zero: AllZero) -> list[SelectionAction]:
    """Whether each group is refined with a draft, without one, or not at all.

    A group whose drafts earned nothing (no reward above 0) follows `all_zero`, whatever the strategy: `keep`
    conditions on a wrong draft as the published algorithm does, `bare` refines the problem alone, `drop`
    leaves it out. Under the strategy `none` the groups that would condition are refined bare.
    """
    earned_B = np.asarray(rewards_BN, np.float64).max(axis=1) > 0
    usual: SelectionAction = "bare" if strategy == "none" else "condition"
    at_zero: SelectionAction = usual if all_zero == "keep" else all_zero
    return [usual if earned else at_zero for earned in earned_B.tolist()]


def majority_draft(answers: Sequence[Hashable | None]) -> int:
    """Position of the first draft of a group with the group's most frequent answer; among equals the earliest wins.

    None is no vote; without any vote it is the first draft. No reward is asked for, and so no reference answer.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    return answers.index(max(votes, key=votes.__getitem__)) if votes else 0


def partners(actions: Sequence[SelectionAction], seed: int) -> tuple[NDArray[np.int64], list[SelectionAction]]:
    """For the strategy `shuffled`: the group whose best draft each group is shown, and the actions again.

    The groups that condition exchange drafts among themselves, none keeps its own; the others are their
    own partners. A lone conditioning group has nobody to exchange with, so its action becomes `bare`: shown
    its own draft it would count as the treatment that `shuffled` controls for. Partners follow from the
    seed and all groups of the iteration, so that the number of shards cannot change them.
    """
    partner_B = np.arange(len(actions))
    conditioning = np.flatnonzero([action == "condition" for action in actions])
    if len(conditioning) == 1:
        lone = int(conditioning[0])
        return partner_B, [*actions[:lone], "bare", *actions[lone + 1 :]]
    partner_B[conditioning] = conditioning[derangement(len(conditioning), seed)]
    return partner_B, list(actions)


def derangement(size: int, seed: int) -> NDArray[np.int64]:
    """A seeded permutation of range(size) that leaves nothing in place: one cycle through all of it.

    A single element has no derangement: it is given itself.
    """
    # Sorted raw bits: NumPy promises PCG64's bit stream to stay, but not its permutation method.
    order = np.argsort(np.random.PCG64(seed).random_raw(size), kind="stable")
    partner = np.empty(size, np.int64)
    partner[order] = np.roll(order, -1)
    return partner


def _candidates(rewards_BN: NDArray[np.float64], strategy: Strategy) -> NDArray[np.bool_]:
    if strategy == "random":
        return np.ones_like(rewards_BN, np.bool_)
    wanted_B1 = (rewards_BN.min if strategy == "worst" else rewards_BN.max)(axis=1, keepdims=True)
    candidates_BN: NDArray[np.bool_] = rewards_BN == wanted_B1
    return candidates_BN


def _seeded_candidate(candidates_BN: NDArray[np.bool_], seeds_B: NDArray[np.int64]) -> NDArray[np.int64]:
    # The seeds are hashes, so the remainder is uniform to within 2**-60.
    rank_B = seeds_B % candidates_BN.sum(axis=1)
    indices_B: NDArray[np.int64] = (candidates_BN.cumsum(axis=1) > rank_B[:, None]).argmax(axis=1)
    return indices_B


def _mean_and_std(rewards_BN: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    num_drafts = rewards_BN.shape[1]
    uniform_B = rewards_BN.max(axis=1) == rewards_BN.min(axis=1)
    # Rounding of the mean would give equal rewards like 0.1 a tiny spread.
    mean_B = np.where(uniform_B, rewards_BN[:, 0], rewards_BN.mean(axis=1))
    squares_B = ((rewards_BN - mean_B[:, None]) ** 2).sum(axis=1)
    return mean_B, np.sqrt(squares_B / max(num_drafts - 1, 1))
