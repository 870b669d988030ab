"""AdamW on float32 weights, with the gradient clipped by its global norm."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from igrpo_cli.config.update import UpdateSection
from igrpo_cli.errors import IgrpoError
from igrpo_cli.training.ranks import full_tensor


def make_optimizer(model: Any, config: UpdateSection) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters of `model`, without state.

    Weight decay applies to matrices only, not to biases and norms, as in transformers' Trainer.
    """
    parameters = trainable_parameters(model).values()
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=0.0,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=True,
    )


def trainable_parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """Return the trainable parameters by name. A tied parameter appears once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def apply_gradients(optimizer: torch.optim.AdamW, model: Any, learning_rate: float, max_grad_norm: float) -> float:
    """Take one step with the accumulated gradients, and return their global norm before clipping.

    Raises IgrpoError if the norm is not finite; weights and optimiser state are then unchanged.
    """
    parameters = trainable_parameters(model)
    for parameter in parameters.values():
        # AdamW skips parameters without gradient. Rows without gradient are not run backward, and momentum must move
        # the weights all the same.
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    norm = full_tensor(get_total_norm(gradients.values()))
    if not torch.isfinite(norm):
        culprits = [name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()]
        raise IgrpoError(
            f"gradient norm is {norm.item()}, first in {culprits[0] if culprits else 'the sum of all'}",
            hint="lower update.learning_rate, or set update.dtype = float32",
        )
    clip_grads_with_norm_(parameters.values(), max_grad_norm, norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    return float(norm)
