"""What k samples per problem say about a policy: averages, intervals, pass@k, maj@k, paired differences.

Problems are the unit of chance: samples of one problem are alike, so every interval treats a problem's
samples as one cluster. Intervals speak of the population that the problems were drawn from.

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
"""Beyond this, numbers of subsets overflow a float."""
NO_SPREAD = 1e-12
"""Means and differences of means that lie this close are equal but for rounding."""
LEAST_P_VALUE = 1e-12
"""Below it, one minus a probability is rounding."""


class Interval(NamedTuple):
    """Lower and upper end of a confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Accuracy after minus accuracy before, on the same problems."""

    difference: float
    ci95: Interval | None
    """None for a single problem: one cluster says nothing about its spread."""
    p_value: float | None
    """Two-sided, of no difference; `LEAST_P_VALUE` stands for all below it. None for a single problem."""


def avg_at_k(correct_Pk: ArrayLike) -> float:
    """Mean over problems of the mean over their k samples: accuracy of one sample (avg@k, mean@k)."""
    return float(_problem_means(correct_Pk).mean())


def clustered_interval(correct: ArrayLike, confidence: float = 0.95) -> Interval | None:
    """Confidence interval of the mean of `correct`: [P, k] values in [0, 1], or [P] values per problem.

    Wilson's score interval (Wilson 1927) with the effective number of samples p(1-p) / Var(mean), where
    Var(mean) is the variance of the P problem means over P, and with Student's t of P - 1 degrees of
    freedom. It agrees with mean ± t * standard error for many problems, stays within [0, 1], and keeps
    its width where all problems are solved or none is. None for a single problem.
    """
    means_P = _problem_means(correct)
    num_problems = len(means_P)
    if means_P.min() < 0 or means_P.max() > 1:
        raise ValueError("an interval of accuracies needs values in [0, 1]")
    if num_problems < 2:
        return None
    mean = float(means_P.mean())
    num_effective = float(num_problems)
    if np.ptp(means_P) > NO_SPREAD:
        variance = float(means_P.var(ddof=1)) / num_problems
        # Values in [0, 1] cannot vary more than p(1-p), so P problems are worth at least P samples.
        num_effective = max(mean * (1 - mean) / variance, num_effective)
    return _wilson(mean, num_effective, t_quantile(confidence, num_problems - 1))


def ratio_interval(totals_P: ArrayLike, counts_P: ArrayLike, confidence: float = 0.95) -> Interval | None:
    """Confidence interval of sum(totals) / sum(counts), as of rewards per completion or nats per token.

    Problems are the unit of chance: Student's t with the variance of the ratio estimate (Cochran, Sampling
    Techniques, 1977, chapter 6), P / (P - 1) * sum((total - ratio * count)^2) / sum(counts)^2. With equal counts
    that is mean ± t * standard error of the problem means. Problems that count nothing are left out; None where
    fewer than two are left.
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
    """Unbiased chance that k samples hold a correct one, 1 - C(n-c, k) / C(n, k) (arXiv 2107.03374, eq. 1).

    Of one problem, with n >= k samples of which c are correct. Exact: no product of rounded factors.
    """
    if not 0 <= num_correct <= num_samples or not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} of {num_samples} samples with {num_correct} correct is undefined")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def maj_at_k(answers: Sequence[Hashable | None], correct: Sequence[float], k: int | None = None) -> float:
    """Expected correctness of the most frequent answer among k of a problem's n samples (default: all n).

    Exact over all C(n, k) subsets, each as likely, with ties shared equally among the answers that lead.
    Answers are one vote when they are equal: a caller that knows more equivalences passes canonical forms.
    None is no vote; a subset without votes scores 0. An answer is as correct as its samples on average.
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
    """maj@1 to maj@n of one problem, as `maj_at_k` gives them one by one, in the time of one of them."""
    num_samples = len(answers)
    last = maj_at_k(answers, correct)
    if num_samples > MAX_MAJORITY_SAMPLES:
        raise ValueError(f"maj@k over subsets needs at most {MAX_MAJORITY_SAMPLES} samples, not {num_samples}")
    classes = _classes(answers, correct)
    value = _value_by_votes(classes, num_samples)
    return [*(_mean_over_subsets(value, classes, num_samples, k) for k in range(1, num_samples)), last]


def paired_difference(before_Pk: ArrayLike, after_Pk: ArrayLike) -> PairedDifference:
    """Accuracy after minus before over the same P problems; the numbers of samples may differ.

    Student's t over the P differences of problem means (arXiv 2411.00640: pairing removes what both have in
    common), ends kept within [-1, 1]. Where all differences are equal, t has no spread to go by: the interval
    then allows for the share of problems that may behave otherwise and yet never showed (at most
    1 - 0.05**(1/P)), and p is that of the sign-flip test, 2**(1-P).
    """
    before_P, after_P = _problem_means(before_Pk), _problem_means(after_Pk)
    if before_P.shape != after_P.shape:
        raise ValueError(f"{len(before_P)} problems before, {len(after_P)} after: only the same can be compared")
    differences_P = after_P - before_P
    num_problems = len(differences_P)
    difference = float(differences_P.mean())
    if num_problems < 2:
        return PairedDifference(difference, None, None)
    if np.ptp(differences_P) < NO_SPREAD:
        unseen = 1 - 0.05 ** (1 / num_problems)
        ends = Interval(difference - unseen * (1 + difference), difference + unseen * (1 - difference))
        p_value = 1.0 if abs(difference) < NO_SPREAD else 2.0 ** (1 - num_problems)
        return PairedDifference(difference, ends, p_value)
    error = float(differences_P.std(ddof=1)) / math.sqrt(num_problems)
    margin = t_quantile(0.95, num_problems - 1) * error
    p_value = max(LEAST_P_VALUE, 1 - t_central_mass(abs(difference) / error, num_problems - 1))
    ends = Interval(max(-1.0, difference - margin), min(1.0, difference + margin))
    return PairedDifference(difference, ends, p_value)


def t_central_mass(t: float, degrees: int) -> float:
    """P(|T| <= t) of Student's t with a whole number of degrees of freedom, t >= 0.

    The finite sums of Abramowitz & Stegun 26.7.3 (odd) and 26.7.4 (even).
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
    """The t with P(|T| <= t) = `confidence`, in (0, 1): 1.96 for 0.95 and many degrees of freedom."""
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


