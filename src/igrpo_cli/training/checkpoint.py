"""Policies and optimiser states on disk: safetensors and JSON only, the same bytes for the same values.

A policy is a Hugging Face model directory. An optimiser state is a directory of safetensors files
keyed by parameter name. The caller publishes either directory atomically; nothing here is.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from transformers import GenerationConfig

from igrpo_cli.errors import ConflictError, DamagedFileError, IgrpoError, MissingInputError
from igrpo_cli.training.adapters import adapter_deltas
from igrpo_cli.training.optimizer import trainable_parameters
from igrpo_cli.training.policy import refuse_non_finite
from igrpo_cli.training.ranks import is_sharded, like, local, whole

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
"""`<parameter>` in float32; only where the policy itself is saved in another dtype.

Several ranks write the tensors of both files into files of their own (see `sharded_checkpoint`), the weights as
`master.<parameter>`. Either form is read by any number of ranks.
"""


def save_policy(model: Any, source_directory: Path, target_directory: Path, dtype: torch.dtype) -> None:
    """Write `model` in `dtype` as a model directory; everything but the weights is what the source holds.

    Raises IgrpoError, before anything is written, for weights that are not finite in `dtype`.
    """
    write_policy(model, gather_weights(model, dtype), source_directory, target_directory)


def gather_weights(model: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """All weights in `dtype`, whole and with adapters added in; of a sharded model every rank must ask.

    Raises as `save_policy`.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    deltas = adapter_deltas(model)
    gathered: dict[int, Tensor] = {}
    state = {}
    for stored_name, tensor in model.state_dict().items():
        if ".lora_" in stored_name:
            continue
        name = stored_name.replace(".base_layer.", ".")
        # Tied weights are gathered once and stay one tensor, so that they are written once.
        key = id(parameters.get(stored_name, tensor))
        if key not in gathered:
            complete = whole(tensor) + deltas[name] if name in deltas else whole(tensor)
            gathered[key] = complete.to(dtype) if complete.is_floating_point() else complete
        state[name] = gathered[key]
    refuse_non_finite(state, "policy not saved")
    return state


@contextmanager
def writing_into(directory: Path) -> Iterator[None]:
    """Raises IgrpoError, naming `directory`, where the file system refuses what is written within."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise IgrpoError(f"cannot write into {directory}: {error}", hint="make room there and run it again") from error


def write_policy(model: Any, state: dict[str, Tensor], source_directory: Path, target_directory: Path) -> None:
    """Write gathered weights as a model directory; everything else is what the source holds."""
    dtype = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
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
    master = {name: parameter.detach() for name, parameter in parameters.items()} if with_master_weights else {}
    files = {ADAM_FILE: {**adam, "step": step.to(torch.int64)}, **({MASTER_FILE: master} if master else {})}
    for file, tensors in files.items():
        refuse_non_finite(tensors, f"{file} not saved")
    directory.mkdir(parents=True, exist_ok=True)
    if is_sharded(model):
        _save_sharded(directory, {**files[ADAM_FILE], **{f"master.{name}": tensor for name, tensor in master.items()}})
        return
    for file, tensors in files.items():
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, directory / file)


def load_optimizer(directory: Path, optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> None:
    """Restore Adam's state: the steps that follow are those of a run that never stopped.

    Raises MissingInputError, DamagedFileError, or ConflictError for the state of another model.
    """
    parameters = trainable_parameters(model)
    wanted = {f"{moment}.{name}": p for moment in MOMENTS for name, p in parameters.items()}
    tensors = _load_tensors(directory, ADAM_FILE, {**wanted, "step": torch.zeros((), dtype=torch.int64)})
    for name, parameter in parameters.items():
        moments = {moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in MOMENTS}
        step = tensors["step"].to(parameter.device, torch.float32, copy=True)
        optimizer.state[parameter] = {"step": step, **moments}


def load_master_weights(directory: Path, model: torch.nn.Module, policy_dtype: torch.dtype) -> None:
    """Put the float32 weights in place of the loaded policy, which is their rounding to `policy_dtype`.

    Raises MissingInputError, DamagedFileError, or ConflictError where they belong to another policy.
    """
    tensors, parameters = _master_weights(directory, model), trainable_parameters(model)
    for name, parameter in parameters.items():
        if not torch.equal(local(tensors[name]).to(policy_dtype).float().cpu(), local(parameter.detach()).cpu()):
            raise ConflictError(
                f"{directory / MASTER_FILE}: {name} does not round to the loaded policy",
                hint="use the optimiser state that was written together with this policy",
            )
    _copy_weights(tensors, parameters)


def load_weights(directory: Path, model: torch.nn.Module) -> None:
    """Put the float32 weights in place of those in `model`, whatever they are. Raises as `load_master_weights`."""
    _copy_weights(_master_weights(directory, model), trainable_parameters(model))


def _copy_weights(tensors: dict[str, Tensor], parameters: dict[str, torch.nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[name])


def _master_weights(directory: Path, model: torch.nn.Module) -> dict[str, Tensor]:
    return _load_tensors(directory, MASTER_FILE, dict(trainable_parameters(model)))


def _load_tensors(directory: Path, file: str, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, sharded as those of `wanted`, which must be its names and shapes and no others."""
    path = directory / file
    if not path.exists():
        return _load_parts(directory, file, wanted)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise DamagedFileError(f"{path} cannot be read: {error}") from error
    except (OSError, RuntimeError) as error:  # by torch, where the file vanishes while it is opened
        if path.exists():
            raise
        raise MissingInputError(f"{path} is gone") from error
    for name in sorted(tensors.keys() ^ wanted.keys()):
        where = "the file" if name in tensors else "the model"
        raise ConflictError(f"{path} is of another model: only {where} has {name}")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            found, expected = list(tensor.shape), list(wanted[name].shape)
            raise ConflictError(f"{path} is of another model: {name} has shape {found}, not {expected}")
    return {name: like(tensor, wanted[name]) for name, tensor in tensors.items()}


