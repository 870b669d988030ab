"""Estimates from k samples per problem: averages, confidence intervals, pass@k, maj@k, paired differences.

Samples of one problem are correlated, so every interval treats the samples of a problem as one cluster. Intervals are
about the population that the problems are drawn from.

Shape suffixes: _P problems, _k samples of a problem.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_MAJORITY_SAMPLES = 1000
"""Maximum samples for maj@k, beyond which the number of subsets overflows a float."""
ROUNDING = 1e-12
"""Means and differences of means that differ by less are equal except for rounding."""
MIN_P_VALUE = 1e-12
"""Smallest p-value, below which one minus a probability is a rounding error."""


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Accuracy after minus accuracy before, on the same problems."""

    difference: float
    ci95: Interval | None
    """95 % confidence interval; None for a single problem, whose variance is unknown."""
    p_value: float | None
    """Two-sided p-value of no difference, at least `MIN_P_VALUE`; None for a single problem."""


def avg_at_k(correct_Pk: ArrayLike) -> float:
    """Return the mean over problems of the mean over their k samples: the accuracy of one sample (avg@k, mean@k)."""
    return float(_problem_means(correct_Pk).mean())


def effective_sample_size(log_weights: ArrayLike) -> float:
    """Return (sum w)^2 / (n sum w^2) of n importance weights w, given their logarithms: a share of the n samples.

    It is 1 for equal weights, and 1 / n where one weight exceeds the sum of all others by far. The largest weight is
    divided out, so that no weight overflows. NaN for no weights.
    """
    logs = np.asarray(log_weights, np.float64)
    if logs.size == 0:
        return math.nan
    weights = np.exp(logs - logs.max())
    return float(weights.sum() ** 2 / (logs.size * (weights**2).sum()))


def clustered_interval(correct: ArrayLike, confidence: float = 0.95) -> Interval | None:
    """Return a confidence interval of the mean of `correct`: [P, k] values in [0, 1], or [P] means per problem.

    This is Wilson's score interval (Wilson 1927) with the effective number of samples p(1-p) / Var(mean), where
    Var(mean) is the variance of the P problem means divided by P, and with Student's t of P - 1 degrees of freedom. For
    many problems it agrees with mean ± t * standard error. It stays within [0, 1], and is not empty if all problems are
    solved or none is. None for a single problem. Raises ValueError for values outside [0, 1].
    """
    means_P = _problem_means(correct)
    num_problems = len(means_P)
    if means_P.min() < 0 or means_P.max() > 1:
        raise ValueError("an interval of accuracies needs values in [0, 1]")
    if num_problems < 2:
        return None
    mean = float(means_P.mean())
    num_effective = float(num_problems)
    if np.ptp(means_P) > ROUNDING:
        variance = float(means_P.var(ddof=1)) / num_problems
        # The variance of values in [0, 1] is at most p(1-p), so P problems count as at least P samples.
        num_effective = max(mean * (1 - mean) / variance, num_effective)
    return wilson(mean, num_effective, t_quantile(confidence, num_problems - 1))


