"""An update between two of its optimiser steps, on disk: what the next step needs, to the bit."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from igrpo_cli.training.batch import FloatArray
from igrpo_cli.training.checkpoint import load_optimizer, load_weights, save_optimizer, writing_into
from igrpo_cli.training.measures import CompletionAudit
from igrpo_cli.training.step import PolicyTrainer, StepResult

METRICS_FILE = "metrics.json"
ARRAYS_FILE = "arrays.safetensors"
"""`old_logprobs.<minibatch>` and `audit.<step>.<field>`."""


@dataclass(frozen=True)
class UpdateProgress:
    """What an update has found so far, beside the weights and the optimiser state."""

    old_logprobs: list[FloatArray]
    """Of each minibatch, under the policy that the update began with."""
    results: list[StepResult] = field(default_factory=list)
    """Of the steps taken, in order."""


def save_progress(directory: Path, trainer: PolicyTrainer, progress: UpdateProgress) -> None:
    """Fill `directory` with the state after the last step of `progress`; every rank must ask."""
    with writing_into(directory):
        save_optimizer(directory, trainer.optimizer, trainer.policy.model, with_master_weights=True)
    trainer.ranks.wait()
    if not trainer.ranks.is_first:
        return
    arrays: dict[str, NDArray[np.generic]] = {
        f"old_logprobs.{minibatch}": values for minibatch, values in enumerate(progress.old_logprobs)
    }
    for step, result in enumerate(progress.results):
        arrays |= {f"audit.{step}.{each.name}": getattr(result.audit, each.name) for each in fields(CompletionAudit)}
    with writing_into(directory):
        save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, directory / ARRAYS_FILE)
        metrics = [result.metrics for result in progress.results]
        (directory / METRICS_FILE).write_text(json.dumps(metrics, indent=2) + "\n")


def load_progress(directory: Path, trainer: PolicyTrainer) -> UpdateProgress:
    """Put weights and optimiser state into `trainer`; returns the rest. Raises as the loaders of `checkpoint` do."""
    load_weights(directory, trainer.policy.model)
    load_optimizer(directory, trainer.optimizer, trainer.policy.model)
    arrays = load_file(directory / ARRAYS_FILE)
    metrics = json.loads((directory / METRICS_FILE).read_text())
    names = [each.name for each in fields(CompletionAudit)]
    results = [
        StepResult(found, CompletionAudit(**{name: arrays[f"audit.{step}.{name}"] for name in names}))
        for step, found in enumerate(metrics)
    ]
    num_minibatches = sum(name.startswith("old_logprobs.") for name in arrays)
    return UpdateProgress([arrays[f"old_logprobs.{minibatch}"] for minibatch in range(num_minibatches)], results)
