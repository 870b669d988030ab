"""Count what an iteration samples and trains on, for `--dry-run`."""

from __future__ import annotations

from igrpo_cli.config import RunConfig


def iteration_arithmetic(config: RunConfig) -> dict[str, int]:
    """Return the counts of one iteration: prompts, completions, maximum tokens, optimiser steps.

    Where solving and refining iterations alternate, they are those of a refining one.
    """
    config = config.at(1)
    prompts = config.data.problems_sampled
    refines = "refine" in config.stages()
    drafts = prompts * config.draft.num_generations
    refinements = prompts * config.refine.num_generations if refines else 0
    # At most: there is one of each draft that refinements see. Those by the judge count in its own budget.
    critiques = prompts if refines and config.critique.by == "policy" else 0
    sampled = {"drafts": drafts, "refinements": refinements, "both": drafts + refinements}[config.update.train_on]
    trained_on = sampled * config.data.problems_per_iteration // prompts  # At most: spare problems only replace others.
    steps = config.update.num_minibatches * config.update.num_epochs
    return {
        "prompts": prompts,
        "drafts": drafts,
        "refinements": refinements,
        "critiques": critiques,
        "completions": drafts + refinements,
        "max_tokens_sampled": drafts * config.draft.max_completion_length
        + refinements * config.refine.max_completion_length
        + critiques * config.critique.max_completion_length,
        "completions_trained_on": trained_on,
        "optimizer_steps": steps,
        "completions_per_optimizer_step": trained_on // config.update.num_minibatches,
    }


def describe_arithmetic(config: RunConfig) -> str:
    """Return the counts of one iteration as two lines of text, and where iterations alternate those of both kinds."""
    if config.update.train_on == "alternate":
        kinds = ((0, "iterations 0, 2, …: "), (1, "iterations 1, 3, …: "))
        return "\n".join(f"{name}{describe_arithmetic(config.at(iteration))}" for iteration, name in kinds)
    counts = iteration_arithmetic(config)
    draft, refine = config.draft, config.refine
    sampled = f"{counts['prompts']} prompts x {draft.num_generations} drafts"
    if counts["refinements"]:
        mean = " on average" if config.select.allocation == "adaptive" else ""
        sampled += f" + {counts['prompts']} prompts x {refine.num_generations} refinements{mean}"
    critiques = f" and {counts['critiques']:,} critiques" if counts["critiques"] else ""
    return (
        f"sample: {sampled} = {counts['completions']:,} completions{critiques}, "
        f"at most {counts['max_tokens_sampled']:,} tokens\n"
        f"train: {counts['completions_trained_on']:,} completions ({config.update.train_on}), "
        f"{counts['optimizer_steps']} optimiser steps of {counts['completions_per_optimizer_step']:,} completions"
    )
