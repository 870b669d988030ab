"""The trainer on disk: restored from the previous update, saved as a new policy, and saved between two of its steps.

The progress of an update between two steps holds everything that the next step needs, to the bit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from igrpo_cli.config.update import PolicySection, UpdateSection
from igrpo_cli.training.adapters import adapter_weights, add_adapters, has_adapters, write_adapter
from igrpo_cli.training.checkpoint import (
    gather_weights,
    load_master_weights,
    load_optimizer,
    load_weights,
    save_optimizer,
    write_policy,
    writing_into,
)
from igrpo_cli.training.metrics import CompletionAudit
from igrpo_cli.training.packing import FloatArray
from igrpo_cli.training.policy import load_policy
from igrpo_cli.training.ranks import Ranks
from igrpo_cli.training.step import PolicyTrainer, StepResult, compute_dtype

METRICS_FILE = "metrics.json"
ARRAYS_FILE = "arrays.safetensors"
"""Holds `old_logprobs.<minibatch>` and `audit.<step>.<field>`."""


def restore_trainer(
    directory: Path,
    config: UpdateSection,
    policy_config: PolicySection,
    *,
    previous: Path | None,
    reference: Path | None,
    adapter_seed: int,
    ranks: Ranks | None = None,
) -> PolicyTrainer:
    """Return the trainer of the policy in `directory`, in the state that the previous update left it in.

    `previous` is the optimiser directory of that update; None starts with a new optimiser. A policy that is published
    in bfloat16 continues from the float32 weights in `previous`, not from their rounding. With `lora_r > 0`,
    `directory` holds the initial policy and the adapters come from `previous`. `reference` is the model directory of
    the KL term. Runs on a GPU if there is one. Raises as the loaders of `checkpoint` do.
    """
    ranks = ranks or Ranks()
    # A policy that will be sharded is loaded on the CPU: the whole of it may not fit on one device.
    device = ranks.device if ranks.size == 1 else torch.device("cpu")
    dtype = getattr(torch, compute_dtype(config.dtype, device)) if ranks.size == 1 else torch.float32
    trust = policy_config.trust_remote_code
    policy = load_policy(directory, device, dtype, trust_remote_code=trust)
    if config.lora_r:
        add_adapters(policy.model, config, adapter_seed)
    reference_policy = None if reference is None else load_policy(reference, device, dtype, trust_remote_code=trust)
    trainer = PolicyTrainer(policy, config, reference_policy, ranks)
    if previous is None:
        return trainer
    if config.lora_r:
        load_weights(previous, trainer.model)
    elif policy_config.dtype != "float32":
        load_master_weights(previous, trainer.model, directory, getattr(torch, policy_config.dtype))
    if config.optimizer_state == "carry":
        load_optimizer(previous, trainer.optimizer, trainer.model)
    return trainer


@dataclass(frozen=True, slots=True)
class TrainerPlaces:
    """Directories that a trainer is saved to."""

    policy: Path
    optimizer: Path | None
    """None writes no optimiser state."""
    adapter: Path
    """Written only if adapters are trained."""


def save_trainer(trainer: PolicyTrainer, source: Path, places: TrainerPlaces, policy_config: PolicySection) -> None:
    """Write the trained policy, its optimiser state, and its adapters if it has any.

    The tokeniser and the configuration are those of the model directory `source`. Every rank must call this: the
    first one writes the policy, each one its part of a sharded optimiser state. The adapters name
    `policy_config.model` as their base model.
    """
    model, is_first = trainer.model, trainer.ranks.is_first
    is_adapted = has_adapters(model)
    with writing_into(places.policy.parent):
        if is_adapted:
            adapter = adapter_weights(model)
            if is_first:
                write_adapter(model, adapter, policy_config.model, places.adapter)
        dtype = getattr(torch, policy_config.dtype)
        weights = gather_weights(model, source, dtype)
        with ThreadPoolExecutor(1) as background:
            saving = background.submit(write_policy, model, weights, source, places.policy, dtype) if is_first else None
            if places.optimizer is not None:
                with_master = policy_config.dtype != "float32" or is_adapted
                save_optimizer(places.optimizer, trainer.optimizer, model, with_master_weights=with_master)
            if saving is not None:
                saving.result()
    trainer.ranks.barrier()


@dataclass(frozen=True)
class UpdateProgress:
    """The results of an update so far, besides the weights and the optimiser state."""

    old_logprobs: Sequence[FloatArray | None]
    """Log-probs of the tokens of each minibatch, under the policy before the first step; None for a single step."""
    results: list[StepResult] = field(default_factory=list)
    """Results of the steps taken, in order."""


def save_progress(directory: Path, trainer: PolicyTrainer, progress: UpdateProgress) -> None:
    """Write the state after the last step of `progress` into `directory`. Every rank must call this."""
    with writing_into(directory):
        save_optimizer(directory, trainer.optimizer, trainer.model, with_master_weights=True)
    trainer.ranks.barrier()
    if not trainer.ranks.is_first:
        return
    arrays: dict[str, NDArray[np.generic]] = {
        f"old_logprobs.{minibatch}": values
        for minibatch, values in enumerate(progress.old_logprobs)
        if values is not None
    }
    for step, result in enumerate(progress.results):
        arrays |= {f"audit.{step}.{each.name}": getattr(result.audit, each.name) for each in fields(CompletionAudit)}
    with writing_into(directory):
        save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, directory / ARRAYS_FILE)
        metrics = [result.metrics for result in progress.results]
        (directory / METRICS_FILE).write_text(json.dumps(metrics, indent=2) + "\n")


def load_progress(directory: Path, trainer: PolicyTrainer) -> UpdateProgress:
    """Load weights and optimiser state into `trainer`, and return the progress. Raises as `load_optimizer` does."""
    load_weights(directory, trainer.model)
    load_optimizer(directory, trainer.optimizer, trainer.model)
    arrays = load_file(directory / ARRAYS_FILE)
    metrics = json.loads((directory / METRICS_FILE).read_text())
    names = [each.name for each in fields(CompletionAudit)]
    results = [
        StepResult(found, CompletionAudit(**{name: arrays[f"audit.{step}.{name}"] for name in names}))
        for step, found in enumerate(metrics)
    ]
    num_minibatches = sum(name.startswith("old_logprobs.") for name in arrays)
    return UpdateProgress([arrays[f"old_logprobs.{minibatch}"] for minibatch in range(num_minibatches)], results)
