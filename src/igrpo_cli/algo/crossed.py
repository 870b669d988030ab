"""Estimates over seeds and problems: every seed of an arm is evaluated on the same problems.

The mean over both has two sources of variance that more samples do not reduce: training with another seed gives
another policy, and other problems are easier or harder. The intervals here count both.

Shape suffixes: _S seeds, _P problems, _T evaluated policies, in order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from igrpo_cli.algo.estimates import (
    MIN_P_VALUE,
    ROUNDING,
    Interval,
    PairedDifference,
    clustered_interval,
    paired_difference,
    t_central_mass,
    t_quantile,
    wilson,
)


class MeanVariance(NamedTuple):
    """The variance of a mean over seeds and problems, and the degrees of freedom of its estimate."""

    variance: float
    degrees: int


def crossed_variance(values_SP: ArrayLike) -> MeanVariance:
    """Return the variance of the mean of `values` in the crossed random-effects model.

    The model is value = mean + seed + problem + rest, each part independent with its own variance (Searle, Casella,
    McCulloch, Variance Components, 1992, section 4.7; the two-way clustered variance of Cameron, Gelbach, Miller,
    J. Bus. Econ. Stat. 2011, and the pigeonhole model of Owen, Ann. Appl. Stat. 2007, have the same form). With the
    mean squares of seeds, problems and rest, the variance is (MS_S + MS_P - MS_rest) / (S P). A part whose estimate
    is negative counts as 0. The degrees of freedom are Satterthwaite's (Biometrics Bulletin 1946), rounded down.
    Raises ValueError for fewer than two seeds or problems.
    """
    values_SP = np.asarray(values_SP, np.float64)
    if values_SP.ndim != 2 or min(values_SP.shape) < 2 or not np.isfinite(values_SP).all():
        raise ValueError(f"needs finite values of at least two seeds and two problems, not of shape {values_SP.shape}")
    seeds, problems = values_SP.shape
    mean, mean_S, mean_P = values_SP.mean(), values_SP.mean(axis=1), values_SP.mean(axis=0)
    rest = float(np.square(values_SP - mean_S[:, None] - mean_P + mean).sum()) / ((seeds - 1) * (problems - 1))
    parts = [(problems * float(mean_S.var(ddof=1)), seeds - 1), (seeds * float(mean_P.var(ddof=1)), problems - 1)]
    # Equal mean squares, as of a single value other than 0, must not be told apart by their rounding.
    kept = [(square, degrees) for square, degrees in parts if square > rest and not math.isclose(square, rest)]
    # One part that is kept contains the rest already; of two, the rest is counted once too often; of none, never.
    kept += [(rest * (1 - len(kept)), (seeds - 1) * (problems - 1))]
    total = sum(square for square, _ in kept)
    spread = sum(square * square / degrees for square, degrees in kept)
    return MeanVariance(total / values_SP.size, max(1, math.floor(total * total / spread)) if spread else 1)


def crossed_interval(values_SP: ArrayLike, confidence: float = 0.95) -> Interval | None:
    """Return a confidence interval of the mean of values in [0, 1], over seeds and problems.

    This is Wilson's score interval as in `clustered_interval`, with the variance of `crossed_variance`. With one seed
    it is the interval over problems alone, and with one problem there is none.
    """
    values_SP = np.asarray(values_SP, np.float64)
    if values_SP.shape[0] < 2 or values_SP.shape[1] < 2:
        return clustered_interval(values_SP.mean(axis=0), confidence)
    mean = float(values_SP.mean())
    variance, degrees = crossed_variance(values_SP)
    if variance < ROUNDING**2 or not 0 < mean < 1:
        return clustered_interval(values_SP.mean(axis=0), confidence)
    # The variance of values in [0, 1] is at most p(1-p): the mean is known as well as from one sample at least.
    return wilson(mean, max(mean * (1 - mean) / variance, 1.0), t_quantile(confidence, degrees))


def crossed_difference(before_SP: ArrayLike, after_SP: ArrayLike) -> PairedDifference:
    """Return the mean of after minus before, paired by seed and problem, with the variance of `crossed_variance`.

    With one seed, and where all differences are equal, it is `paired_difference` over problems. Raises ValueError for
    different shapes.
    """
    before_SP, after_SP = np.asarray(before_SP, np.float64), np.asarray(after_SP, np.float64)
    if before_SP.shape != after_SP.shape:
        raise ValueError(f"{before_SP.shape} values before, {after_SP.shape} after: only the same can be compared")
    differences_SP = after_SP - before_SP
    if min(differences_SP.shape) < 2 or np.ptp(differences_SP) < ROUNDING:
        return paired_difference(before_SP.mean(axis=0), after_SP.mean(axis=0))
    difference = float(differences_SP.mean())
    variance, degrees = crossed_variance(differences_SP)
    error = math.sqrt(variance)
    margin = t_quantile(0.95, degrees) * error
    p_value = max(MIN_P_VALUE, 1 - t_central_mass(abs(difference) / error, degrees)) if error else MIN_P_VALUE
    return PairedDifference(
        difference, Interval(max(-1.0, difference - margin), min(1.0, difference + margin)), p_value
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values corrected for their number (Holm, Scand. J. Stat. 1979), in the same order.

    Rejecting all that are below 5 % then rejects a true hypothesis in at most 5 % of such families, however the tests
    depend on each other.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def mean_weights(positions_T: ArrayLike) -> NDArray[np.float64]:
    """Return the weights whose sum with values at `positions` is the mean of the curve through them (trapezoids).

    A single position has weight 1.
    """
    positions_T = np.asarray(positions_T, np.float64)
    if len(positions_T) == 1:
        return np.ones(1)
    halves = np.diff(positions_T) / 2 / (positions_T[-1] - positions_T[0])
    weights = np.zeros(len(positions_T))
    weights[:-1] += halves
    weights[1:] += halves
    return weights


def weights_at(positions_T: ArrayLike, place: float) -> NDArray[np.float64]:
    """Return the weights whose sum with values at `positions` is the curve through them at `place`.

    Before the first and after the last position the curve is flat.
    """
    positions_T = np.asarray(positions_T, np.float64)
    units_TT = np.eye(len(positions_T))
    return np.array([np.interp(place, positions_T, unit_T) for unit_T in units_TT])


def first_crossing(positions_T: ArrayLike, values_T: ArrayLike, level: float) -> float | None:
    """Return the first position at which the curve through `values` reaches `level`; None if it never does."""
    positions_T, values_T = np.asarray(positions_T, np.float64), np.asarray(values_T, np.float64)
    reached = np.flatnonzero(values_T >= level - ROUNDING)
    if not len(reached):
        return None
    first = int(reached[0])
    if first == 0:
        return float(positions_T[0])
    before, after = values_T[first - 1], values_T[first]
    share = (level - before) / (after - before)
    return float(positions_T[first - 1] + min(share, 1.0) * (positions_T[first] - positions_T[first - 1]))
