"""From the rollouts of an evaluation to its figures: accuracy with an interval, pass@k, maj@k, verdicts, lengths."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from igrpo_cli.algo.diagnostics import refinement_metrics
from igrpo_cli.algo.estimates import avg_at_k, clustered_interval, maj_at_k, pass_at_k
from igrpo_cli.console import percent, table
from igrpo_cli.errors import DamagedFileError
from igrpo_cli.records import VERDICTS, Rollout


def correct_matrix(rollouts: Sequence[Rollout]) -> list[list[float]]:
    """[problems, samples] of 1.0 (correct) and 0.0, problems in order of their group ids.

    Raises DamagedFileError where problems have different numbers of samples.
    """
    groups: defaultdict[int, list[float]] = defaultdict(list)
    for rollout in rollouts:
        groups[rollout.group_id].append(float(rollout.verdict == "correct"))
    sizes = {len(group) for group in groups.values()}
    if len(sizes) > 1:
        raise DamagedFileError(f"the problems of this evaluation have between {min(sizes)} and {max(sizes)} samples")
    return [groups[group_id] for group_id in sorted(groups)]


def summarise(rollouts: Sequence[Rollout], bench: str, model: dict[str, Any]) -> dict[str, Any]:
    """The `--json` object of an evaluation.

    `avg_at_k` is the accuracy of one sample, `ci95` its interval clustered by problem, `pass_at_k` (unbiased) and
    `maj_at_k` are of all k samples of a problem; `pass_at` has every smaller power of two as well.
    """
    correct = correct_matrix(rollouts)
    num_samples = len(correct[0])
    answers: defaultdict[int, list[str | None]] = defaultdict(list)
    for rollout in rollouts:
        answers[rollout.group_id].append(rollout.extracted_answer)
    majority = [maj_at_k(answers[group], right) for group, right in zip(sorted(answers), correct, strict=True)]
    interval = clustered_interval(correct)
    verdicts = Counter(rollout.verdict for rollout in rollouts)
    lengths = [len(rollout.completion_ids) for rollout in rollouts]
    pass_at = {k: _pass_at(correct, k) for k in _powers_of_two(num_samples)}
    return {
        "bench": bench,
        "problems": len(correct),
        "samples": num_samples,
        "avg_at_k": avg_at_k(correct),
        "ci95": None if interval is None else list(interval),
        "pass_at_k": pass_at[num_samples],
        "pass_at": {str(k): value for k, value in pass_at.items()},
        "maj_at_k": sum(majority) / len(majority),
        "verdicts": {verdict: verdicts[verdict] for verdict in VERDICTS},
        "mean_completion_tokens": sum(lengths) / len(lengths),
        "truncated_fraction": sum(rollout.finish_reason == "length" for rollout in rollouts) / len(rollouts),
        "format_mean": sum(rollout.reward_parts["format"] for rollout in rollouts) / len(rollouts),
        "model": model,
    }


def conditioned_figures(refinements: Sequence[Rollout], bare: Sequence[Rollout]) -> dict[str, Any]:
    """What refining did to the bare samples: their accuracy and the fix, break and copy rates."""
    drafts = {(draft.group_id, draft.sample_id): draft for draft in bare}
    rates = refinement_metrics(refinements, drafts, {draft.group_id: draft.group_id for draft in bare})
    return {"bare_avg_at_k": avg_at_k(correct_matrix(bare))} | {
        name.removeprefix("refine/"): value for name, value in rates.items()
    }


def summary_text(summary: dict[str, Any]) -> str:
    """The figures as a table for a terminal."""
    low, high = summary["ci95"] or (None, None)
    k = summary["samples"]
    rows = [
        (f"avg@{k}", percent(summary["avg_at_k"]), f"95 % interval {percent(low)} to {percent(high)}"),
        (f"pass@{k}", percent(summary["pass_at_k"]), "at least one of k samples is right"),
        (f"maj@{k}", percent(summary["maj_at_k"]), "the most frequent answer is right"),
        ("truncated", percent(summary["truncated_fraction"]), "completions cut at eval.max_gen_toks"),
    ]
    rows += [(verdict, str(number), "completions") for verdict, number in summary["verdicts"].items()]
    for name in ("bare_avg_at_k", "fix_rate", "break_rate", "copy_rate"):
        if name in summary:
            rows.append((name.replace("_", " ").replace(" at k", ""), percent(summary[name]), ""))
    tokens = f"{summary['mean_completion_tokens']:.0f} tokens a completion"
    heading = f"{summary['bench']}: {summary['problems']} problems x {k} samples, {tokens}"
    return f"{heading}\n{summary['model']['name']} ({summary['model']['policy']})\n\n{table(('', '', ''), rows)}"


def _pass_at(correct: Sequence[Sequence[float]], k: int) -> float:
    return sum(pass_at_k(len(row), int(sum(row)), k) for row in correct) / len(correct)


def _powers_of_two(limit: int) -> list[int]:
    powers = [1 << exponent for exponent in range(limit.bit_length()) if 1 << exponent < limit]
    return [*powers, limit]
