"""Size a run before it starts (completions, tokens, blocks and disk), and refuse one that cannot work."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from igrpo_cli.config import RunConfig
from igrpo_cli.config.blocks import Blocks
from igrpo_cli.errors import UsageError
from igrpo_cli.pipeline.prompt_lengths import require_completions_fit
from igrpo_cli.pipeline.session import require_extras

BYTES_PER_TOKEN = 4 + 4 + 4
"""A sampled token as an id (int32), a log-prob (float32) and about four bytes of text, before compression."""
BYTES_PER_ROW, BYTES_PER_SHARD = 256, 2**15
"""The other columns of a completion; the footer of a Parquet file and its manifest."""
ADAM, MASTER = 8, 4
"""Bytes of the state of a trained parameter: two moments, and its weight, all in float32."""
_EMBEDDING = re.compile(r"embed|wte|wpe|lm_head")
_ENVIRONMENTS = {
    **dict.fromkeys(("draft", "select", "refine"), "IGRPO_SAMPLING_ENV"),
    "update": "IGRPO_TRAINING_ENV",
}
"""The variable that names another environment for the jobs of a stage (`stages/task.sh`)."""


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


def size_of_run(
    config: RunConfig, num_iterations: int | None = None, model: Path | None = None, iteration: int | None = None
) -> dict[str, Any]:
    """Return the counts of one iteration and of the whole run, and the bytes on disk of both.

    `num_iterations` is None where it depends on problems that are not read yet, and `model` where the directory of the
    initial policy is not on this machine: what depends on them is None. `iteration` is the one that is counted; None
    means the settings of `config` itself.
    """
    shown = config if iteration is None else config.at(iteration)
    num_iterations = num_iterations or config.run.num_iterations
    each = [] if num_iterations is None else [config.at(number) for number in range(num_iterations)]
    counts = [iteration_arithmetic(of_iteration) for of_iteration in each]
    disk = _bytes_of_iteration(shown, model)
    keep = shown.update.keep_optimizer_states
    kept = num_iterations if not keep or num_iterations is None else min(keep, num_iterations)
    total = None
    if kept is not None and disk["policy"] is not None and disk["optimizer_state"] is not None:
        # The policy of iteration 0 is a pointer to the model. One optimiser state more is on disk while an update
        # publishes, and checkpoints between its steps (update.save_steps).
        # The difference of a policy is at most about as large as the policy.
        kept_whole = shown.policy.num_kept if isinstance(shown.policy.keep, int) else None
        policies = min(kept_whole or len(each), len(each))
        total = disk["policy"] * policies + disk["optimizer_state"] * kept + sum(map(_bytes_of_shards, each))
    blocks = config.blocks()
    return {
        **iteration_arithmetic(shown),
        **_size_of_blocks(blocks),
        "iterations": num_iterations,
        "total_completions": sum(each["completions"] for each in counts) if counts else None,
        "total_max_tokens_sampled": sum(each["max_tokens_sampled"] for each in counts) if counts else None,
        "disk_bytes": {**disk, "total": total},
        "kept": {"policies": shown.policy.keep, "optimizer_states": keep or "all", "shards": "all"},
    }


def size_of_sampling(blocks: Blocks, num_samples: int, prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """Return the counts and the bytes of one stage of sampling, as `igrpo eval` has."""
    completions = blocks.num_groups * num_samples
    return {
        "completions": completions,
        "max_tokens_sampled": completions * completion_tokens,
        **_size_of_blocks(blocks),
        "disk_bytes": {"shards": _bytes_of_rollouts(blocks, num_samples, prompt_tokens, completion_tokens)},
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


def describe_size(config: RunConfig, size: Mapping[str, Any]) -> str:
    """Return the text of `size_of_run`: an iteration, the whole run, and what is kept."""
    number, disk, keep = size["iterations"], size["disk_bytes"], size["kept"]["optimizer_states"]
    if number is None:
        whole = "the number of iterations is known when `igrpo init` has read the problems"
    else:
        whole = (
            f"{number:,} iterations, {size['total_completions']:,} completions, "
            f"at most {size['total_max_tokens_sampled']:,} tokens"
        )
    if disk["policy"] is None:
        stored = f"{config.policy.model} is not on this machine, so the size of policies is not known"
    else:
        total = "" if disk["total"] is None else f"; at most {_shown(disk['total'])} at the end of the run"
        stored = f"policy {_shown(disk['policy'])}, optimiser state {_shown(disk['optimizer_state'])}{total}"
    states = "all optimiser states" if keep == "all" else f"the last {keep} optimiser states"
    kept = size["kept"]["policies"]
    policies = "all policies" if kept == "all" else f"the last {config.policy.num_kept} policies"
    policies += " and the differences between the others" if kept == "deltas" else ""
    return (
        f"{describe_arithmetic(config)}\n{describe_blocks(size)}\nin total: {whole}\n"
        f"disk: shards of an iteration at most {_shown(disk['shards'])}, {stored}\n"
        f"kept: all shards, {policies} (policy.keep), {states} (update.keep_optimizer_states)"
    )


def describe_sampling(size: Mapping[str, Any]) -> str:
    """Return the text of the rest of `size_of_sampling`."""
    return f"{describe_blocks(size)}\ndisk: at most {_shown(size['disk_bytes']['shards'])}, which are kept"


def describe_blocks(size: Mapping[str, Any]) -> str:
    """Return the shards and blocks of a stage as one line."""
    return (
        f"shards: {size['shards']} in a stage, each of at most {size['blocks_per_shard']} blocks of "
        f"{size['groups_per_block']} problems; {size['blocks']} blocks in all"
    )


def _size_of_blocks(blocks: Blocks) -> dict[str, int]:
    shards = [len(blocks.of_shard(shard)) for shard in range(blocks.num_shards)]
    return {
        "shards": blocks.num_shards,
        "blocks": sum(shards),
        "blocks_per_shard": max(shards),
        "groups_per_block": blocks.size,
    }


def _bytes_of_iteration(config: RunConfig, model: Path | None) -> dict[str, int | None]:
    from igrpo_cli.engines.hub import tensor_shapes

    shapes = None if model is None else tensor_shapes(model)
    if shapes is None:
        return {"shards": _bytes_of_shards(config), "policy": None, "optimizer_state": None}
    num_parameters = sum(map(math.prod, shapes.values()))
    per_parameter = 2 if config.policy.dtype == "bfloat16" else 4
    if config.update.lora_r:
        # The state of the adapters, and the adapters themselves.
        state = (ADAM + MASTER + 4) * _lora_parameters(config, shapes)
    else:
        # A policy in float32 is the master copy itself.
        state = (ADAM + (MASTER if config.policy.dtype == "bfloat16" else 0)) * num_parameters
    return {
        "shards": _bytes_of_shards(config),
        "policy": per_parameter * num_parameters,
        "optimizer_state": state,
    }


def _lora_parameters(config: RunConfig, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the parameters of A [r, in] and B [out, r] of each adapted matrix, as the names of tensors tell them."""
    targets = config.update.lora_target_modules
    matrices = [
        shape
        for name, shape in shapes.items()
        if len(shape) == 2
        and not _EMBEDDING.search(name)
        and (not targets or name.removesuffix(".weight").endswith(tuple(targets)))
    ]
    return sum(config.update.lora_r * sum(shape) for shape in matrices)


