"""Policies and optimiser states on disk: safetensors and JSON only, the same bytes for the same values.

A policy is a Hugging Face model directory. An optimiser state is a directory of safetensors files
keyed by parameter name. The caller publishes either directory atomically; nothing here is.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig

from igrpo_cli.errors import ConflictError, DamagedFileError, IgrpoError, MissingInputError
from igrpo_cli.training.optimizer import trainable_parameters
from igrpo_cli.training.policy import refuse_non_finite

COPIED_FILES = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "*.jinja",
    "additional_chat_templates",
)
"""What a policy inherits from its source beside the configuration: tokeniser and chat template."""
CUSTOM_CODE = "*.py"
"""Inherited only where the configuration refers to it (`auto_map`); other scripts have nothing to do in a policy."""

MOMENTS = ("exp_avg", "exp_avg_sq")
ADAM_FILE = "adam.safetensors"
"""`exp_avg.<parameter>`, `exp_avg_sq.<parameter>` in float32 and `step`, one int64: optimiser steps taken."""
MASTER_FILE = "master.safetensors"
"""`<parameter>` in float32; only where the policy itself is saved in another dtype."""


def save_policy(model: Any, source_directory: Path, target_directory: Path, dtype: torch.dtype) -> None:
    """Write `model` in `dtype` as a model directory; everything but the weights is what the source holds.

    Raises IgrpoError, before anything is written, for weights that are not finite in `dtype`.
    """
    state = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
    }
    refuse_non_finite(state, "policy not saved")
    target_directory.mkdir(parents=True, exist_ok=True)
    # Some versions refuse to write generation settings that they call invalid; those of the source are copied below.
    generation_config, model.generation_config = model.generation_config, GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        model.save_pretrained(target_directory, state_dict=state)
    finally:
        model.generation_config = generation_config
    # save_pretrained adds this version's defaults to the configuration: over the iterations it would drift.
    config = json.loads((source_directory / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    config.pop("torch_dtype", None)
    (target_directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (target_directory / "generation_config.json").unlink(missing_ok=True)
    patterns = (*COPIED_FILES, CUSTOM_CODE) if "auto_map" in config else COPIED_FILES
    for source in sorted({path for pattern in patterns for path in source_directory.glob(pattern)}):
        if source.is_dir():
            shutil.copytree(source, target_directory / source.name, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, target_directory / source.name)


def save_optimizer(
    directory: Path, optimizer: torch.optim.Optimizer, model: torch.nn.Module, *, with_master_weights: bool
) -> None:
    """Write Adam's moments and step count, and the float32 weights if the policy is saved in another dtype.

    Without the master weights a small learning rate would be lost in the rounding of the policy.
    Raises IgrpoError, before anything is written, ahead of the first step or for values that are not finite.
    """
    parameters = trainable_parameters(model)
    if any(parameter not in optimizer.state for parameter in parameters.values()):
        raise IgrpoError("no optimiser state to save: no step has been taken")
    adam = {
        f"{moment}.{name}": optimizer.state[parameter][moment]
        for moment in MOMENTS
        for name, parameter in parameters.items()
    }
    step = optimizer.state[next(iter(parameters.values()))]["step"]
    files = {ADAM_FILE: {**adam, "step": step.to(torch.int64)}}
    if with_master_weights:
        files[MASTER_FILE] = {name: parameter.detach() for name, parameter in parameters.items()}
    for file, tensors in files.items():
        refuse_non_finite(tensors, f"{file} not saved")
    directory.mkdir(parents=True, exist_ok=True)
    for file, tensors in files.items():
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, directory / file)


def load_optimizer(directory: Path, optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> None:
    """Restore Adam's state: the steps that follow are those of a run that never stopped.

    Raises MissingInputError, DamagedFileError, or ConflictError for the state of another model.
    """
    parameters = trainable_parameters(model)
    shapes = {f"{moment}.{name}": p.shape for moment in MOMENTS for name, p in parameters.items()}
    tensors = _load_tensors(directory / ADAM_FILE, {**shapes, "step": torch.Size([])})
    for name, parameter in parameters.items():
        moments = {moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in MOMENTS}
        step = tensors["step"].to(parameter.device, torch.float32, copy=True)
        optimizer.state[parameter] = {"step": step, **moments}


def load_master_weights(directory: Path, model: torch.nn.Module, policy_dtype: torch.dtype) -> None:
    """Put the float32 weights in place of the loaded policy, which is their rounding to `policy_dtype`.

    Raises MissingInputError, DamagedFileError, or ConflictError where they belong to another policy.
    """
    path = directory / MASTER_FILE
    parameters = trainable_parameters(model)
    tensors = _load_tensors(path, {name: parameter.shape for name, parameter in parameters.items()})
    for name, parameter in parameters.items():
        if not torch.equal(tensors[name].to(policy_dtype).float(), parameter.detach().cpu()):
            raise ConflictError(
                f"{path}: {name} does not round to the loaded policy",
                hint="use the optimiser state that was written together with this policy",
            )
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[name])


def _load_tensors(path: Path, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """The tensors of a file, which must be those of `shapes` and no others."""
    if not path.exists():
        raise MissingInputError(f"{path} does not exist", hint="--set update.optimizer_state=fresh starts without it")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise DamagedFileError(f"{path} cannot be read: {error}") from error
    for name in sorted(tensors.keys() ^ shapes.keys()):
        where = "the file" if name in tensors else "the model"
        raise ConflictError(f"{path} is of another model: only {where} has {name}")
    for name, tensor in tensors.items():
        if tensor.shape != shapes[name]:
            found, wanted = list(tensor.shape), list(shapes[name])
            raise ConflictError(f"{path} is of another model: {name} has shape {found}, not {wanted}")
    return tensors
