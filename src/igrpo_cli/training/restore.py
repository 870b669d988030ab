"""A trainer from what lies on disk, and what it becomes on disk again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers.utils import logging as transformers_logging

from igrpo_cli.devices import find_device, has_fast_bfloat16
from igrpo_cli.training.adapters import LoraSettings, adapter_weights, add_adapters, has_adapters, write_adapter
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
from igrpo_cli.training.step import PolicyTrainer, TrainingSettings

PolicyDtype = Literal["float32", "bfloat16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def restore_trainer(
    policy: Path,
    settings: TrainingSettings,
    *,
    policy_dtype: PolicyDtype,
    previous: Path | None,
    carry_optimizer: bool,
    reference: Path | None,
    trust_remote_code: bool = False,
    ranks: Ranks | None = None,
    lora: LoraSettings | None = None,
) -> PolicyTrainer:
    """The trainer of a model directory, as the previous update left it where its optimiser directory is given.

    Runs on the GPU where there is one. A policy published in another dtype than float32 goes on from the float32
    weights that lie in `previous`, not from their rounding; Adam's state follows with `carry_optimizer`. With `lora`
    the policy is the initial one, and the adapters come from `previous`. Raises as the loaders of `checkpoint` do.
    """
    # What goes to stderr is for the console to say.
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    ranks = ranks or Ranks()
    # What is to be sharded goes to its device layer by layer: whole it may not fit there.
    device = ranks.device if ranks.size == 1 else torch.device("cpu")
    loaded = load_policy(policy, device, trust_remote_code=trust_remote_code)
    if lora is not None:
        add_adapters(loaded.model, lora)
    trainer = PolicyTrainer(
        loaded,
        settings,
        None if reference is None else load_policy(reference, device, trust_remote_code=trust_remote_code),
        ranks,
    )
    if previous is not None and lora is not None:
        load_weights(previous, trainer.policy.model)
    elif previous is not None and policy_dtype != "float32":
        load_master_weights(previous, trainer.policy.model, DTYPES[policy_dtype])
    if previous is not None and carry_optimizer:
        load_optimizer(previous, trainer.optimizer, trainer.policy.model)
    return trainer


@dataclass(frozen=True, slots=True)
class TrainerPlaces:
    """Directories that a trainer is written into."""

    policy: Path
    optimizer: Path
    adapter: Path
    """Made only where adapters are trained."""


def save_trainer(
    trainer: PolicyTrainer, source: Path, places: TrainerPlaces, policy_dtype: PolicyDtype, base_model: str
) -> None:
    """Write the trained policy, with the tokeniser and settings of `source`, optimiser state and adapters beside it.

    Every rank must ask; the first one writes the policy, each its part of a sharded optimiser state. `base_model` is
    what the adapter says that it belongs to.
    """
    model, is_first = trainer.policy.model, trainer.ranks.is_first
    is_adapted = has_adapters(model)
    with writing_into(places.policy.parent):
        if is_adapted:
            adapter = adapter_weights(model)
            if is_first:
                write_adapter(model, adapter, base_model, places.adapter)
        weights = gather_weights(model, DTYPES[policy_dtype])
        with ThreadPoolExecutor(1) as beside:
            saving = beside.submit(write_policy, model, weights, source, places.policy) if is_first else None
            with_master = policy_dtype != "float32" or is_adapted
            save_optimizer(places.optimizer, trainer.optimizer, model, with_master_weights=with_master)
            if saving is not None:
                saving.result()
    trainer.ranks.wait()


def compute_dtype(dtype: Literal["auto", "float32", "bfloat16"]) -> PolicyDtype:
    """The dtype that `auto` stands for on this machine; any other is itself."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if has_fast_bfloat16(find_device("auto")) else "float32"
