"""Policies and optimiser states on disk: safetensors and JSON only, with the same bytes for the same values.

A policy is a Hugging Face model directory. An optimiser state is a directory of safetensors files with the names of the
parameters. The caller publishes these directories atomically.

Several ranks each write their part of an optimiser state, and any number of ranks can read it. That format is
safetensors with the place of each part in the header, as torch.distributed.checkpoint writes for Hugging Face. Nothing
is pickled.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from transformers import GenerationConfig

from igrpo_cli.engines.hub import load_causal_lm
from igrpo_cli.errors import ConflictError, DamagedFileError, IgrpoError, MissingInputError
from igrpo_cli.training.adapters import adapter_deltas, plain_name
from igrpo_cli.training.optimizer import trainable_parameters
from igrpo_cli.training.policy import refuse_non_finite
from igrpo_cli.training.ranks import full_tensor, is_sharded, local_shard, shard_like

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
    "chat_template.json",
    "*processor_config.json",
)
"""Files that a policy takes from its source besides the configuration: tokenizer, chat template, processors."""
CUSTOM_CODE = "*.py"
"""Files that are also taken if the configuration refers to code (`auto_map`)."""

MOMENTS = ("exp_avg", "exp_avg_sq")
ADAM_FILE = "adam.safetensors"
"""Holds `exp_avg.<parameter>` and `exp_avg_sq.<parameter>` in float32, and `step`, the number of steps as int64."""
MASTER_FILE = "master.safetensors"
"""Holds `<parameter>` in float32, if the policy itself is saved in another dtype.

Several ranks write the tensors of both files into files of their own, the weights as `master.<parameter>`.
"""


def save_policy(model: Any, source_directory: Path, target_directory: Path, dtype: torch.dtype) -> None:
    """Write `model` in `dtype` as a model directory. All files but the weights come from the source directory.

    Raises IgrpoError, before anything is written, for weights that are not finite in `dtype`.
    """
    write_policy(model, gather_weights(model, source_directory, dtype), source_directory, target_directory, dtype)


def gather_weights(model: Any, source_directory: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return all weights in `dtype`, unsharded and with adapters added. Every rank must call this.

    Some weights stay in float32 (see `published_dtypes`). Raises as `save_policy`.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    dtypes = published_dtypes(model, source_directory, dtype)
    deltas = adapter_deltas(model)
    gathered: dict[int, Tensor] = {}
    state = {}
    for stored_name, tensor in model.state_dict().items():
        if ".lora_" in stored_name:
            continue
        name = plain_name(stored_name)
        # Tied weights stay one tensor, so that they are gathered and written once.
        key = id(parameters.get(stored_name, tensor))
        if key not in gathered:
            complete = full_tensor(tensor) + deltas[name] if name in deltas else full_tensor(tensor)
            gathered[key] = complete.to(dtypes[name]) if complete.is_floating_point() else complete
        state[name] = gathered[key]
    refuse_non_finite(state, "policy not saved")
    return state


def published_dtypes(model: Any, source_directory: Path, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Return the dtype in which each weight is published: `dtype`, or float32 where rounding would change the model.

    These are the weights that transformers loads in float32 whatever the dtype (a bias that chooses experts), the
    weights that the source has in float32 among others of a lower precision, and buffers, which are not trained.
    """
    names = [plain_name(name) for name in model.state_dict()]
    if dtype == torch.float32:
        return dict.fromkeys(names, dtype)
    with torch.device("meta"):
        empty = type(model)._from_config(copy.deepcopy(model.config), dtype=dtype)
    kept = re.compile("|".join(each.replace("*", ".*") for each in model._keep_in_fp32_modules_strict or ()) or "$^")
    buffers = {plain_name(name) for name, _ in model.named_buffers()}
    dtypes = {name: tensor.dtype for name, tensor in empty.state_dict().items()}
    in_source = {name: found for name, (found, _) in stored_tensors(source_directory).items()}
    is_mixed = not {"BF16", "F16"}.isdisjoint(in_source.values())
    return {
        name: torch.float32
        if kept.search(name) or name in buffers or (is_mixed and in_source.get(name) == "F32")
        else dtypes.get(name, dtype)
        for name in names
    }


def stored_tensors(directory: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the dtype, as safetensors names it, and the shape of each tensor of a model directory."""
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                tensor = file.get_slice(name)
                found[name] = str(tensor.get_dtype()), tuple(tensor.get_shape())
    return found


@contextmanager
def writing_into(directory: Path) -> Iterator[None]:
    """Raise IgrpoError with the name of `directory` if a write within the context fails."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise IgrpoError(
            f"cannot write into {directory}: {error}", hint="free space there, then run the same command again"
        ) from error


def write_policy(
    model: Any, state: dict[str, Tensor], source_directory: Path, target_directory: Path, dtype: torch.dtype
) -> None:
    """Write gathered weights as a model directory. All other files come from the source directory.

    Raises IgrpoError if the directory does not hold the same tensors as its source and cannot be loaded either.
    """
    target_directory.mkdir(parents=True, exist_ok=True)
    # Some versions refuse to write generation settings that they consider invalid. Those of the source are copied.
    generation_config, model.generation_config = model.generation_config, GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        model.save_pretrained(target_directory, state_dict=state)
    finally:
        model.generation_config = generation_config
    # save_pretrained adds the defaults of the installed version, so the configuration would change over iterations.
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
    _compare_with_source(source_directory, target_directory, trust_remote_code="auto_map" in config)


