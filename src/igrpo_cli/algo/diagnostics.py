"""Metrics of the rollouts of one iteration. They show whether iGRPO learns from drafts or copies them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from igrpo_cli.records import EXTERNAL_GROUP, VERDICTS, Rollout, Selection

DraftKey = tuple[int, int]
"""The (group_id, sample_id) of a draft."""


def rollout_metrics(rollouts: Sequence[Rollout], prefix: str) -> dict[str, float]:
    """Return reward, verdicts, lengths and sampled entropy of the rollouts of one stage, named `<prefix>/…`.

    `sampled_entropy` is the mean of -log p of the sampled tokens in nats, an unbiased estimate of the entropy of the
    distribution that they are sampled from. A stage without rollouts gives {}. Completions that could not be graded
    count in lengths, entropy and `verdict_ungraded`, and in nothing else.
    """
    if not rollouts:
        return {}
    graded = [rollout for rollout in rollouts if rollout.verdict != "ungraded"]
    lengths = np.array([len(rollout.completion_ids) for rollout in rollouts])
    logprob_sum = sum(float(np.sum(rollout.sampling_logprobs, dtype=np.float64)) for rollout in rollouts)
    metrics = {}
    if graded:
        metrics = {
            "reward_mean": _mean([rollout.reward for rollout in graded]),
            "reward_std": float(np.std([rollout.reward for rollout in graded])),
            "groups_with_gradient": _mean([len(set(rewards)) > 1 for rewards in _rewards_by_group(graded).values()]),
        }
    metrics |= {
        "completion_length_mean": float(lengths.mean()),
        "completion_length_max": float(lengths.max()),
        "truncated": _mean([rollout.finish_reason == "length" for rollout in rollouts]),
        "sampled_entropy": -logprob_sum / max(int(lengths.sum()), 1),
    }
    for part in graded[0].reward_parts if graded else ():
        metrics[f"{part}_mean"] = _mean([rollout.reward_parts[part] for rollout in graded])
    for verdict in VERDICTS:
        of_verdict = rollouts if verdict == "ungraded" else graded
        if of_verdict:
            metrics[f"verdict_{verdict}"] = _mean([rollout.verdict == verdict for rollout in of_verdict])
    return {f"{prefix}/{name}": value for name, value in metrics.items()}


def selection_metrics(selections: Sequence[Selection]) -> dict[str, float]:
    """Return the fractions of ties, groups without draft and dropped groups, and the mean reward of chosen drafts."""
    if not selections:
        return {}
    metrics = {
        "select/ties": _mean([selection.num_tied > 1 for selection in selections]),
        "select/bare": _mean([selection.action == "bare" for selection in selections]),
        "select/dropped": _mean([selection.action == "drop" for selection in selections]),
    }
    if any(each.num_refinements is not None for each in selections):
        metrics["select/refinements_mean"] = _mean([each.num_refinements or 0 for each in selections])
    # The reward of an external draft is not known.
    rewards = [each.draft_reward for each in selections if each.draft_group_id != EXTERNAL_GROUP]
    return {**metrics, "select/draft_reward_mean": _mean(rewards)} if rewards else metrics


def refinement_metrics(
    refinements: Sequence[Rollout],
    drafts: Mapping[DraftKey, Rollout],
    draft_groups: Mapping[int, int],
    external_drafts: Mapping[int, str] | None = None,
) -> dict[str, float]:
    """Return how refinements differ from the drafts in their prompts.

    `fix_rate` is the fraction of correct refinements of wrong drafts, `break_rate` the fraction of wrong refinements of
    correct drafts, and `copy_rate` the fraction of refinements that equal their draft, except for white space at the
    ends. Pairs of which one could not be graded count in `copy_rate` alone. A rate without refinements is left out.
    `draft_groups` maps each group to the group of its draft. `external_drafts` are the external drafts by group, whose
    verdict is not known, so they count in `copy_rate` alone, too.
    """
    with_draft = [refinement for refinement in refinements if refinement.draft_sample_id is not None]
    external = external_drafts or {}
    pairs = [
        (drafts[draft_groups[refinement.group_id], refinement.draft_sample_id], refinement)
        for refinement in with_draft
        if refinement.draft_sample_id is not None and refinement.group_id not in external
    ]
    texts = [(draft.completion, refined.completion) for draft, refined in pairs]
    texts += [(external[row.group_id], row.completion) for row in with_draft if row.group_id in external]
    graded = [pair for pair in pairs if all(rollout.verdict != "ungraded" for rollout in pair)]
    fixed = [refined.verdict == "correct" for draft, refined in graded if draft.verdict != "correct"]
    broken = [refined.verdict != "correct" for draft, refined in graded if draft.verdict == "correct"]
    copied = [draft.strip() == refined.strip() for draft, refined in texts]
    rates = {"refine/fix_rate": fixed, "refine/break_rate": broken, "refine/copy_rate": copied}
    return {name: _mean(values) for name, values in rates.items() if values}


def _rewards_by_group(rollouts: Sequence[Rollout]) -> dict[int, list[float]]:
    groups: defaultdict[int, list[float]] = defaultdict(list)
    for rollout in rollouts:
        groups[rollout.group_id].append(rollout.reward)
    return groups


def _mean(values: Sequence[float] | Sequence[bool]) -> float:
    return float(np.mean(values))
