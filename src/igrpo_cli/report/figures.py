"""The figures of a report: their curves, their meaning, and what is a bad sign in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal[
    "% of completions",
    "% of groups",
    "% of refinements",
    "reward",
    "tokens",
    "nats per token",
    "L2 norm",
    "loss",
    "seconds",
]


@dataclass(frozen=True, slots=True)
class Figure:
    """One plot: some metrics of an iteration, drawn over the run."""

    name: str
    """Name of its anchor in the page and of its PNG file."""
    title: str
    unit: Unit
    curves: dict[str, str]
    """Label by metric (`inspection.curves`)."""
    meaning: str
    bad_sign: str
    starts_at_zero: bool = True

    @property
    def is_share(self) -> bool:
        """True if the values are shares, drawn in per cent."""
        return self.unit.startswith("%")


def _by_prompt(metric: str) -> dict[str, str]:
    return {f"draft/{metric}": "without draft (drafts)", f"refine/{metric}": "with draft (refinements)"}


SECTIONS: dict[str, tuple[Figure, ...]] = {
    "Learning": (
        Figure(
            "accuracy",
            "Accuracy",
            "% of completions",
            _by_prompt("verdict_correct"),
            "Share of correct completions on the training problems of each iteration. The policy is used without a "
            "draft in its prompt; refinements see one.",
            "Only the accuracy with draft rises: the policy learns to use drafts, not to solve problems.",
        ),
        Figure(
            "reward",
            "Reward",
            "reward",
            _by_prompt("reward_mean"),
            "Mean reward of a completion. This is what the update maximises.",
            "Reward rises and accuracy does not: the policy exploits another part of the reward.",
            starts_at_zero=False,
        ),
        Figure(
            "entropy",
            "Entropy",
            "nats per token",
            _by_prompt("sampled_entropy"),
            "Entropy of the sampling distribution, estimated from the log-probs of the sampled tokens.",
            "An early fall towards zero: the completions of a group become equal, and there is nothing to compare.",
        ),
    ),
    "Drafts and refinements": (
        Figure(
            "reward-variance",
            "Groups with reward variance",
            "% of groups",
            _by_prompt("groups_with_gradient"),
            "Share of groups whose rewards differ. With the baseline of the own group, only these have a gradient.",
            "Near zero: the problems are too easy or too hard, or all refinements copy their draft.",
        ),
        Figure(
            "fixes",
            "Fix rate",
            "% of refinements",
            {"refine/fix_rate": "correct refinements of wrong drafts"},
            "Share of correct refinements among those of wrong drafts. When nearly all selected drafts are correct, "
            "few problems decide it.",
            "It stays near zero: refinement does not help, or the drafts mislead.",
        ),
        Figure(
            "breaks",
            "Break rate",
            "% of refinements",
            {"refine/break_rate": "wrong refinements of correct drafts"},
            "Share of wrong refinements among those of correct drafts.",
            "It rises, or stays above the fix rate: refinement does harm.",
        ),
        Figure(
            "copies",
            "Copy rate",
            "% of refinements",
            {"refine/copy_rate": "refinements equal to their draft"},
            "Share of refinements that repeat their draft word for word.",
            "It approaches 100 %: the completions of a group are equal, and learning from refinements stops.",
        ),
        Figure(
            "ties",
            "Ties",
            "% of groups",
            {"select/ties": "groups with several best drafts"},
            "Share of groups with other drafts of the same reward as the selected draft.",
            "Near 100 % from the start: the reward hardly separates drafts.",
        ),
    ),
    "Completions": (
        Figure(
            "length",
            "Length",
            "tokens",
            _by_prompt("completion_length_mean"),
            "Mean number of tokens per completion.",
            "A steady rise without more accuracy, or a collapse to a few tokens.",
        ),
        Figure(
            "truncated",
            "Truncated",
            "% of completions",
            _by_prompt("truncated"),
            "Share of completions that reached the length limit, often before their answer.",
            "More than a few per cent: raise max_completion_length. Otherwise the reward punishes length by chance.",
        ),
        Figure(
            "no-answer",
            "No answer",
            "% of completions",
            _by_prompt("verdict_no_answer"),
            "Share of completions without an answer that the grader can find.",
            "It stays high: the policy does not learn the format, or answer extraction does not fit the prompt.",
        ),
        Figure(
            "ungraded",
            "Ungraded",
            "% of completions",
            _by_prompt("verdict_ungraded"),
            "Share of completions on which the grader reached a limit. They are neither correct nor wrong.",
            "Anything but zero: filter the problems below by this verdict.",
        ),
    ),
    "Optimiser": (
        Figure(
            "gradient-norm",
            "Gradient norm",
            "L2 norm",
            {"grad_norm": "before clipping"},
            "Norm of the gradient, averaged over the optimiser steps of each iteration.",
            "Spikes, or a fall to zero (see groups with reward variance).",
        ),
        Figure(
            "loss",
            "Loss",
            "loss",
            {"loss": "policy loss"},
            "It does not measure progress. With one step per iteration and advantages against the own group, which sum "
            "to zero, it is zero up to rounding and KL; with update.baseline = drafts or pooled it is not.",
            "Large jumps with several steps per iteration: the policy moves far on the same samples.",
            starts_at_zero=False,
        ),
        Figure(
            "kl",
            "KL to the reference",
            "nats per token",
            {"kl": "k3 estimate"},
            "Distance from the initial policy. It is zero when beta is 0, because it is not measured then.",
            "A sudden rise: the policy forgets what it knew.",
        ),
        Figure(
            "mismatch",
            "Sampler–trainer mismatch",
            "nats per token",
            {
                "sampler_mismatch_mean/draft": "without draft (drafts)",
                "sampler_mismatch_mean/refine": "with draft (refinements)",
            },
            "Mean difference between the log-probs of the sampler and of the trainer, for the same tokens and policy. "
            "Refinements that are trained without their draft (update.refinement_prompt) have another prompt here.",
            "Above about 0.05 for the same prompt, or growing: the gradient belongs to another policy than that of the "
            "samples.",
        ),
    ),
    "Cost": (
        Figure(
            "seconds",
            "Time of an iteration",
            "seconds",
            {f"{stage}/seconds": stage for stage in ("draft", "refine", "update")},
            "Seconds of each stage, summed over its shards.",
            "A stage that takes longer in each iteration: completions get longer, or a machine gets slower.",
        ),
    ),
}
"""Figures by heading, in the order of the page."""