def _compare_with_source(source: Path, target: Path, *, trust_remote_code: bool) -> None:
    """Raise IgrpoError if a published policy has other tensors than its source and cannot be loaded.

    Raises it also if a tensor lost the float32 that the source keeps it in among tensors of a lower precision.
    """
    before, after = stored_tensors(source), stored_tensors(target)
    is_mixed = not {"BF16", "F16"}.isdisjoint(dtype for dtype, _ in before.values())
    for name in sorted(before.keys() & after.keys()) if is_mixed else ():
        if before[name][0] == "F32" and after[name][0] != "F32":
            raise IgrpoError(f"policy not published: {name} is F32 in {source} and {after[name][0]} in the policy")
    if {name: shape for name, (_, shape) in before.items()} == {name: shape for name, (_, shape) in after.items()}:
        return
    # A source may store tied weights twice, or have names of an older version of transformers.
    try:
        load_causal_lm(target, "auto", trust_remote_code=trust_remote_code)
    except IgrpoError as error:
        raise IgrpoError(
            f"policy not published, because it is not of the kind of its source {source}: {error.message}",
            hint="this is a defect of igrpo or transformers for this architecture; use another model",
        ) from error


def save_optimizer(
    directory: Path, optimizer: torch.optim.Optimizer, model: torch.nn.Module, *, with_master_weights: bool
) -> None:
    """Write Adam's moments and step count, and with `with_master_weights` the float32 weights.

    Without these, steps of a small learning rate would be lost in the rounding of a bfloat16 policy. Raises IgrpoError,
    before anything is written, if no step has been taken or if values are not finite.
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
    """Restore Adam's state, so that the following steps are those of an uninterrupted run.

    Raises MissingInputError, DamagedFileError, or ConflictError for the state of another model.
    """
    parameters = trainable_parameters(model)
    wanted = {f"{moment}.{name}": p for moment in MOMENTS for name, p in parameters.items()}
    tensors = _load_tensors(directory, ADAM_FILE, {**wanted, "step": torch.zeros((), dtype=torch.int64)})
    for name, parameter in parameters.items():
        moments = {moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in MOMENTS}
        step = tensors["step"].to(parameter.device, torch.float32, copy=True)
        optimizer.state[parameter] = {"step": step, **moments}


def load_master_weights(directory: Path, model: torch.nn.Module, policy: Path, policy_dtype: torch.dtype) -> None:
    """Replace the weights of the loaded `policy` by the float32 weights that it was rounded from.

    Raises MissingInputError, DamagedFileError, or ConflictError if they do not round to the policy in `policy_dtype`.
    """
    tensors, parameters = _master_weights(directory, model), trainable_parameters(model)
    dtypes = published_dtypes(model, policy, policy_dtype)
    for name, parameter in parameters.items():
        rounded = local_shard(tensors[name]).to(dtypes[name]).float().cpu()
        if not torch.equal(rounded, local_shard(parameter.detach()).cpu()):
            raise ConflictError(
                f"{directory / MASTER_FILE}: {name} does not round to the loaded policy",
                hint="use the optimiser state that was written together with this policy",
            )
    _copy_weights(tensors, parameters)


def load_weights(directory: Path, model: torch.nn.Module) -> None:
    """Replace the weights of `model` by the float32 weights. Raises as `load_master_weights`."""
    _copy_weights(_master_weights(directory, model), trainable_parameters(model))


def _copy_weights(tensors: dict[str, Tensor], parameters: dict[str, torch.nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[name])


def _master_weights(directory: Path, model: torch.nn.Module) -> dict[str, Tensor]:
    return _load_tensors(directory, MASTER_FILE, dict(trainable_parameters(model)))


def _load_tensors(directory: Path, file: str, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file, sharded like those of `wanted`, which must have the same names and shapes."""
    path = directory / file
    if not path.exists():
        return _load_parts(directory, file, wanted)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise DamagedFileError(f"{path} cannot be read: {error}") from error
    except (OSError, RuntimeError) as error:  # raised by torch if the file vanishes while it is opened
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
    return {name: shard_like(tensor, wanted[name]) for name, tensor in tensors.items()}


def _load_parts(directory: Path, file: str, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file from the files of several ranks. Raises as `_load_tensors`."""
    if not any(directory.glob("shard-*.safetensors")):
        raise MissingInputError(
            f"{directory / file} does not exist", hint="--set update.optimizer_state=fresh starts without it"
        )
    prefix = "master." if file == MASTER_FILE else ""
    tensors = {f"{prefix}{name}": torch.zeros_like(tensor) for name, tensor in wanted.items()}
    _load_sharded(directory, tensors)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _save_sharded(directory: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors, sharded or equal on all ranks, into `directory`. Every rank must call this."""
    with _without_warnings():
        save(tensors, storage_writer=HuggingFaceStorageWriter(str(directory), save_distributed=True))


def _load_sharded(directory: Path, tensors: dict[str, Tensor]) -> None:
    """Fill `tensors`, however they are sharded, with the values in `directory`.

    The directory may contain other kinds of tensors too; the kind is the part of a name before its first dot. Raises
    ConflictError if it has other names of the same kinds, or other shapes, and DamagedFileError if it cannot be read.
    """
    reader = HuggingFaceStorageReader(str(directory))
    try:
        with _without_warnings():
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
def _without_warnings() -> Iterator[None]:
    """Suppress torch's warnings about a checkpoint that a single process reads, which is intended."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
