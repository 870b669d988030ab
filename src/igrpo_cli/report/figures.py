"""Which figures a report has, what each means and what in it is a bad sign."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal[
    "% of completions",
    "% of groups",
    "% of refinements",
    "reward",
    "tokens",
    "nats a token",
    "L2 norm",
    "loss",
    "seconds",
]


@dataclass(frozen=True, slots=True)
class Figure:
    """One plot: some metrics of an iteration, drawn over the run."""

    name: str
    """Of its anchor in the page and of its PNG."""
    title: str
    unit: Unit
    curves: dict[str, str]
    """Label by metric (`inspection.curves`)."""
    meaning: str
    bad_sign: str
    starts_at_zero: bool = True

    @property
    def is_share(self) -> bool:
        """Whether its values are shares, drawn in per cent."""
        return self.unit.startswith("%")


def _bare_and_conditioned(metric: str) -> dict[str, str]:
    return {f"draft/{metric}": "bare (drafts)", f"refine/{metric}": "conditioned (refinements)"}


SECTIONS: dict[str, tuple[Figure, ...]] = {
    "Learning": (
        Figure(
            "accuracy",
            "Accuracy",
            "% of completions",
            _bare_and_conditioned("verdict_correct"),
            "Share of completions with a correct answer, on the training problems of each iteration. "
            "Bare is what the policy will be used for; conditioned sees a draft.",
            "Conditioned rises while bare stays: it learns to use drafts, not to solve.",
        ),
        Figure(
            "reward",
            "Reward",
            "reward",
            _bare_and_conditioned("reward_mean"),
            "Mean reward of a completion, as recorded with it: this is what the update maximises.",
            "Reward rises and accuracy does not: another part of the reward is being exploited.",
            starts_at_zero=False,
        ),
        Figure(
            "entropy",
            "Entropy",
            "nats a token",
            _bare_and_conditioned("sampled_entropy"),
            "How undecided the sampler is, estimated from the log-probs of the tokens it drew.",
            "A fall towards zero early on: samples of a group become alike and nothing is left to compare.",
        ),
    ),
    "Drafts and refinements": (
        Figure(
            "gradient",
            "Groups with a gradient",
            "% of groups",
            _bare_and_conditioned("groups_with_gradient"),
            "Share of groups whose rewards differ. Only these teach anything.",
            "Near zero: problems are too easy, too hard, or the refinements all copy their draft.",
        ),
        Figure(
            "fixes",
            "Fix rate",
            "% of refinements",
            {"refine/fix_rate": "right, of those of wrong drafts"},
            "What becomes of wrong drafts. Where nearly every best draft is right it rests on few problems.",
            "It stays near zero: refining does not help, or what it is shown misleads it.",
        ),
        Figure(
            "breaks",
            "Break rate",
            "% of refinements",
            {"refine/break_rate": "wrong, of those of right drafts"},
            "What becomes of right drafts.",
            "It rises, or stays above the fix rate: refining does harm.",
        ),
        Figure(
            "copies",
            "Copy rate",
            "% of refinements",
            {"refine/copy_rate": "refinements equal to their draft"},
            "Share of refinements that repeat the draft they saw word for word.",
            "It approaches 100 %: groups are uniform and learning from refinements stops.",
        ),
        Figure(
            "ties",
            "Ties",
            "% of groups",
            {"select/ties": "groups with several best drafts"},
            "Share of groups in which the selected draft was not the only best one.",
            "Near 100 % from the start: the reward hardly tells drafts apart.",
        ),
    ),
    "Completions": (
        Figure(
            "length",
            "Length",
            "tokens",
            _bare_and_conditioned("completion_length_mean"),
            "Mean tokens of a completion.",
            "A steady climb without accuracy, or a collapse to a few tokens.",
        ),
        Figure(
            "truncated",
            "Truncated",
            "% of completions",
            _bare_and_conditioned("truncated"),
            "Share of completions cut at the length limit, before they could answer.",
            "More than a few per cent: raise max_completion_length, or rewards punish length by chance.",
        ),
        Figure(
            "no-answer",
            "No answer",
            "% of completions",
            _bare_and_conditioned("verdict_no_answer"),
            "Share of completions in which no answer was found.",
            "It stays high: the format is not learnt, or the extraction does not fit the prompt.",
        ),
        Figure(
            "ungraded",
            "Ungraded",
            "% of completions",
            _bare_and_conditioned("verdict_ungraded"),
            "Share of completions that the grader gave up on; they count as neither right nor wrong in a verdict.",
            "Anything but zero deserves a look: filter the problems below by this verdict.",
        ),
    ),
    "Optimiser": (
        Figure(
            "gradient-norm",
            "Gradient norm",
            "L2 norm",
            {"grad_norm": "before clipping"},
            "Norm of the gradient of each iteration's optimiser steps, averaged.",
            "Spikes, or a fall to zero (see groups with a gradient).",
        ),
        Figure(
            "loss",
            "Loss",
            "loss",
            {"loss": "policy loss"},
            "Advantages of a group add up to zero, so with one step an iteration it is zero but for rounding or KL; "
            "it is no measure of progress.",
            "Large jumps with several steps an iteration: the policy moves far on the same samples.",
            starts_at_zero=False,
        ),
        Figure(
            "kl",
            "KL to the reference",
            "nats a token",
            {"kl": "k3 estimate"},
            "Distance from the initial policy; zero throughout where beta is 0, since it is not measured then.",
            "A sudden rise: the policy leaves what it knew.",
        ),
        Figure(
            "mismatch",
            "Sampler–trainer mismatch",
            "nats a token",
            {
                "sampler_mismatch_mean/draft": "bare (drafts)",
                "sampler_mismatch_mean/refine": "conditioned (refinements)",
            },
            "Mean difference between the log-probs of sampler and trainer for the same tokens and policy.",
            "Above about 0.05, or growing: the gradient is of another policy than the one that sampled.",
        ),
    ),
    "Cost": (
        Figure(
            "seconds",
            "Time of an iteration",
            "seconds",
            {f"{stage}/seconds": stage for stage in ("draft", "refine", "update")},
            "Seconds of each stage, those of all its shards added up.",
            "A stage that grows from iteration to iteration: completions get longer, or a machine gets slower.",
        ),
    ),
}
"""By heading, in the order of the page."""