def _wilson(mean: float, num: float, z: float) -> Interval:
    centre = (mean + z * z / (2 * num)) / (1 + z * z / num)
    margin = z / (1 + z * z / num) * math.sqrt(mean * (1 - mean) / num + z * z / (4 * num * num))
    return Interval(max(0.0, min(centre - margin, mean)), min(1.0, max(centre + margin, mean)))


_Classes = Sequence[tuple[int, float]]
"""(votes, share of them that is correct) of each answer."""


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
    """From the sums of `_value_by_votes` to the mean over all k-subsets, filled up with samples that are no vote."""
    without_vote = num_samples - sum(votes for votes, _ in classes)
    ways = np.array([math.comb(without_vote, k - size) for size in range(k + 1)], np.float64)
    return float(value[: k + 1] @ ways) / math.comb(num_samples, k)


def _value_by_votes(classes: _Classes, k: int) -> NDArray[np.float64]:
    """[k + 1]: sum over all subsets of 0 to k votes of the mean value of the answers that lead there."""
    most_votes = min(max((votes for votes, _ in classes), default=0), k)
    value = np.zeros(k + 1)
    for lead in range(1, most_votes + 1):
        value += _value_led_with(lead, classes, k)
    return value


def _value_led_with(lead: int, classes: _Classes, k: int) -> NDArray[np.float64]:
    """[k + 1]: of subsets of 0 to k votes whose leading answers have `lead` of them, as `_value_by_votes`.

    A generating function, one answer after the other: `ways[t, s]` counts the choices of s samples in
    which t answers have exactly `lead` votes and none more; `value[t, s]` sums the values of those t.
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