def ratio_interval(totals_P: ArrayLike, counts_P: ArrayLike, confidence: float = 0.95) -> Interval | None:
    """Return a confidence interval of sum(totals) / sum(counts), for example of rewards per completion.

    It uses Student's t and the variance of the ratio estimate over problems (Cochran, Sampling Techniques, 1977,
    chapter 6), P / (P - 1) * sum((total - ratio * count)^2) / sum(counts)^2. With equal counts this is mean ± t *
    standard error of the problem means. Problems with count 0 are left out. None if fewer than two are left.
    """
    totals_P, counts_P = np.asarray(totals_P, np.float64), np.asarray(counts_P, np.float64)
    totals_P, counts_P = totals_P[counts_P > 0], counts_P[counts_P > 0]
    num_problems = len(totals_P)
    if num_problems < 2:
        return None
    total_count = float(counts_P.sum())
    ratio = float(totals_P.sum()) / total_count
    squares = float(np.square(totals_P - ratio * counts_P).sum())
    error = math.sqrt(num_problems / (num_problems - 1) * squares) / total_count
    margin = t_quantile(confidence, num_problems - 1) * error
    return Interval(ratio - margin, ratio + margin)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Return an unbiased estimate of pass@k of one problem, 1 - C(n-c, k) / C(n, k) (arXiv 2107.03374, eq. 1).

    n >= k is the number of samples, and c of them are correct. The binomials are exact integers. Raises ValueError for
    other numbers.
    """
    if not 0 <= num_correct <= num_samples or not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} of {num_samples} samples with {num_correct} correct is undefined")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def maj_at_k(answers: Sequence[Hashable | None], correct: Sequence[float], k: int | None = None) -> float:
    """Return the expected correctness of the most frequent answer among k of a problem's n samples (default: all n).

    The value is exact: the mean over all C(n, k) subsets, in which tied answers share the result equally. Equal answers
    are votes for the same answer; a caller that knows more equivalences passes canonical forms. None is no vote, and a
    subset without votes counts 0. The correctness of an answer is the mean of its samples. Raises ValueError for other
    numbers, or if n exceeds `MAX_MAJORITY_SAMPLES` and k is less than n.
    """
    num_samples = len(answers)
    k = num_samples if k is None else k
    if len(correct) != num_samples or not 1 <= k <= num_samples:
        raise ValueError(f"maj@{k} of {num_samples} answers and {len(correct)} verdicts is undefined")
    if k < num_samples > MAX_MAJORITY_SAMPLES:
        raise ValueError(f"maj@{k} over subsets needs at most {MAX_MAJORITY_SAMPLES} samples, not {num_samples}")
    classes = _classes(answers, correct)
    if k == num_samples:
        return _value_of_leaders(classes)
    return _mean_over_subsets(_value_by_votes(classes, k), classes, num_samples, k)


def maj_at_every_k(answers: Sequence[Hashable | None], correct: Sequence[float]) -> list[float]:
    """Return maj@1 to maj@n of one problem, each as from `maj_at_k`, in the time of one of them."""
    num_samples = len(answers)
    last = maj_at_k(answers, correct)
    if num_samples > MAX_MAJORITY_SAMPLES:
        raise ValueError(f"maj@k over subsets needs at most {MAX_MAJORITY_SAMPLES} samples, not {num_samples}")
    classes = _classes(answers, correct)
    value = _value_by_votes(classes, num_samples)
    return [*(_mean_over_subsets(value, classes, num_samples, k) for k in range(1, num_samples)), last]


def paired_difference(before_Pk: ArrayLike, after_Pk: ArrayLike) -> PairedDifference:
    """Return the accuracy after minus before on the same P problems. The numbers of samples may differ.

    It uses Student's t over the P differences of problem means (arXiv 2411.00640: pairing removes the variance that
    both have in common), with ends limited to [-1, 1]. If all differences are equal, their variance is 0. The interval
    then allows for the fraction of other problems that P problems may miss, at most 1 - 0.05**(1/P), and the p-value is
    that of the sign-flip test, 2**(1-P). Raises ValueError for different numbers of problems.
    """
    before_P, after_P = _problem_means(before_Pk), _problem_means(after_Pk)
    if before_P.shape != after_P.shape:
        raise ValueError(f"{len(before_P)} problems before, {len(after_P)} after: only the same can be compared")
    differences_P = after_P - before_P
    num_problems = len(differences_P)
    difference = float(differences_P.mean())
    if num_problems < 2:
        return PairedDifference(difference, None, None)
    if np.ptp(differences_P) < ROUNDING:
        unseen = 1 - 0.05 ** (1 / num_problems)
        ends = Interval(difference - unseen * (1 + difference), difference + unseen * (1 - difference))
        p_value = 1.0 if abs(difference) < ROUNDING else 2.0 ** (1 - num_problems)
        return PairedDifference(difference, ends, p_value)
    error = float(differences_P.std(ddof=1)) / math.sqrt(num_problems)
    margin = t_quantile(0.95, num_problems - 1) * error
    p_value = max(MIN_P_VALUE, 1 - t_central_mass(abs(difference) / error, num_problems - 1))
    ends = Interval(max(-1.0, difference - margin), min(1.0, difference + margin))
    return PairedDifference(difference, ends, p_value)


def t_central_mass(t: float, degrees: int) -> float:
    """Return P(|T| <= t), t >= 0, for Student's t with an integer number of degrees of freedom.

    Finite sums of Abramowitz & Stegun 26.7.3 (odd) and 26.7.4 (even).
    """
    angle = math.atan2(t, math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = cosine if odd else 1.0, 0.0
    for step in range(1 + odd, degrees, 2):
        total += term
        term *= cosine * cosine * step / (step + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


@cache
def t_quantile(confidence: float, degrees: int) -> float:
    """Return t with P(|T| <= t) = `confidence`, which is in (0, 1): 1.96 for 0.95 and many degrees of freedom."""
    if not 0 < confidence < 1 or degrees < 1:
        raise ValueError(f"Student's t has no quantile for {confidence} and {degrees} degrees of freedom")
    low, high = 0.0, 1.0
    while t_central_mass(high, degrees) < confidence:
        low, high = high, high * 2
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if t_central_mass(middle, degrees) < confidence else (low, middle)
    return high


def _problem_means(correct: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(correct, np.float64)
    if values.ndim not in (1, 2) or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"needs finite values [problems] or [problems, samples], not of shape {values.shape}")
    return values if values.ndim == 1 else values.mean(axis=1)


def wilson(mean: float, num: float, z: float) -> Interval:
    """Return Wilson's score interval of a mean in [0, 1] of `num` samples, with `z` standard errors on each side."""
    centre = (mean + z * z / (2 * num)) / (1 + z * z / num)
    margin = z / (1 + z * z / num) * math.sqrt(mean * (1 - mean) / num + z * z / (4 * num * num))
    return Interval(max(0.0, min(centre - margin, mean)), min(1.0, max(centre + margin, mean)))


