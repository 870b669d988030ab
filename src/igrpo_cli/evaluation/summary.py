"""The figures of an evaluation, from its rollouts: accuracy with an interval, pass@k, maj@k, verdicts, lengths."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from igrpo_cli.algo.diagnostics import refinement_metrics
from igrpo_cli.algo.estimates import (
    avg_at_k,
    clustered_interval,
    maj_at_every_k,
    maj_at_k,
    paired_difference,
    pass_at_k,
    ratio_interval,
)
from igrpo_cli.errors import DamagedFileError
from igrpo_cli.records import VERDICTS, Rollout

PAPER_BENCHES = ("aime24", "aime25", "amc23", "math500", "gsm8k", "minerva")
"""The six benchmarks of the macro-average in the paper (arXiv 2602.09000)."""
MAX_SAMPLES_FOR_EVERY_K = 256
"""With more samples, only maj@k of all samples is computed. Those of subsets would take minutes."""


def by_problem(rollouts: Sequence[Rollout]) -> list[list[Rollout]]:
    """Return the rollouts as [problems, samples], problems in order of group id.

    Raises DamagedFileError when problems have different numbers of samples.
    """
    groups: defaultdict[int, list[Rollout]] = defaultdict(list)
    for rollout in rollouts:
        groups[rollout.group_id].append(rollout)
    sizes = {len(group) for group in groups.values()}
    if len(sizes) > 1:
        raise DamagedFileError(f"the problems of this evaluation have between {min(sizes)} and {max(sizes)} samples")
    return [groups[group_id] for group_id in sorted(groups)]


def correct_matrix(rollouts: Sequence[Rollout]) -> list[list[float]]:
    """Return 1.0 (correct) or 0.0 for each graded sample, by problem. Raises as `by_problem`."""
    return [[float(row.verdict == "correct") for row in graded(group)] for group in by_problem(rollouts)]


def graded(rollouts: Iterable[Rollout]) -> list[Rollout]:
    """Return the rollouts that could be graded. The others count in no accuracy."""
    return [rollout for rollout in rollouts if rollout.verdict != "ungraded"]


def majorities(
    votes: Sequence[Sequence[Hashable | None]], correct: Sequence[Sequence[float]], num_samples: int
) -> dict[str, float]:
    """Return {k: probability that the majority of k samples is correct}, mean over problems, for k to `num_samples`.

    A problem with fewer graded samples than k counts with all of them, and one without any does not count.
    """
    pairs = [(row, is_correct) for row, is_correct in zip(votes, correct, strict=True) if is_correct]
    if not pairs:
        return {}
    if num_samples > MAX_SAMPLES_FOR_EVERY_K:
        return {str(num_samples): _mean([maj_at_k(*pair) for pair in pairs])}
    every_k = [maj_at_every_k(*pair) for pair in pairs]
    return {str(k): _mean([values[min(k, len(values)) - 1] for values in every_k]) for k in range(1, num_samples + 1)}


def summarise(
    rollouts: Sequence[Rollout], bench: str, model: Mapping[str, Any], cons_at: Mapping[str, float] | None
) -> dict[str, Any]:
    """Return the `--json` object of an evaluation.

    `avg_at_k` is the mean accuracy of a sample, `ci95` its interval clustered by problem. `pass_at_k` (unbiased,
    arXiv 2107.03374), `maj_at_k` (votes for equal texts) and `cons_at_k` (votes for equal answers) use all k samples of
    a problem. `pass_at`, `maj_at` and `cons_at` have the values for smaller k too. `cons_at` is None when answers were
    not compared. Samples that could not be graded count in no accuracy: k is then the number of graded samples of the
    problem, and a problem without any does not count. The accuracies are None if nothing could be graded.
    """
    groups = by_problem(rollouts)
    num_samples = len(groups[0])
    correct = correct_matrix(rollouts)
    accuracies = [_mean(row) for row in correct if row]
    interval = clustered_interval(accuracies) if accuracies else None
    verdicts = Counter(rollout.verdict for rollout in rollouts)
    maj_at = majorities([[row.extracted_answer for row in graded(group)] for group in groups], correct, num_samples)
    pass_at = {
        str(k): _mean([pass_at_k(len(row), int(sum(row)), min(k, len(row))) for row in correct if row])
        for k in range(1, num_samples + 1)
        if accuracies
    }
    return {
        "bench": bench,
        "problems": len(groups),
        "samples": num_samples,
        "avg_at_k": avg_at_k(accuracies) if accuracies else None,
        "ci95": None if interval is None else list(interval),
        "pass_at_k": _last(pass_at),
        "pass_at": pass_at,
        "maj_at_k": _last(maj_at),
        "maj_at": maj_at,
        "cons_at_k": None if cons_at is None else _last(cons_at),
        "cons_at": None if cons_at is None else dict(cons_at),
        "verdicts": {verdict: verdicts[verdict] for verdict in VERDICTS},
        "mean_completion_tokens": _mean([len(rollout.completion_ids) for rollout in rollouts]),
        "truncated_fraction": _mean([rollout.finish_reason == "length" for rollout in rollouts]),
        "no_answer_fraction": verdicts["no_answer"] / len(rollouts),
        "ungraded_fraction": verdicts["ungraded"] / len(rollouts),
        "format_mean": _mean([rollout.reward_parts["format"] for rollout in rollouts]),
        "model": dict(model),
    }


def paired_figures(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return accuracy after minus before with interval and p-value (`paired_difference`), from [problems, samples].

    Problems without a graded sample on either side are left out. All values are None if no problem is left.
    """
    pairs = [pair for pair in zip(before, after, strict=True) if all(pair)]
    if not pairs:
        return {"difference": None, "difference_ci95": None, "p_value": None}
    paired = paired_difference([[_mean(row)] for row, _ in pairs], [[_mean(row)] for _, row in pairs])
    return {
        "difference": paired.difference,
        "difference_ci95": None if paired.ci95 is None else list(paired.ci95),
        "p_value": paired.p_value,
    }


