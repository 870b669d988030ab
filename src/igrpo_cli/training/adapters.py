"""LoRA (arXiv 2106.09685): train A and B of W + (alpha / r) B A with W frozen; publish the sum, and A and B."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from igrpo_cli.config.update import UpdateSection
from igrpo_cli.errors import UsageError
from igrpo_cli.extras import importing_extra
from igrpo_cli.training.ranks import full_tensor

NAME = "default"
"""Name of an adapter in peft if none is given."""
ALL_LINEAR = "all-linear"
_READ_DIRECTLY = ("x_proj", "dt_proj", "out_proj")
"""Layers of a state space model whose weights its kernels read without a call, so that an adapter has no effect."""


def add_adapters(model: Any, config: UpdateSection, seed: int) -> None:
    """Freeze `model` and add an adapter to each of its target layers.

    `seed` decides A. B starts at 0, so the policy starts as it was. Raises UsageError for targets that do not exist.
    """
    lora = _peft().LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        target_modules=list(config.lora_target_modules) or ALL_LINEAR,
        exclude_modules=_unsuitable_layers(model) or None,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            _peft().inject_adapter_in_model(lora, model, adapter_name=NAME)
        except ValueError as error:
            raise UsageError(
                f"{type(model).__name__} cannot have adapters on {lora.target_modules}: {error}",
                hint="set update.lora_target_modules to names of its linear layers",
            ) from error
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def has_adapters(model: torch.nn.Module) -> bool:
    """Return True if `add_adapters` was called on `model`."""
    return any(".lora_" in name for name, _ in model.named_parameters())


def adapter_deltas(model: Any) -> dict[str, Tensor]:
    """Return (alpha / r) B A of each adapter, unsharded, by the name of its weight W; {} without adapters.

    peft computes them, because it knows the layouts of W: a matrix, its transpose, or one matrix for each expert.
    """
    deltas = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            weight = getattr(module, "parameter_name", "weight")
            with torch.no_grad():
                deltas[f"{plain_name(name)}.{weight}"] = full_tensor(module.get_delta_weight(NAME))
    return deltas


def plain_name(name: str) -> str:
    """Return the name that a module or parameter has in the model without adapters."""
    return name.replace(".base_layer", "")


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
    config.exclude_modules = sorted(config.exclude_modules or [])
    config.save_pretrained(directory)
    save_file(weights, directory / "adapter_model.safetensors", metadata={"format": "pt"})


def _unsuitable_layers(model: Any) -> list[str]:
    """Return the names of layers whose adapter has no effect, cannot be called, or cannot be merged."""
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    called = _called_modules(model)
    found: set[str] = set()
    for name, module in model.named_modules():
        if hasattr(module, "A_log") and hasattr(module, "D"):
            found.update(f"{name}.{child}" for child in _READ_DIRECTLY if hasattr(module, child))
        if isinstance(module, torch.nn.Embedding) and uses[id(module.weight)] > 1:
            found.add(name)  # A delta merged into tied embeddings would also change the output layer.
        if isinstance(module, torch.nn.Linear):
            # Some routers read the weight of a layer instead of calling it.
            is_read = name not in called and name.rpartition(".")[0] in called
            # Layers with the same weight have adapters of their own, and their sum has no weight to be merged into.
            is_shared, is_frozen = uses[id(module.weight)] > 1, not module.weight.requires_grad
            if is_read or is_shared or is_frozen or not _is_matrix_product(module):
                found.add(name)
    return sorted(found)


@torch.no_grad()
def _called_modules(model: Any) -> set[str]:
    """Return the names of the modules that a forward pass calls. An expert that gets no token is not called."""
    called: set[str] = set()
    hooks = [
        module.register_forward_pre_hook(lambda _module, _inputs, name=name: called.add(name))
        for name, module in model.named_modules()
    ]
    try:
        model(input_ids=torch.arange(8, device=model.get_input_embeddings().weight.device)[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return called


@torch.no_grad()
def _is_matrix_product(layer: torch.nn.Linear) -> bool:
    """Return True if a layer maps vectors to vectors, as its class promises: some routers return several tensors."""
    if type(layer).forward is torch.nn.Linear.forward:
        return True
    try:
        output = layer(layer.weight.new_zeros(1, layer.in_features))
    except (RuntimeError, ValueError):
        return False
    return isinstance(output, Tensor) and output.shape == (1, layer.out_features)


def _peft() -> Any:
    with importing_extra("lora", "update.lora_r"):
        import peft
    return peft