_Classes = Sequence[tuple[int, float]]
"""Votes of each answer, and the fraction of them that is correct."""


def _classes(answers: Sequence[Hashable | None], correct: Sequence[float]) -> _Classes:
    verdicts: dict[Hashable, list[float]] = {}
    for answer, verdict in zip(answers, correct, strict=True):
        if answer is not None:
            verdicts.setdefault(answer, []).append(float(verdict))
    return [(len(values), sum(values) / len(values)) for values in verdicts.values()]


def _value_of_leaders(classes: _Classes) -> float:
    lead = max((votes for votes, _ in classes), default=0)
    leaders = [value for votes, value in classes if votes == lead]
    return sum(leaders) / len(leaders) if leaders else 0.0


def _mean_over_subsets(value: NDArray[np.float64], classes: _Classes, num_samples: int, k: int) -> float:
    """Return the mean over all k-subsets from the sums of `_value_by_votes`, including samples without vote."""
    without_vote = num_samples - sum(votes for votes, _ in classes)
    ways = np.array([math.comb(without_vote, k - size) for size in range(k + 1)], np.float64)
    return float(value[: k + 1] @ ways) / math.comb(num_samples, k)


def _value_by_votes(classes: _Classes, k: int) -> NDArray[np.float64]:
    """Return [k + 1]: for 0 to k votes, the sum over all subsets of the mean value of their most frequent answers."""
    max_votes = min(max((votes for votes, _ in classes), default=0), k)
    value = np.zeros(k + 1)
    for lead in range(1, max_votes + 1):
        value += _value_led_with(lead, classes, k)
    return value


def _value_led_with(lead: int, classes: _Classes, k: int) -> NDArray[np.float64]:
    """Return [k + 1] as `_value_by_votes`, for subsets whose most frequent answers have `lead` votes each.

    A generating function, built answer by answer: `ways[t, s]` counts the choices of s samples in which t answers have
    exactly `lead` votes and none has more; `value[t, s]` is the sum of the values of these t answers.
    """
    ways = np.zeros((k // lead + 1, k + 1))
    value = np.zeros_like(ways)
    ways[0, 0] = 1.0
    for votes, worth in classes:
        next_ways, next_value = np.zeros_like(ways), np.zeros_like(ways)
        for taken in range(min(votes, lead - 1) + 1):
            number = math.comb(votes, taken)
            next_ways[:, taken:] += number * ways[:, : k + 1 - taken]
            next_value[:, taken:] += number * value[:, : k + 1 - taken]
        if votes >= lead:
            number = math.comb(votes, lead)
            next_ways[1:, lead:] += number * ways[:-1, : k + 1 - lead]
            next_value[1:, lead:] += number * (value + worth * ways)[:-1, : k + 1 - lead]
        ways, value = next_ways, next_value
    tied = np.arange(1, len(value))
    mean_value: NDArray[np.float64] = (value[1:] / tied[:, None]).sum(axis=0)
    return mean_value
