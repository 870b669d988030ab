"""LoRA (arXiv 2106.09685): train A and B of W + (alpha / r) B A with W frozen; publish the sum, and A and B."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from igrpo_cli.config.sections import UpdateSection
from igrpo_cli.errors import IgrpoError, UsageError
from igrpo_cli.training.ranks import full_tensor

NAME = "default"
"""Name of an adapter in peft if none is given."""
ALL_LINEAR = "all-linear"


def add_adapters(model: Any, config: UpdateSection, seed: int) -> None:
    """Freeze `model` and add an adapter to each of its target layers.

    `seed` decides A. B starts at 0, so the policy starts as it was. Raises UsageError for targets that do not exist.
    """
    lora = _peft().LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        target_modules=list(config.lora_target_modules) or ALL_LINEAR,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            _peft().inject_adapter_in_model(lora, model, adapter_name=NAME)
        except ValueError as error:
            raise UsageError(
                f"{type(model).__name__} cannot have adapters: {error}",
                hint="set update.lora_target_modules to names of its linear layers",
            ) from error
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def has_adapters(model: torch.nn.Module) -> bool:
    """Return True if `add_adapters` was called on `model`."""
    return any(".lora_" in name for name, _ in model.named_parameters())


def adapter_deltas(model: Any) -> dict[str, Tensor]:
    """Return (alpha / r) B A of each adapter, unsharded, by the name of its weight W; {} without adapters."""
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    return {
        f"{name}.weight": module.scaling[NAME]
        * (full_tensor(module.lora_B[NAME].weight.detach()) @ full_tensor(module.lora_A[NAME].weight.detach()))
        for name, module in layers.items()
    }


def adapter_weights(model: Any) -> dict[str, Tensor]:
    """Return A and B of each adapter, unsharded, under the names that peft has for them in a file."""
    return {
        f"base_model.model.{name.replace(f'.{NAME}', '')}": full_tensor(parameter.detach()).cpu().contiguous()
        for name, parameter in model.named_parameters()
        if ".lora_" in name
    }


def write_adapter(model: Any, weights: dict[str, Tensor], base_model: str, directory: Path) -> None:
    """Write `adapter_weights` as a directory that peft can load onto `base_model`."""
    directory.mkdir(parents=True, exist_ok=True)
    config = model.peft_config[NAME]
    config.base_model_name_or_path = base_model
    config.inference_mode = True
    # peft has a set here, and would write it in another order every time.
    config.target_modules = sorted(config.target_modules)
    config.save_pretrained(directory)
    save_file(weights, directory / "adapter_model.safetensors", metadata={"format": "pt"})


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise IgrpoError(f"LoRA needs peft: {error}", hint="pip install 'igrpo-cli[lora]'") from error
    return peft