def refinement_figures(refinements: Sequence[Rollout], samples: Sequence[Rollout]) -> dict[str, Any]:
    """Return the accuracy of the samples without draft, the difference, and the fix, break and copy rates.

    `draft_accuracy` is the accuracy of the graded drafts in the prompts, counted once for each refinement.
    `retry_rate` is the accuracy of new samples without draft where the draft was wrong: of the other samples of the
    problem, for each refinement in the fix rate. `fix_gain` is the fix rate minus the retry rate, and `fix_gain_ci95`
    its interval, clustered by problem. They are left out if refinements share a draft, as drafts that were chosen by
    what the other samples are would make the comparison unfair. A rate without refinements is left out.
    """
    drafts = {(draft.group_id, draft.sample_id): draft for draft in samples}
    rates = refinement_metrics(refinements, drafts, {draft.group_id: draft.group_id for draft in samples})
    shown = [drafts[row.group_id, row.draft_sample_id] for row in refinements if row.draft_sample_id is not None]
    shown_correct = [draft.verdict == "correct" for draft in graded(shown)]
    before, after = correct_matrix(samples), correct_matrix(refinements)
    accuracies = [_mean(row) for row in before if row]
    return {
        "bare_avg_at_k": avg_at_k(accuracies) if accuracies else None,
        **paired_figures(before, after),
        "draft_accuracy": _mean(shown_correct) if shown_correct else None,
        **{name.removeprefix("refine/"): value for name, value in rates.items()},
        **_fixed_and_retried(graded(refinements), drafts),
    }


def _fixed_and_retried(
    refinements: Sequence[Rollout], drafts: Mapping[tuple[int, int], Rollout]
) -> dict[str, float | list[float] | None]:
    samples: defaultdict[int, list[Rollout]] = defaultdict(list)
    for sample in graded(drafts.values()):
        samples[sample.group_id].append(sample)
    shown = Counter((row.group_id, row.draft_sample_id) for row in refinements)
    pairs: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
    for row in refinements if max(shown.values(), default=0) == 1 else ():
        draft = None if row.draft_sample_id is None else drafts[row.group_id, row.draft_sample_id]
        others = [each.verdict == "correct" for each in samples[row.group_id] if each is not draft]
        if draft is not None and draft.verdict not in ("correct", "ungraded") and others:
            pairs[row.group_id].append((float(row.verdict == "correct"), _mean(others)))
    if not pairs:
        return {}
    fixed, retried = (_mean([pair[side] for group in pairs.values() for pair in group]) for side in (0, 1))
    gains = [sum(fix - retry for fix, retry in group) for group in pairs.values()]
    interval = ratio_interval(gains, [len(group) for group in pairs.values()])
    return {
        "retry_rate": retried,
        "fix_gain": fixed - retried,
        "fix_gain_ci95": None if interval is None else list(interval),
    }


def macro_average(summaries: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the mean avg@k of the six benchmarks of the paper; None unless all six were evaluated."""
    measured = {summary["bench"]: summary.get("avg_at_k") for summary in summaries}
    values = [measured.get(bench) for bench in PAPER_BENCHES]
    known = [value for value in values if value is not None]
    return _mean(known) if len(known) == len(PAPER_BENCHES) else None


def _last(values: Mapping[str, float]) -> float | None:
    """Return the value of the largest k, the last key; None if there is none."""
    return list(values.values())[-1] if values else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