def _load_parts(directory: Path, file: str, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same from the files of several ranks."""
    if not any(directory.glob("shard-*.safetensors")):
        raise MissingInputError(
            f"{directory / file} does not exist", hint="--set update.optimizer_state=fresh starts without it"
        )
    prefix = "master." if file == MASTER_FILE else ""
    tensors = {f"{prefix}{name}": torch.zeros_like(tensor) for name, tensor in wanted.items()}
    _load_sharded(directory, tensors)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _save_sharded(directory: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors, sharded or the same on every rank, into `directory`; every rank must call it."""
    with _quietly():
        save(tensors, storage_writer=HuggingFaceStorageWriter(str(directory), save_distributed=True))


def _load_sharded(directory: Path, tensors: dict[str, Tensor]) -> None:
    """Fill `tensors`, sharded in whatever way, with what `directory` holds under their names.

    It may hold other kinds of tensors too; a kind is the part of a name before its first dot. Raises ConflictError
    where it holds other names of the same kinds, or other shapes, DamagedFileError where it cannot be read.
    """
    reader = HuggingFaceStorageReader(str(directory))
    try:
        with _quietly():
            stored = reader.read_metadata().state_dict_metadata
            kinds = {name.partition(".")[0] for name in tensors}
            same_kind = {name for name in stored if name.partition(".")[0] in kinds}
            for name in sorted(same_kind ^ tensors.keys()):
                where = "the files" if name in stored else "the model"
                raise ConflictError(f"{directory} is of another model: only {where} has {name}")
            for name, tensor in tensors.items():
                kept = stored[name]
                if not isinstance(kept, TensorStorageMetadata) or kept.size != tensor.shape:
                    found, wanted = list(getattr(kept, "size", ())), list(tensor.shape)
                    raise ConflictError(f"{directory} is of another model: {name} has shape {found}, not {wanted}")
            load(tensors, storage_reader=reader, no_dist=not dist.is_initialized())
    except (OSError, ValueError, CheckpointException) as error:
        raise DamagedFileError(f"{directory} cannot be read: {error}") from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without torch's warnings about a checkpoint that one process reads alone, which is meant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