def _bytes_of_shards(config: RunConfig) -> int:
    """Return the most bytes of the shards of one iteration. Metrics and advantages are much smaller."""
    prompt, draft, refine = config.prompts.max_prompt_length, config.draft, config.refine
    stored = _bytes_of_rollouts(config.blocks(), draft.num_generations, prompt, draft.max_completion_length)
    if "refine" in config.stages():
        shown = min(draft.max_completion_length, config.prompts.max_draft_tokens)
        stored += _bytes_of_rollouts(
            config.blocks(), refine.num_generations, prompt + shown, refine.max_completion_length
        )
        # A selection repeats the text of its draft.
        stored += (
            config.data.problems_sampled * 4 * draft.max_completion_length + config.run.num_shards * BYTES_PER_SHARD
        )
    return stored


def _bytes_of_rollouts(blocks: Blocks, num_samples: int, prompt_tokens: int, completion_tokens: int) -> int:
    """Return the most bytes of the shards of a stage. Prompts count once for each group."""
    completions = num_samples * (completion_tokens * BYTES_PER_TOKEN + BYTES_PER_ROW)
    prompt = prompt_tokens * (BYTES_PER_TOKEN - 4)
    return blocks.num_groups * (completions + prompt) + blocks.num_shards * BYTES_PER_SHARD


def _shown(num_bytes: int) -> str:
    for size, unit in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB")):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 1000:.0f} kB"


def require_possible(config: RunConfig) -> None:
    """Raise UsageError for settings that cannot work, as far as that shows without data, tokenizer and weights.

    These are shards without blocks, a completion as long as the context of the model, and packages that are not
    installed. The stages of an environment of its own are not checked here (docs/slurm.md).
    """
    from igrpo_cli.engines.hub import local_model, stated_positions
    from igrpo_cli.problems.sources import model_location

    _require_blocks(config)
    require_extras(config, (stage for stage in config.stages() if not os.environ.get(_ENVIRONMENTS[stage])))
    model = local_model(model_location(config.policy.model), config.policy.revision)
    require_completions_fit(config, None if model is None else stated_positions(model))


def _require_blocks(config: RunConfig) -> None:
    """Raise UsageError for more shards than an iteration has blocks: the tasks of the others would have no work."""
    blocks = config.blocks()
    num_blocks = -(-blocks.num_groups // blocks.size)
    if blocks.num_shards > num_blocks:
        fitting = blocks.num_groups // blocks.num_shards
        smaller = f"--set engine.groups_per_block={fitting}, or " if fitting else ""
        raise UsageError(
            f"run.num_shards = {blocks.num_shards}, but the {blocks.num_groups} problems of an iteration are "
            f"{num_blocks} blocks of {blocks.size}: {blocks.num_shards - num_blocks} shards would be empty",
            hint=f"{smaller}--set run.num_shards={num_blocks}",
        )
