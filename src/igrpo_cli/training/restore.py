"""A trainer from what lies on disk, and what it becomes on disk again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from igrpo_cli.config.sections import PolicySection, UpdateSection
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
from igrpo_cli.training.policy import load_policy
from igrpo_cli.training.ranks import Ranks
from igrpo_cli.training.step import PolicyTrainer


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
    # What is to be sharded goes to its device layer by layer: whole it may not fit there.
    device = ranks.device if ranks.size == 1 else torch.device("cpu")
    trust = policy_config.trust_remote_code
    policy = load_policy(directory, device, trust_remote_code=trust)
    if config.lora_r:
        add_adapters(policy.model, config, adapter_seed)
    reference_policy = None if reference is None else load_policy(reference, device, trust_remote_code=trust)
    trainer = PolicyTrainer(policy, config, reference_policy, ranks)
    if previous is None:
        return trainer
    if config.lora_r:
        load_weights(previous, trainer.policy.model)
    elif policy_config.dtype != "float32":
        load_master_weights(previous, trainer.policy.model, getattr(torch, policy_config.dtype))
    if config.optimizer_state == "carry":
        load_optimizer(previous, trainer.optimizer, trainer.policy.model)
    return trainer


@dataclass(frozen=True, slots=True)
class TrainerPlaces:
    """Directories that a trainer is written into."""

    policy: Path
    optimizer: Path
    adapter: Path
    """Made only where adapters are trained."""


def save_trainer(trainer: PolicyTrainer, source: Path, places: TrainerPlaces, policy_config: PolicySection) -> None:
    """Write the trained policy, its optimiser state, and its adapters if it has any.

    The tokeniser and the configuration are those of the model directory `source`. Every rank must call this: the
    first one writes the policy, each one its part of a sharded optimiser state. The adapters name
    `policy_config.model` as their base model.
    """
    model, is_first = trainer.policy.model, trainer.ranks.is_first
    is_adapted = has_adapters(model)
    with writing_into(places.policy.parent):
        if is_adapted:
            adapter = adapter_weights(model)
            if is_first:
                write_adapter(model, adapter, policy_config.model, places.adapter)
        weights = gather_weights(model, getattr(torch, policy_config.dtype))
        with ThreadPoolExecutor(1) as beside:
            saving = beside.submit(write_policy, model, weights, source, places.policy) if is_first else None
            with_master = policy_config.dtype != "float32" or is_adapted
            save_optimizer(places.optimizer, trainer.optimizer, model, with_master_weights=with_master)
            if saving is not None:
                saving.result()
    trainer.ranks.wait()
